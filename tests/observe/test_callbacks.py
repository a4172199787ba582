"""The callbacks record in a real training of each library what a recorder records in a loop by hand."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from coordcheck import CoordCheck, Recorder

STEPS = 3
RATE = 0.1
foreign = pytest.mark.filterwarnings("default")  # of those libraries' own code


def by_hand(model, loss_of, steps=STEPS, with_loss=False):
    """The records of a plain loop over the same batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    model.train()
    with Recorder(model, width=16, seed=7) as recorder:
        for _ in range(steps):
            loss = loss_of(model)
            if with_loss:
                recorder.record_loss(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.step()
    return recorder.records()


def same(records, expected):
    keys = ["step", "module", "kind"]
    one, other = (frame.set_index(keys).sort_index()[["width", "seed", "l1", "max"]] for frame in (records, expected))
    pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=1e-4, atol=1e-7)


def llama(width):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=16, **sizes))


def train_with_transformers(directory, model, width, **options):
    from transformers import Trainer, TrainingArguments

    from coordcheck.callbacks.transformers import RecorderCallback

    data = [{"input_ids": (tokens := torch.arange(8)), "labels": tokens}] * 16
    args = TrainingArguments(
        output_dir=str(directory / "out"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
        max_grad_norm=0.0,
        eval_strategy="steps",
        eval_steps=1,
        seed=7,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    callback = RecorderCallback(directory / "mine", width=width, **options)
    trainer = Trainer(
        model, args, train_dataset=data, eval_dataset=data[:2], callbacks=[callback], optimizers=(optimizer, schedule)
    )
    trainer.train()
    return callback


@foreign
def test_transformers_trainer(tmp_path):
    pytest.importorskip("transformers")
    callback = train_with_transformers(tmp_path, model := llama(16), 16, steps=STEPS)
    assert callback.recorder is None and not any(m._forward_hooks for m in model.modules())
    (file,) = (tmp_path / "mine/recorded").iterdir()
    assert file.name == "width=16-seed=7.parquet"  # the Trainer's seed
    tokens = torch.arange(8).repeat(2, 1)
    same(pd.read_parquet(file), by_hand(llama(16), lambda model: model(input_ids=tokens, labels=tokens).loss))


@foreign
def test_what_trainers_saved_is_judged_together(tmp_path):
    pytest.importorskip("transformers")
    for width in (16, 32, 64):
        train_with_transformers(tmp_path, llama(width), width, seed=0, steps=9)  # more than there are
    check = CoordCheck.load(tmp_path / "mine")
    assert sorted(check.records["width"].unique()) == [16, 32, 64] and set(check.records["step"]) == {0, 1, 2, 3}
    assert set(check.records["seed"]) == {0}


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.0), nn.ReLU(), nn.Linear(16, 4))


INPUTS = (torch.linspace(-1, 1, 8).reshape(2, 4), torch.tensor([0, 1]))


def fit_with_lightning(directory, broken=None, **options):
    lightning = pytest.importorskip("lightning")
    from coordcheck.callbacks.lightning import RecorderCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = perceptron()

        def forward(self, inputs):
            return self.model(inputs)

        def training_step(self, batch, index):
            if broken is not None and self.global_step:
                broken.append(self)
                raise ArithmeticError
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, index):
            self(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=RATE)

    callback = RecorderCallback(directory / "mine", width=16, **options)
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=4,
        accumulate_grad_batches=2,
        val_check_interval=2,
        callbacks=[callback],
        **dict.fromkeys(names, False),
    )
    inputs, targets = INPUTS
    data = DataLoader(TensorDataset(inputs.repeat(4, 1), targets.repeat(4)), batch_size=2)
    module = Module()
    trainer.fit(module, data, data)
    return callback, module


@foreign
def test_lightning_trainer(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")  # as seed_everything leaves it
    callback, module = fit_with_lightning(tmp_path, steps=STEPS)
    assert callback.recorder is None and not any(m._forward_hooks for m in module.modules())
    (file,) = (tmp_path / "mine/recorded").iterdir()
    assert file.name == "width=16-seed=7.parquet"
    records = pd.read_parquet(file)
    inner = records[records["module"] != "(model)"]  # the LightningModule around it
    inner = inner.assign(module=inner["module"].str.removeprefix("model.").replace("model", "(model)"))
    expected = by_hand(perceptron(), lambda model: nn.functional.cross_entropy(model(INPUTS[0]), INPUTS[1]))
    same(inner[inner["module"] != "(loss)"], expected)
    loss = records[records["module"] == "(loss)"].set_index("step")["l1"]
    first = nn.functional.cross_entropy(perceptron()(INPUTS[0]), INPUTS[1]).item()
    assert [*loss.index] == [0, 1, 2] and loss[0] == pytest.approx(first) and loss[2] < loss[0]


@foreign
def test_a_training_that_breaks_leaves_no_hooks(tmp_path):
    modules = []
    with pytest.raises(ArithmeticError):
        fit_with_lightning(tmp_path, broken=modules)
    assert not any(m._forward_hooks for m in modules[0].modules()) and not (tmp_path / "mine").exists()


def test_steps_are_whole():
    pytest.importorskip("transformers")
    from coordcheck.callbacks.transformers import RecorderCallback

    with pytest.raises(ValueError, match="`steps` is at least 1; got 0"):
        RecorderCallback("mine", width=16, steps=0)


def test_gradients_of_several_ranks_are_refused():
    pytest.importorskip("transformers")
    from coordcheck.callbacks.transformers import RecorderCallback

    callback = RecorderCallback("mine", width=16, kinds=["gradient"])
    with pytest.raises(ValueError, match=r"in one process; there are 2\. For example kinds="):
        callback.on_train_begin(SimpleNamespace(world_size=2, seed=0), None, None, model=perceptron())
