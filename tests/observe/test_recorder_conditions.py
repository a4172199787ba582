"""The recorder in training loops as people write them: the numbers are those of the plain one."""

import contextlib
import copy

import pandas as pd
import pytest
import torch
from torch import nn

from conftest import tiny_cell
from coordcheck.observe import recorder as record
from coordcheck.observe.eager import eager
from coordcheck.observe.recorder import Recorder
from coordcheck.observe.sums import sums
from coordcheck.records.schema import KINDS

CPU = torch.device("cpu")


def trained(loop, *, kinds=KINDS, steps=3):
    """Records of a small GPT in a training loop: `loop` makes the forward and backward pass of a step."""
    cell = tiny_cell("readout=constant")
    model = cell.build(64, 0, CPU)
    optimizer = cell.optimizer(model, 64)
    tokens, targets = cell.batch(0, CPU)
    with Recorder(model, width=64, kinds=kinds, roles=cell.roles) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loop(cell, model, tokens, targets)
            optimizer.step()
            recorder.step()
    return recorder.records()


def plain(cell, model, tokens, targets):
    cell.loss(model, (tokens, targets)).backward()


@pytest.fixture(scope="module")
def expected():
    return trained(plain)


def assert_same(records, expected, rel):
    assert len(records) == len(expected) > 150
    both = records.merge(expected, on=["step", "module", "kind", "role", "order"], suffixes=("", "_plain"))
    assert len(both) == len(expected)
    seen = both[both["role"] != "attention_logits"]
    for statistic in ("l1", "rms"):
        assert seen[statistic].to_numpy() == pytest.approx(seen[f"{statistic}_plain"].to_numpy(), rel=rel, abs=1e-12)


@pytest.mark.parametrize("whole", [True, False], ids=["compile(model)", "model.compile()"])
@pytest.mark.parametrize("early", [True, False], ids=["compiled before", "compiled inside"])
def test_a_compiled_model_is_recorded_as_it_was_written_whenever_it_was_compiled(expected, whole, early):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    cell = tiny_cell("readout=constant")
    model = cell.build(64, 0, CPU)
    optimizer = cell.optimizer(model, 64)
    batch = cell.batch(0, CPU)

    def compiled():
        if whole:
            return torch.compile(model, backend=backend)
        model.compile(backend=backend)
        return model

    if early:
        running = compiled()
        cell.loss(running, batch)
        assert graphs  # so that hooks which are added now would be ignored
    with Recorder(model, width=64, kinds=KINDS, roles=cell.roles) as recorder:
        if not early:
            running = compiled()
        for _ in range(3):
            optimizer.zero_grad()
            cell.loss(running, batch).backward()
            optimizer.step()
            recorder.step()
    pd.testing.assert_frame_equal(recorder.records(), expected)
    before = len(graphs)
    cell.loss(running, batch)
    assert len(graphs) == before + (0 if early else 1)  # compiled code serves again, or is made now


def test_recorders_that_overlap_let_compiled_code_run_again_when_the_last_is_left():
    torch._dynamo.reset()
    graphs = []
    double = torch.compile(lambda x: 2 * x, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    first, second = eager(), eager()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    double(torch.ones(2))
    assert not graphs
    second.__exit__(None, None, None)
    double(torch.ones(2))
    assert len(graphs) == 1


def test_a_step_without_a_recorded_pass_is_an_error():
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4)
    copied = copy.deepcopy(model)
    with Recorder(model, width=4) as recorder:
        copied(x)
        with pytest.raises(ValueError, match=r"step 0 has no forward pass.*For example model\(batch\); recorder.step"):
            recorder.step()
        model(x)
        recorder.step()
        with pytest.raises(ValueError, match=r"step 1 has no forward pass.* in train mode, with gradients enabled"):
            recorder.step()
    assert set(recorder.records()["step"]) == {0}


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_of_every_block(expected, reentrant):
    def loop(cell, model, tokens, targets):
        for block in model.blocks:
            if not hasattr(block, "plain_forward"):
                block.plain_forward = block.forward
                block.forward = lambda x, block=block: torch.utils.checkpoint.checkpoint(
                    block.plain_forward, x, use_reentrant=reentrant
                )
        plain(cell, model, tokens, targets)

    kinds = [kind for kind in KINDS if kind != "gradient"] if reentrant else KINDS
    seen = trained(loop, kinds=kinds)
    assert_same(seen, expected[expected["kind"].isin(kinds)], rel=1e-6)


def test_gradient_accumulation(expected):
    def loop(cell, model, tokens, targets):
        for x, y in zip(tokens.chunk(2), targets.chunk(2), strict=True):
            (cell.loss(model, (x, y)) / 2).backward()

    def comparable(records):
        """Positions have no batch dimension, so that every micro-batch embeds all of them."""
        return records[records["module"] != "wpe"]

    seen, whole = comparable(trained(loop)), comparable(expected)
    assert_same(seen, whole, rel=1e-4)
    counted = ["step", "module", "kind", "count"]
    assert set(seen[counted].itertuples(index=False)) == set(whole[counted].itertuples(index=False))


@pytest.mark.parametrize("between", ["no_grad", "eval", "both", "inference"])
def test_an_evaluation_between_two_steps_changes_nothing(expected, between):
    def loop(cell, model, tokens, targets):
        plain(cell, model, tokens, targets)
        if between in ("eval", "both"):
            model.eval()
        quiet = {"no_grad": torch.no_grad, "both": torch.no_grad, "inference": torch.inference_mode}
        with quiet.get(between, contextlib.nullcontext)():
            cell.loss(model, (tokens[:1], targets[:1]))
        model.train()

    pd.testing.assert_frame_equal(trained(loop), expected)


def test_an_evaluation_before_the_first_step_changes_nothing(expected):
    def loop(cell, model, tokens, targets):
        model.eval()
        with torch.no_grad():
            cell.loss(model, (tokens[:1], targets[:1]))
        model.train()
        plain(cell, model, tokens, targets)

    pd.testing.assert_frame_equal(trained(loop), expected)


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_who_enters_without_gradients_records_passes_without_gradients(quiet):
    model, x = nn.Sequential(nn.Linear(4, 8)), torch.randn(3, 4)
    with quiet(), Recorder(model, width=8, kinds=("activation", "delta")) as recorder:
        for _ in range(2):
            out = model(x)
            recorder.step()
    records = recorder.records()
    assert records.query("module == '0' and kind == 'activation'")["l1"].tolist() == pytest.approx(
        2 * [out.abs().mean().item()]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_records_what_its_outputs_are(dtype):
    """Outputs are caught by hooks of the test's own and measured in float64; sums in the narrow type would be off."""
    outputs = {}

    def loop(cell, model, tokens, targets):
        outputs.clear()
        handles = [
            module.register_forward_hook(lambda _, args, out, name=name: outputs.__setitem__(name, (args, out)))
            for name, module in model.named_modules()
        ]
        with torch.autocast("cpu", dtype):
            loss = cell.loss(model, (tokens, targets))
        loss.backward()
        for handle in handles:
            handle.remove()

    records = trained(loop)
    last = records[(records["step"] == 2) & (records["kind"] == "activation")].set_index("module")
    caught = {name: out.double() for name, (_, out) in outputs.items() if name in last.index}
    assert len(caught) > 20
    assert outputs["blocks.0.mlp.fc"][1].dtype == dtype
    for name, out in caught.items():
        assert last.loc[name, "l1"] == pytest.approx(out.abs().mean().item(), rel=1e-5)
        assert last.loc[name, "rms"] == pytest.approx(out.square().mean().sqrt().item(), rel=1e-5)
        assert last.loc[name, "max"] == out.abs().max().item()
    assert (records["nonfinite"] == 0).all()


def test_a_tensor_that_a_container_hands_on_is_measured_once(monkeypatch):
    measured = []
    monkeypatch.setattr(record, "sums", lambda x, *minus: measured.append(x.numel()) or sums(x, *minus))
    model, x = nn.Sequential(nn.Sequential(nn.Linear(4, 4))), torch.ones(2, 4)
    with Recorder(model, width=4, kinds=("activation", "delta", "gradient")) as recorder:
        for _ in range(2):
            model(x).sum().backward()
            recorder.step()
    assert len(recorder.records().query("kind == 'activation' and step == 0")) == 3
    outputs = [size for size in measured if size == 8]
    assert len(outputs) == 2 + 1 + 2  # activation and gradient of two steps, delta of one


def test_a_container_that_changes_its_childs_output_in_place_has_numbers_of_its_own():
    class Adding(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            y = self.fc(x)
            y += 10.0
            return y

    with Recorder(Adding(), width=4) as recorder:
        out = recorder.model(torch.zeros(2, 4))
    l1 = recorder.records().set_index("module")["l1"]
    assert l1["(model)"] == pytest.approx(out.abs().mean().item())
    assert l1["fc"] == pytest.approx((out - 10.0).abs().mean().item(), rel=1e-4)


def test_lengths_that_are_thinned_to_the_same_are_not_compared():
    """(8, 256, 8) and (8, 257, 8) both leave 16 or 17 positions."""
    model = nn.Linear(8, 8)
    with (
        pytest.raises(ValueError, match=r"has shape \(8, 257, 8\) where step 0 had \[\(8, 256, 8\)\]"),
        Recorder(model, width=8, kinds=["delta"]) as recorder,
    ):
        for length in (256, 257):
            model(torch.ones(8, length, 8))
            recorder.step()


def test_an_interrupt_within_a_forward_pass_leaves_nothing_behind():
    class Interrupted(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    before = torch.overrides._get_current_function_mode_stack()
    with pytest.raises(KeyboardInterrupt), Recorder(nn.Sequential(Interrupted()), width=8) as recorder:
        recorder.model(torch.ones(2))
    assert torch.overrides._get_current_function_mode_stack() == before
