"""Recorders as callbacks of other people's trainers, a module for each library: transformers and lightning.

What they share is here: a recorder is entered where training begins, and left and saved after the steps asked for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coordcheck.config.arguments import whole
from coordcheck.observe.recorder import Recorder


class Recording:
    """A recorder in a loop of somebody else.

    Args:
        directory: Shared by all widths and seeds, for ``coordcheck-report DIRECTORY``.
        width: d_model of this run's model.
        seed: Of this run.
        steps: Optimizer steps that are recorded, from the first on; then the recorder is gone.
        kinds: See :class:`coordcheck.Recorder`, as for the two below.
        modules: Likewise.
        roles: Likewise.

    Raises:
        ValueError: if `steps` is no whole number from 1 on.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        width: int,
        seed: int | None = None,
        steps: int = 4,
        kinds: Sequence[str] = ("activation", "effective_update"),
        modules: Sequence[str] | None = None,
        roles: Mapping[str, str] | None = None,
    ):
        self.directory = Path(directory)
        self.width = width
        self.seed = seed
        self.steps = whole("steps", steps, 4, at_least=1)
        self.options: dict[str, Any] = {"kinds": kinds, "modules": modules, "roles": roles}
        self.recorder: Recorder | None = None

    def begin(self, model: Any, seed: int) -> None:
        """Enters a recorder; `seed` is the trainer's, for where none was given."""
        self.leave()
        seed = seed if self.seed is None else self.seed
        self.recorder = Recorder(model, width=self.width, seed=seed, **self.options)
        self.recorder.__enter__()

    def step(self) -> None:
        """Says that an optimizer step is done, and saves after the last one asked for."""
        if self.recorder is not None:
            self.recorder.step()
            if self.recorder.current_step >= self.steps:
                self.end()

    def end(self) -> None:
        """Saves what was recorded."""
        if self.recorder is not None:
            self.recorder.save(self.directory)
            self.leave()

    def leave(self) -> None:
        """Takes the hooks off the model."""
        if self.recorder is not None:
            self.recorder.__exit__(None, None, None)
            self.recorder = None
