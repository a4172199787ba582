"""Records sizes of what a model computes while it trains, in anybody's training loop: the hooks and the frame.

Sums stay on the device until :meth:`Recorder.records` moves all of them at once: a recorded step never waits for the
GPU. What the sizes should be, and how they scale, is for the modules that read the records.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from coordcheck.config.arguments import LARGEST, shown, whole
from coordcheck.config.rules import WIDEST, check_kinds, check_modules
from coordcheck.observe.attention import AttentionObserver, attention_logits
from coordcheck.observe.eager import eager
from coordcheck.observe.effective_update import StartingPoint, updated_parameters
from coordcheck.observe.frame import Entry, frame_of
from coordcheck.observe.latest import Latest
from coordcheck.observe.roles import attached_roles, check_eager, check_roles
from coordcheck.observe.sums import Norms, Sums, sums, thinned
from coordcheck.observe.weights import Weights
from coordcheck.records.merge import save_run
from coordcheck.records.schema import CLASSES, LOSS, ROOT, WEIGHTS


class Recorder:
    """Records the outputs of a model's modules.

    Forward passes count that are like the first with gradients enabled or disabled as where the recorder was entered:
    in train or in eval mode as that one, so that an evaluation between two steps of training is left out.

    Args:
        model: Hooks are on its modules while the recorder is entered. What is compiled runs as it was written
            meanwhile, see :mod:`coordcheck.observe.eager`.
        width: d_model, for the records.
        seed: For the records.
        kinds: "activation"; "delta" against step 0, which needs the same batch at every step (modules whose output
            then has another shape, as in a mixture of experts, have none), at 16 or more positions of a long sequence,
            and is therefore not among the default kinds of a loop of your own;
            "effective_update", the part of a layer's delta that its own update made, see
            :mod:`coordcheck.observe.effective_update`; "gradient" of the loss, by outputs under the module's name and
            by parameters under theirs. Deltas keep a copy of what they need of the outputs of step 0, effective updates
            one of some rows of the weights. Gradients are those of whatever ``backward`` was called on: of micro-
            batches, those by outputs are pooled and those by parameters are what they add up to, before any clipping.
            Outputs have none inside a reentrant checkpoint, nor where the model then changes them in place. "weight"
            W_t and "update" W_t - W_0 are of each parameter, with its spectral norm; updates keep a copy of all weights
            of step 0.
        modules: Names or shell patterns ("blocks.0.*") of modules to record; None for all.
        roles: Role of each parameter by name; by default from the ``infshape`` that mup attached.

    Attributes:
        recomputes: Whether a backward pass repeated forward passes, as activation checkpointing does.

    Raises:
        ValueError: if a kind is unknown or a pattern of `modules` matches no module.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        >>> with Recorder(model, width=8) as recorder:
        ...     for _ in range(2):
        ...         _ = model(torch.ones(3, 4))
        ...         recorder.step()
        >>> recorder.records()[["step", "module", "count"]].values.tolist()[:2]
        [[0, '0', 24], [0, '1', 24]]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        width: int,
        seed: int = 0,
        kinds: Sequence[str] = ("activation", "effective_update"),
        modules: Sequence[str] | None = None,
        roles: Mapping[str, str] | None = None,
    ):
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"`model` is a torch.nn.Module; got {type(model).__name__}. For example Recorder(model, width=512)."
            )
        check_eager(model, "`model` is")
        self.model = model
        self.width = whole("width", width, 512, at_most=WIDEST)
        self.seed = whole("seed", seed, 0, at_least=0, at_most=LARGEST)
        self.kinds = tuple(check_kinds(kinds))
        modules = check_modules(modules)
        self._parameter_roles = roles = attached_roles(model) if roles is None else check_roles(roles)
        self.names = select_modules(model, modules)
        self.roles = {name: roles.get(f"{name}.weight".removeprefix(".")) for name in self.names}
        self._trained = {n for n, m in model.named_modules() if any(p.requires_grad for p in m.parameters())}
        self.current_step = 0
        self.recomputes = False
        self._entries: list[Entry] = []
        self._parameter_gradients: dict[tuple[int, str], Entry] = {}
        self._order: dict[str, int] = {}
        self._first: dict[tuple[str, str], list[tuple[torch.Size, Tensor]]] = {}
        self._start: dict[str, StartingPoint] = {}
        own = [name for name, _ in model.named_parameters() if name.rpartition(".")[0] in self.roles]
        self._weights = Weights(model, own, roles, self.kinds) if {*self.kinds} & {*WEIGHTS} else None
        self._compared = False
        self._mismatched: dict[str, str] = {}
        self._varying: set[str] = set()
        self._classes: int | None = None
        self._calls: dict[str, int] = {}
        self._calls_at_first: dict[str, int] | None = None
        self._stack: list[str] = []
        self._latest, self._latest_gradient = Latest(), Latest()
        self._recording = self._ran = False
        self._with_gradients = True
        self._training: bool | None = None
        self._eager: AbstractContextManager[None] | None = None
        self._handles: list[RemovableHandle] = []
        self._observer: AttentionObserver | None = None

    def __enter__(self) -> "Recorder":
        # made here and dropped in __exit__: it refers to the recorder, and a cycle would keep the model's memory
        self._observer = AttentionObserver(self._record_attention)
        self._with_gradients = torch.is_grad_enabled()
        self._eager = eager()
        self._eager.__enter__()
        for name, module in self.model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._entering(name), prepend=True))
            self._handles.append(module.register_forward_hook(self._leaving(name), with_kwargs=True, always_call=True))
        if "gradient" in self.kinds or "update" in self.kinds:
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad and name.rpartition(".")[0] in self.roles:
                    hook = self._record_parameter_gradient(name)
                    self._handles.append(
                        parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                    )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._first.clear()
        self._start.clear()
        self._latest.forget()
        self._latest_gradient.forget()
        if self._stack and self._recording:
            # an interrupt within a forward pass: torch calls hooks after exceptions, but not after that
            assert self._observer is not None
            self._observer.__exit__(None, None, None)
        self._stack.clear()
        self._observer = None
        assert self._eager is not None
        self._eager.__exit__(None, None, None)

    def step(self) -> None:
        """Says that an optimizer update is done: the next forward pass belongs to the next step.

        Raises:
            ValueError: if no forward pass of this step was recorded, or deltas are recorded and no output has the
                shape that it had at step 0.
        """
        if not self._ran:
            mode = "" if self._training is None else f" in {'train' if self._training else 'eval'} mode,"
            raise ValueError(
                f"step {self.current_step} has no forward pass to record: between two calls of `step` the model that "
                f"the recorder was given must run at least once,{mode} with gradients "
                f"{'enabled' if self._with_gradients else 'disabled'} as they were where the recorder was entered. For "
                f"example model(batch); recorder.step(). A copy of the model, deep or traced, is another model."
            )
        self._ran = False
        self._latest_gradient.forget()
        if self._calls_at_first is None:
            self._calls_at_first = self._calls
        else:
            self._leave_out_varying(self._calls_at_first)
        self._calls, self._mismatched, self._compared = {}, {}, False
        self.current_step += 1

    def _leave_out_varying(self, calls: Mapping[str, int]) -> None:
        """Leaves out the deltas of modules whose output at this step is not the counterpart of that at step 0."""
        if self._mismatched and not self._compared:
            name, shapes = next(iter(self._mismatched.items()))
            raise ValueError(
                f"kind 'delta' compares the same batch with itself, but {name or ROOT!r} {shapes}. For example train "
                f"on one fixed batch, or record kinds=['activation']."
            )
        varying = {name for name in self.names if self._calls.get(name, 0) != calls.get(name, 0)} | {*self._mismatched}
        if new := [name or ROOT for name in self.names if name in varying - self._varying]:
            warnings.warn(
                f"modules ran a different number of times at step {self.current_step} than at step 0, or gave other "
                f"shapes: {new}. Their sizes pool other entries than before and their deltas are left out; run the "
                f"same forward passes at every step, or leave these modules out with `modules`.",
                stacklevel=3,
            )
        self._varying |= varying

    def record_loss(self, loss: Tensor) -> None:
        """Records the loss of this step as the module "(loss)" of role "loss".

        Args:
            loss: One entry.

        Raises:
            ValueError: if it is none.
        """
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError(
                f"a loss is a tensor with one entry; got {shown(loss)}. "
                f"For example recorder.record_loss(loss.detach())."
            )
        if "activation" in self.kinds:
            self._add("(loss)", "", LOSS, "activation", 1, sums(loss.reshape(1)))

    def never_ran(self) -> list[str]:
        """The modules to record that no forward pass of step 0 called, as none calls an ``nn.ModuleList`` itself."""
        calls = self._calls if self._calls_at_first is None else self._calls_at_first
        return [name or ROOT for name in self.names if not calls.get(name)]

    def records(self) -> pd.DataFrame:
        """What was recorded, with one transfer from the device.

        Returns:
            One row per (step, module, kind) with the columns :data:`coordcheck.records.schema.RECORD_COLUMNS`: l1 the
            mean of abs x, rms the root of the mean of x^2, max the largest abs x (all dimensionless), nonfinite
            the number of non-finite entries among count; then ``spectral``, the largest singular value, of the kinds
            "weight" and "update", and ``input_rms``, of what a layer's weight met, of "effective_update" where "update"
            is recorded too (NaN elsewhere). ``attrs["classes"]`` is the last dimension of what the last
            readout gave.
        """
        varying = self._varying | self._mismatched.keys()
        entries = [*self._entries, *self._parameter_gradients.values()]
        frame = frame_of(
            entries,
            self._order,
            lambda entry: entry.kind == "delta" and entry.module in varying,
            width=self.width,
            seed=self.seed,
        )
        frame = frame if self._weights is None else self._weights.without_unreached(frame)
        if self._classes is not None:
            frame.attrs[CLASSES] = self._classes
        return frame

    def save(self, directory: str | Path) -> Path:
        """Writes the records where ``coordcheck-report`` and :meth:`coordcheck.CoordCheck.load` find them.

        Runs of other widths and seeds, also of other processes, go to the same directory.

        Args:
            directory: Made if need be.

        Returns:
            The file, named after width and seed.

        Raises:
            ValueError: if nothing was recorded, or the directory cannot be written.
        """
        return save_run(self.records(), directory)

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if _in_backward():
                self.recomputes = True
                return
            if not self._stack:
                self._begin_pass()
            self._stack.append(name)

        return hook

    def _leaving(self, name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        recorded, updates = name in self.roles, "effective_update" in self.kinds

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if _in_backward():
                return
            self._stack.pop()
            try:
                if self._recording and recorded:
                    with torch._C.DisableTorchFunction():  # which the observer would see at a price
                        self._record_outputs(name, module, output)
                    if updates and output is not None:  # None after an error
                        self._record_effective_update(name, module, args, kwargs)
            finally:
                if not self._stack:
                    self._end_pass()

        return hook

    def _begin_pass(self) -> None:
        """Decides whether the forward pass that begins is one of training, not an evaluation between two of them."""
        self._recording = torch.is_grad_enabled() == self._with_gradients
        if self._recording and self._training is None:
            self._training = self.model.training
        self._recording = self._recording and self.model.training == self._training
        if self._recording:
            if self._weights is not None and not self._ran:
                self._entries += self._weights.entries(self.current_step)
            self._ran = True
            assert self._observer is not None
            self._observer.__enter__()  # type: ignore[no-untyped-call]

    def _end_pass(self) -> None:
        if self._recording:
            assert self._observer is not None
            self._observer.__exit__(None, None, None)
            self._latest.forget()

    def _record_outputs(self, name: str, module: nn.Module, output: Any) -> None:
        self._calls[name] = self._calls.get(name, 0) + 1
        tensors = [*_tensors(output)]
        trained = any(tensor.requires_grad for _, tensor in tensors)
        for part, tensor in tensors:
            # a constant beside what is trained, as T5's cross-attention returns a position bias of zeros
            if tensor.requires_grad or not trained:
                self._record(name, part, tensor)
        if self._calls[name] == 1:
            # each parameter has its place behind its module
            for parameter in module._parameters:
                self._order.setdefault(f"{name}.{parameter}".removeprefix("."), len(self._order))

    def _record(self, name: str, part: str, output: Tensor) -> None:
        if self.roles[name] == "readout":
            self._classes = output.shape[-1]
        if "activation" in self.kinds:
            size = self._latest.of(output, "activation", lambda: sums(output))
            self._add(name, part, self.roles[name], "activation", output.numel(), size)
        if "gradient" in self.kinds and output.requires_grad:
            # a place in forward order, for gradients arrive in the reverse
            self._order.setdefault((name or ROOT) + part, len(self._order))
            output.register_hook(self._record_gradient(name, part))  # type: ignore[no-untyped-call]
        # what nothing trainable reaches, a mask or a frozen embedding, owes no change; without gradients nobody knows
        untrainable = name not in self._trained and torch.is_grad_enabled() and not output.requires_grad
        if "delta" not in self.kinds or untrainable:
            return
        some = thinned(output)
        if self.current_step == 0:
            # a copy: the model may go on to change the tensor in place
            copy = self._latest.of(output, "copy", lambda: some.detach().clone(memory_format=torch.contiguous_format))
            self._first.setdefault((name, part), []).append((output.shape, copy))
            return
        first = self._first.get((name, part), [])
        call = self._calls[name] - 1
        if call < len(first) and first[call][0] == output.shape:
            self._compared = True
            before = first[call][1]
            change = self._latest.of(output, id(before), lambda: sums(some, before))
            self._add(name, part, self.roles[name], "delta", some.numel(), change)
        else:
            shapes = [tuple(shape) for shape, _ in first]
            self._mismatched[name] = f"has shape {tuple(output.shape)} where step 0 had {shapes}"

    def _record_gradient(self, name: str, part: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            size = self._latest_gradient.of(gradient, "gradient", lambda: sums(gradient))
            self._add(name, part, self.roles[name], "gradient", gradient.numel(), size)

        return hook

    def _record_parameter_gradient(self, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient, role = parameter.grad.to_dense(), self._parameter_roles.get(name)
            if self._weights is not None:
                self._weights.reach(name, gradient)
            if "gradient" not in self.kinds:
                return
            # in place of what an earlier micro-batch of this step left
            entry = Entry(self.current_step, name, "", role, "gradient", gradient.numel(), sums(gradient))
            self._parameter_gradients[self.current_step, name] = entry

        return hook

    def _record_effective_update(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.current_step == 0:
            if name not in self._start and (parameters := updated_parameters(module)):
                self._start[name] = StartingPoint(module, parameters, watched="update" in self.kinds)
        elif name in self._start:
            start = self._start[name]
            for part, tensor in _tensors(start.effective_update(module, args, kwargs)):
                size = sums(tensor)
                self._add(name, part, self.roles[name], "effective_update", tensor.numel(), size, start.input_rms)

    def _record_attention(self, query: Tensor, key: Tensor, scale: float | Tensor) -> None:
        name = self._stack[-1]
        if name in self.roles and "activation" in self.kinds:
            logits = attention_logits(query, key, scale)
            if logits.numel():
                self._add(name, "[attention_logits]", "attention_logits", "activation", logits.numel(), sums(logits))

    def _add(
        self,
        name: str,
        part: str,
        role: str | None,
        kind: str,
        count: int,
        of_call: Sums | Norms,
        met: Tensor | None = None,
    ) -> None:
        self._order.setdefault((name or ROOT) + part, len(self._order))
        self._entries.append(Entry(self.current_step, name, part, role, kind, count, of_call, input_rms=met))


def _in_backward() -> bool:
    """Whether a backward pass is running: activation checkpointing then repeats forward passes already recorded."""
    return bool(torch._C._current_graph_task_id() != -1)


def select_modules(model: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """The names of the modules that `patterns` select, in the model's order; the model itself is "(model)".

    Raises:
        ValueError: if a pattern matches no module.
    """
    names = [name for name, _ in model.named_modules()]
    if patterns is None:
        return names
    chosen: set[str] = set()
    for pattern in patterns:
        matching = {name for name in names if fnmatchcase(name or ROOT, pattern)}
        if not matching:
            raise ValueError(
                f"`modules` pattern {shown(pattern)} matches no module; the model has "
                f"{', '.join(name or ROOT for name in names)}. For example modules=['*']."
            )
        chosen |= matching
    return [name for name in names if name in chosen]


def _tensors(output: Any) -> Iterator[tuple[str, Tensor]]:
    """Every floating-point tensor in a module's output that has entries to average, with its "[i]" suffix."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.dim() > 0 and output.numel() > 0:
            yield "", output
        return
    parts: Iterable[tuple[object, Any]] = ()
    if isinstance(output, Mapping):
        parts = output.items()
    elif isinstance(output, list | tuple):
        parts = enumerate(output)
    elif is_dataclass(output):
        parts = ((field.name, getattr(output, field.name)) for field in fields(output))
    for key, value in parts:
        for suffix, tensor in _tensors(value):
            yield f"[{key}]{suffix}", tensor
