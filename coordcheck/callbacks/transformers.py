"""The callback for the Trainer of Hugging Face transformers."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from coordcheck.callbacks import Recording


class RecorderCallback(Recording, TrainerCallback):
    """Records the first steps of a training by ``transformers.Trainer``, and saves them for ``coordcheck-report``.

    Takes what :class:`coordcheck.callbacks.Recording` does. Without `seed` it is that of the ``TrainingArguments``.
    Evaluations between steps are left out, and accumulated micro-batches are one step.

    Example::

        from coordcheck.callbacks.transformers import RecorderCallback

        trainer = Trainer(model, args, train_dataset=data, callbacks=[RecorderCallback("checks/mine", width=256)])
        trainer.train()
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Called by the Trainer when model and optimizer are ready.

        Raises:
            ValueError: if gradients are recorded on several ranks, for the Trainer hides what divides those of outputs.
        """
        if "gradient" in self.options["kinds"] and args.world_size > 1:
            raise ValueError(
                f"the kind 'gradient' is recorded by this callback in one process; there are {args.world_size}. For "
                f"example kinds=('activation', 'effective_update')."
            )
        self.begin(model, args.seed)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called by the Trainer after an optimizer step."""
        self.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the Trainer after the last step."""
        self.end()
