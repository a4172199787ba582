"""The model of `modes.py` as users of accelerate and Lightning train it."""

from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from modes import BATCH, KINDS, STEPS, WIDTH, adam, batch, build, loss_of, merged, roles, shard_flat, share
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from coordcheck import Recorder


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


def with_lightning(strategy: str) -> pd.DataFrame:
    import lightning
    from lightning.pytorch.strategies import FSDPStrategy

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

    class Record(lightning.Callback):
        recorder: Recorder

        def on_train_start(self, trainer: Any, module: Any) -> None:
            model: nn.Module = trainer.strategy.model
            known = {f"model.{name}": role for name, role in roles().items()}
            self.recorder = Recorder(model, width=WIDTH, kinds=KINDS, roles=known).__enter__()

        def on_train_batch_end(self, *_: Any) -> None:
            self.recorder.step()

        def on_train_end(self, *_: Any) -> None:
            self.recorder.__exit__(None, None, None)

    class OnCPU(FSDPStrategy):
        """Lightning refuses FSDP without a GPU by the class of the strategy, and asks for nothing more."""

    record = Record()
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
    return merged(record.recorder)
