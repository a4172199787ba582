"""Records sizes of what a model computes while it trains, in anybody's training loop: the hooks and the frame.

Sums stay on the device until :meth:`Recorder.records` moves all of them at once: a recorded step never waits for the
GPU. What the sizes should be, and how they scale, is for the modules that read the records.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from coordcheck.config.arguments import LARGEST, whole
from coordcheck.config.axes import WIDEST, check_kinds, check_modules
from coordcheck.observe.attention import AttentionObserver, attention_logits
from coordcheck.observe.eager import eager
from coordcheck.observe.effective_update import StartingPoint, updated_parameters
from coordcheck.observe.frame import Entry, frame_of
from coordcheck.observe.gradients import ParameterGradients, classes_of, divisor, listen, running_divisor
from coordcheck.observe.latest import Latest
from coordcheck.observe.modules import named_modules, named_parameters, select_modules, tensors
from coordcheck.observe.parallel import check_one_process, check_parallel, flattened, warn_of_lost_roles
from coordcheck.observe.pipeline import Pipeline, is_schedule
from coordcheck.observe.ranks import gathered, local, place, rank_of
from coordcheck.observe.roles import attached_roles, check_eager, check_roles
from coordcheck.observe.sums import Norms, Sums, sums, thinned
from coordcheck.observe.weights import Weights
from coordcheck.records.merge import save_run
from coordcheck.records.names import shown
from coordcheck.records.schema import CLASSES, LOSS, LOSS_MODULE, ROOT, VARYING, WEIGHTS


class Recorder:
    """Records the outputs of a model's modules.

    Forward passes count that are like the first with gradients enabled or disabled as where the recorder was entered:
    in train or in eval mode as that one, so that an evaluation between two steps of training is left out.

    On several ranks every one has a recorder, which sums what its rank holds; the records of all are merged by
    ``records(group)``, or by ``coordcheck-report`` from what each saved.

    Args:
        model: Hooks are on its modules while the recorder is entered. What is compiled runs as it was written
            meanwhile, see :mod:`coordcheck.observe.eager`. What DDP, FSDP, activation checkpointing and torch.compile
            wrap has the names that it has without them. Of a pipeline its schedule, on every rank: modules are named as
            in their stage or, where two stages have the same names, with the stage, as in "stages.0.fc".
        width: d_model, for the records.
        seed: For the records.
        kinds: "activation"; "delta" against step 0, which needs the same batch at every step (modules whose output
            then has another shape, as in a mixture of experts, have none), at 16 or more positions of a long sequence,
            and is therefore not among the default kinds of a loop of your own;
            "effective_update", the part of a layer's delta that its own update made, see
            :mod:`coordcheck.observe.effective_update`; "gradient" of the loss, by outputs under the module's name and
            by parameters under theirs. Deltas keep a copy of what they need of the outputs of step 0, effective updates
            one of some rows of the weights. Gradients are those of whatever ``backward`` was called on: of micro-
            batches, those by outputs are pooled, divided by what DDP, FSDP or a pipeline divide those of parameters by.
            Those by parameters are what the optimizer is about to use, after any clipping; in a loop without an
            optimizer of ``torch.optim`` what :meth:`step` finds. Outputs have none inside a reentrant checkpoint, nor
            where the model then changes them in place. "weight" W_t and "update" W_t - W_0 are of each parameter, with
            its spectral norm, in one process; updates keep a copy of all weights of step 0.
        modules: Names or shell patterns ("blocks.0.*") of modules to record; None for all.
        roles: Role of each parameter by name, see :func:`coordcheck.roles`; by default from the ``infshape`` that mup
            attached, which neither FSDP nor tensor parallelism leaves there.

    Attributes:
        recomputes: Whether a backward pass repeated forward passes, as activation checkpointing does.

    Raises:
        ValueError: if a kind is unknown, a pattern of `modules` matches no module or, when it is entered, if something
            distributes the model that cannot be recorded.

    Examples:
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
        model: Any,
        *,
        width: int,
        seed: int = 0,
        kinds: Sequence[str] = ("activation", "effective_update"),
        modules: Sequence[str] | None = None,
        roles: Mapping[str, str] | None = None,
    ):
        if is_schedule(model):
            model = Pipeline(model)
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"`model` is a torch.nn.Module; got {type(model).__name__}. For example Recorder(model, width=512), or "
                f"Recorder(schedule, width=512) of a pipeline."
            )
        check_eager(model, "`model` is")
        self.model: nn.Module = model
        self.width = whole("width", width, 512, at_most=WIDEST)
        self.seed = whole("seed", seed, 0, at_least=0, at_most=LARGEST)
        self.kinds = tuple(check_kinds(kinds))
        modules = check_modules(modules)
        named = self._named()
        self._parameter_roles = roles = attached_roles(named) if roles is None else check_roles(roles)
        if not roles:
            warn_of_lost_roles(model)
        self.names = select_modules([*named], modules)
        self.roles = {name: roles.get(f"{name}.weight".removeprefix(".")) for name in self.names}
        self._trained = {n for n, m in named.items() if any(p.requires_grad for p in m.parameters())}
        self.current_step = 0
        self.recomputes = False
        self._entries: list[Entry] = []
        self._parameter_gradients: dict[tuple[int, str], Entry] = {}
        self._order: dict[str, int] = {}
        self._first: dict[tuple[str, str], list[tuple[torch.Size, Tensor]]] = {}
        self._start: dict[str, StartingPoint] = {}
        own = {name: p for name, p in named_parameters(named) if name.rpartition(".")[0] in self.roles}
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
        self._divisor = self._own_divisor = self._whole_on = 1.0
        self._begins = model.begins() if isinstance(model, Pipeline) else {}
        self._outside = isinstance(model, Pipeline)
        self._flattened: dict[nn.Module, list[str]] = {}
        self._gradients: ParameterGradients | None = None
        self._between = ExitStack()  # what ends where the recorder is left
        self._handles: list[RemovableHandle] = []
        self._observer: AttentionObserver | None = None

    def __enter__(self) -> "Recorder":
        check_parallel(self.model)
        if self._weights is not None:
            check_one_process([kind for kind in WEIGHTS if kind in self.kinds])
        gradients = "gradient" in self.kinds
        self._own_divisor = divisor(self.model, gradients)
        self._flattened = flattened(self.model)
        # made here and dropped in __exit__: it refers to the recorder, and a cycle would keep the model's memory
        self._observer = AttentionObserver(self._record_attention)
        self._with_gradients = torch.is_grad_enabled()
        self._between.enter_context(eager())
        if isinstance(self.model, Pipeline):
            self._between.enter_context(self.model.running(self._in_a_chunk))
        for name, module in self._named().items():
            self._handles.append(module.register_forward_pre_hook(self._entering(name), prepend=True))
            if "effective_update" in self.kinds and name in self.roles:
                # first of all, for FSDP2 takes the weights away when the forward pass ends
                updating = self._updating(name)
                self._handles.append(module.register_forward_hook(updating, with_kwargs=True, prepend=True))
            self._handles.append(module.register_forward_hook(self._leaving(name), always_call=True))
        if self._weights is not None:
            self._handles += self._weights.hooks()
        if gradients:
            self._between.callback(listen(self._record_parameter_gradients))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._first.clear()
        self._start.clear()
        self._flattened.clear()
        self._gradients = None
        self._latest.forget()
        self._latest_gradient.forget()
        if self._stack and self._recording:
            # an interrupt within a forward pass: torch calls hooks after exceptions, but not after that
            assert self._observer is not None
            self._observer.__exit__(None, None, None)
        self._stack.clear()
        self._observer = None
        self._between.close()

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
        if "gradient" in self.kinds and self._gradients is None:
            self._record_parameter_gradients()
        self._gradients = None
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
        if isinstance(self.model, Pipeline) and not self._ran:
            return  # of the garbage that a schedule computes to learn shapes
        if "activation" in self.kinds:
            self._add(LOSS_MODULE, "", LOSS, "activation", 1, sums(loss.reshape(1)))

    def never_ran(self) -> list[str]:
        """The modules to record that no forward pass of step 0 called, as none calls an ``nn.ModuleList`` itself."""
        calls = self._calls if self._calls_at_first is None else self._calls_at_first
        return [name or ROOT for name in self.names if not calls.get(name)]

    def records(self, group: Any = None) -> pd.DataFrame:
        """What was recorded, with one transfer from the device.

        Args:
            group: A ``torch.distributed`` process group, the ranks that trained the model together, for instance
                ``torch.distributed.group.WORLD``: their records as one frame, the same on each. All of them have to
                call it. None for what this rank holds.

        Returns:
            One row per (step, module, kind) with the columns :data:`coordcheck.records.schema.RECORD_COLUMNS`: l1 the
            mean of abs x, rms the root of the mean of x^2, max the largest abs x (all dimensionless), nonfinite
            the number of non-finite entries among count; then ``spectral``, the largest singular value, of the kinds
            "weight" and "update", and ``input_rms``, of what a layer's weight met, of "effective_update" where "update"
            is recorded too (NaN elsewhere). ``attrs["classes"]`` is the last dimension of what the last readout gave,
            unless ranks may have split it by hand.

        Raises:
            ValueError: if this rank is not in `group`.
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
        if varying:
            frame.attrs[VARYING] = sorted(name or ROOT for name in varying)
        return frame if group is None else gathered(frame, group)

    def save(self, directory: str | Path, group: Any = None) -> Path:
        """Writes the records where ``coordcheck-report`` and :meth:`coordcheck.CoordCheck.load` find them.

        Runs of other widths and seeds, also of other processes, go to the same directory. On several ranks each of them
        saves its own records, which are merged where they are read.

        Args:
            directory: Made if need be; the same on every rank.
            group: The process group whose ranks trained the model together, if they are not all.

        Returns:
            The file, named after width and seed, and after the rank where there are several.

        Raises:
            ValueError: if nothing was recorded, or the directory cannot be written.
        """
        records = self.records()
        records.attrs |= rank_of(group)
        return save_run(records, directory)

    def _named(self) -> dict[str, nn.Module]:
        """The modules by the names that records have."""
        if isinstance(self.model, Pipeline):
            return dict(self.model.named())
        return dict(named_modules(self.model))

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if _in_backward():
                self.recomputes = True
                return
            if not self._stack:
                self._begin_pass()
            self._stack.append(name)

        return hook

    def _leaving(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        recorded = name in self.roles

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if _in_backward():
                return
            self._stack.pop()
            try:
                if self._recording and recorded:
                    with torch._C.DisableTorchFunction():  # which the observer would see at a price
                        self._record_outputs(name, module, output)
            finally:
                if not self._stack:
                    self._end_pass()

        return hook

    def _updating(self, name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._recording and self._stack and not _in_backward():
                self._record_effective_update(name, module, args, kwargs)

        return hook

    def _in_a_chunk(self, inside: bool) -> None:
        """Lets a pipeline's micro-batches be recorded, and nothing else that its schedule runs."""
        self._outside = not inside

    def _begin_pass(self) -> None:
        """Decides whether the forward pass that begins is one of training, not an evaluation between two of them."""
        self._recording = torch.is_grad_enabled() == self._with_gradients and not self._outside
        if self._recording and self._training is None:
            self._training = self.model.training
        self._recording = self._recording and self.model.training == self._training
        if self._recording:
            if self._weights is not None and not self._ran:
                self._entries += self._weights.entries(self.current_step)
            self._ran = True
            self._divisor = self._whole_on = running_divisor(self._own_divisor)
            if isinstance(self.model, Pipeline):
                self._whole_on *= (self.model.last + 1) / self.model.divisor
            assert self._observer is not None
            self._observer.__enter__()  # type: ignore[no-untyped-call]

    def _end_pass(self) -> None:
        if self._recording:
            assert self._observer is not None
            self._observer.__exit__(None, None, None)
            self._latest.forget()

    def _record_outputs(self, name: str, module: nn.Module, output: Any) -> None:
        self._calls[name] = self._calls.get(name, 0) + 1
        parts = [*tensors(output)]
        trained = any(tensor.requires_grad for _, tensor in parts)
        for part, tensor in parts:
            # a constant beside what is trained, as T5's cross-attention returns a position bias of zeros
            if tensor.requires_grad or not trained:
                self._record(name, part, tensor, module)
        if self._calls[name] == 1:
            # each parameter has its place behind its module
            for parameter in (*module._parameters, *self._flattened.get(module, ())):
                self._place(name, f"{name}.{parameter}".removeprefix("."))

    def _record(self, name: str, part: str, output: Tensor, module: nn.Module) -> None:
        if self.roles[name] == "readout":
            self._classes = classes_of(module, output, self._whole_on)
        here = local(output)
        if "activation" in self.kinds and here.numel():
            size = self._latest.of(output, "activation", lambda: sums(here))
            self._add(name, part, self.roles[name], "activation", here.numel(), size)
        if "gradient" in self.kinds and output.requires_grad:
            # a place in forward order, for gradients arrive in the reverse
            self._place(name, (name or ROOT) + part)
            output.register_hook(self._record_gradient(name, part, self._divisor))  # type: ignore[no-untyped-call]
        # what nothing trainable reaches, a mask or a frozen embedding, owes no change; without gradients nobody knows
        untrainable = name not in self._trained and torch.is_grad_enabled() and not output.requires_grad
        if "delta" in self.kinds and not untrainable and here.numel():
            self._record_delta(name, part, output, here)

    def _record_delta(self, name: str, part: str, output: Tensor, here: Tensor) -> None:
        some = thinned(here, *place(output, -2)) if output.dim() > 1 else here
        if self.current_step == 0:
            # a copy: the model may go on to change the tensor in place
            copy = self._latest.of(output, "copy", lambda: some.detach().clone(memory_format=torch.contiguous_format))
            self._first.setdefault((name, part), []).append((here.shape, copy))
            return
        first = self._first.get((name, part), [])
        call = self._calls[name] - 1
        if call < len(first) and first[call][0] == here.shape:
            self._compared = True
            before = first[call][1]
            if some.numel():
                change = self._latest.of(output, id(before), lambda: sums(some, before))
                self._add(name, part, self.roles[name], "delta", some.numel(), change)
        else:
            shapes = [tuple(shape) for shape, _ in first]
            self._mismatched[name] = f"has shape {tuple(here.shape)} where step 0 had {shapes}"

    def _record_gradient(self, name: str, part: str, divisor: float) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            here = local(gradient)
            if here.numel():
                size = self._latest_gradient.of(gradient, "gradient", lambda: sums(here))
                self._add(name, part, self.roles[name], "gradient", here.numel(), size, divisor)

        return hook

    def _record_parameter_gradients(self, optimizer: Any = None) -> None:
        """Of what an optimizer is about to step, or of all parameters."""
        named = self._named()
        if self._gradients is None:
            self._gradients = ParameterGradients(self.model, named)
        gradients = self._gradients.all() if optimizer is None else self._gradients.stepped_by(optimizer)
        for name, gradient in gradients:
            if name.rpartition(".")[0] in self.roles and gradient.numel():
                role = self._parameter_roles.get(name)
                entry = Entry(self.current_step, name, "", role, "gradient", gradient.numel(), sums(gradient))
                self._parameter_gradients[self.current_step, name] = entry

    def _record_effective_update(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.current_step == 0:
            if name not in self._start:
                parameters = updated_parameters(module, self._flattened.get(module, ()))
                if parameters:
                    self._start[name] = StartingPoint(module, parameters, watched="update" in self.kinds)
        elif name in self._start:
            start = self._start[name]
            for part, update in tensors(start.effective_update(module, args, kwargs)):
                tensor, role = local(update), self.roles[name]
                self._add(name, part, role, "effective_update", tensor.numel(), sums(tensor), met=start.input_rms)

    def _record_attention(self, query: Tensor, key: Tensor, scale: float | Tensor) -> None:
        name = self._stack[-1]
        if name in self.roles and "activation" in self.kinds:
            logits = attention_logits(local(query), local(key), scale)
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
        divisor: float = 1.0,
        met: Tensor | None = None,
    ) -> None:
        self._place(name, (name or ROOT) + part)
        entry = Entry(self.current_step, name, part, role, kind, count, of_call, divisor, input_rms=met)
        self._entries.append(entry)

    def _place(self, name: str, label: str) -> None:
        """Gives a module's output or parameter its place in forward order, if it has none."""
        if label not in self._order:
            self._order[label] = self._begins.get(name, 0) + len(self._order)


def _in_backward() -> bool:
    """Whether a backward pass is running: activation checkpointing then repeats forward passes already recorded."""
    return bool(torch._C._current_graph_task_id() != -1)
