"""The model of `modes.py` as users of accelerate, Lightning and the Trainer of transformers train it."""

from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from modes import BATCH, KINDS, STEPS, WIDTH, adam, batch, build, loss_of, merged, roles, shard_flat, share
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from coordcheck import Recorder

SHUFFLED = ("activation", "effective_update")  # what says the same of a batch in any order


def with_accelerate(micro_batches: int = 2) -> pd.DataFrame:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=micro_batches)
    model: Any = build()
    data = DataLoader(TensorDataset(*batch()), batch_size=BATCH // dist.get_world_size() // micro_batches)
    model, optimizer, data = accelerator.prepare(model, adam(model.parameters()), data)
    with Recorder(model, width=WIDTH, kinds=KINDS, roles=roles()) as recorder:
        for _ in range(STEPS):
            for inputs, targets in data:
                with accelerator.accumulate(model):
                    loss = loss_of(model(inputs), targets)
                    recorder.record_loss(loss)
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
            recorder.step()
    return merged(recorder)


def with_lightning(strategy: str, directory: str) -> None:
    import lightning
    from lightning.pytorch.strategies import FSDPStrategy

    from coordcheck.callbacks.lightning import RecorderCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = build()

        def configure_model(self) -> None:
            if strategy == "fsdp":
                self.model = shard_flat(self.model)

        def training_step(self, data: Any, index: int) -> Tensor:
            inputs, targets = data
            return loss_of(self.model(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adam(self.parameters())

    class OnCPU(FSDPStrategy):
        """Lightning refuses FSDP without a GPU by the class of the strategy, and asks for nothing more."""

    known = {f"model.{name}": role for name, role in roles().items()}
    record = RecorderCallback(directory, width=WIDTH, steps=STEPS, kinds=KINDS, roles=known)
    quiet: dict[str, Any] = {
        name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    }
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=OnCPU(process_group_backend="gloo") if strategy == "fsdp" else "ddp",
        max_epochs=STEPS,
        use_distributed_sampler=False,  # which shuffles, and a delta compares a batch with itself
        callbacks=[record],
        **quiet,
    )
    trainer.fit(Module(), DataLoader(TensorDataset(*share()), batch_size=BATCH))


def with_transformers(directory: str) -> None:
    from transformers import Trainer, TrainingArguments

    from coordcheck.callbacks.transformers import RecorderCallback

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = build()

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": loss_of(self.model(inputs), labels)}

    model = WithLoss()
    args = TrainingArguments(
        output_dir=directory,
        per_device_train_batch_size=BATCH // dist.get_world_size(),
        num_train_epochs=STEPS,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        use_cpu=True,
        ddp_backend="gloo",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    known = {f"model.{name}": role for name, role in roles().items()}
    record = RecorderCallback(directory, width=WIDTH, seed=0, steps=STEPS, kinds=SHUFFLED, roles=known)
    data = [{"inputs": inputs, "labels": labels} for inputs, labels in zip(*batch(), strict=True)]
    optimizer = adam(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = Trainer(model, args, train_dataset=data, callbacks=[record], optimizers=(optimizer, schedule))
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
