"""The callback for the Trainer of Lightning."""

import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from coordcheck.callbacks import Recording


class RecorderCallback(Recording, Callback):
    """Records the first steps of a training by ``lightning.Trainer``, and saves them for ``coordcheck-report``.

    Takes what :class:`coordcheck.callbacks.Recording` does. Without `seed` it is that of ``seed_everything``, or 0.
    Validation between steps is left out, accumulated micro-batches are one step, and the loss is recorded too.

    Example::

        from coordcheck.callbacks.lightning import RecorderCallback

        trainer = Trainer(max_steps=100, callbacks=[RecorderCallback("checks/mine", width=256)])
        trainer.fit(model, data)
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by the Trainer when model and optimizer are ready."""
        self.begin(trainer.strategy.model, int(os.environ.get("PL_GLOBAL_SEED", 0)))
        self._done = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called by the Trainer after each micro-batch."""
        if self.recorder is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:  # which Lightning has divided
            self.recorder.record_loss(loss * trainer.accumulate_grad_batches)
        if trainer.global_step > self._done:  # the optimizer stepped
            self._done = trainer.global_step
            self.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by the Trainer after the last step."""
        self.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Called by the Trainer where training breaks off."""
        self.leave()
