"""The whole flow: runs of a cell and of its control, records, slopes, verdicts, files and pictures.

:func:`coord_check` checks a user's own model, :func:`check_config` what a configuration names; both make a cell and
come together in :func:`check_cell`. Torch is imported when they are called, so that stored checks need none.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from coordcheck.config.arguments import directory, is_flag, shown, text, whole
from coordcheck.config.load import default_gate
from coordcheck.config.rules import check_axes, check_modules, check_widths, member, seeds_of
from coordcheck.config.schema import PARAMETERS, CheckConfig, Decay, Expect, GateConfig, Precision
from coordcheck.judge.control import Control, judge_control
from coordcheck.records.store import RunStore
from coordcheck.result import Audit, CoordCheck

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn, optim

    from coordcheck.run.cell import Cell
    from coordcheck.run.queue import RunQueue
    from coordcheck.run.train import RunPlan

CONTROL_SEEDS = 3
AUDITED = 3  # widths, the narrowest; exponents that are read off a model need no more
IN_SP = "the same model in standard parametrization"
FASTER = "every learning rate times width / smallest width"
LARGER = "every initial weight matrix times (width / smallest width)^1/2"


def coord_check(
    build: "Callable[[int], nn.Module | tuple[nn.Module, optim.Optimizer]]",
    batch: Any,
    widths: Sequence[int] = (64, 128, 256, 512),
    seeds: int | Sequence[int] = 5,
    steps: int = 4,
    optimizer: "Callable[[nn.Module], optim.Optimizer] | None" = None,
    loss: "Callable[[nn.Module, Any], Tensor] | None" = None,
    kinds: Sequence[str] = ("activation", "delta", "effective_update"),
    expect: str = "mup",
    device: str = "auto",
    precision: str = "fp32",
    *,
    name: str | None = None,
    modules: Sequence[str] | None = None,
    control: "bool | tuple[Callable[[int], nn.Module], Callable[[nn.Module], optim.Optimizer]] | None" = None,
    audit: bool = True,
    store: str | Path | None = None,
    workers: int | None = None,
    decay: str | None = None,
) -> CoordCheck:
    """Checks how a model of yours scales with width.

    Each run builds the model with torch's global generator seeded, trains it for a few steps on one batch and
    records the output of every module.

    Args:
        build: From width to an initialized, parametrized model with the same parameter names at every width, or to
            such a model and its optimizer.
        batch: (inputs, targets), a dict for ``model(**batch)``, or a function from seed to either.
        widths: d_model, at least three distinct values.
        seeds: How many, or which.
        steps: Forward passes recorded: steps 0 to ``steps - 1``.
        optimizer: From model to its optimizer; by default that of ``configs/optimizer/adam.yaml``: Adam, learning
            rate 1e-3, mup's where every parameter has an ``infshape``.
        loss: From model and batch to a scalar; by default :func:`coordcheck.run.loss.default_loss`.
        kinds: A selection of "activation", "delta", "effective_update", "gradient", "weight" and "update", see
            :class:`coordcheck.Recorder`.
        expect: Whose exponents the slopes are held against, "mup" or "sp".
        device: "auto" for a GPU if there is one, or any torch device.
        precision: "fp32", or "bf16" for autocast.
        name: Of the model, in titles and tables; by default that of `build`.
        modules: Names or shell patterns of modules to record; None for all.
        control: By default the same model with every learning rate multiplied by width / smallest width (with
            ``expect="sp"``, which allows that, with every initial weight matrix multiplied by its square root);
            a pair (build, optimizer) for another one that must fail, or False for none.
        audit: Whether to audit the three narrowest models first, see :func:`coordcheck.audit`.
        store: A directory where finished runs are kept and found again, as long as neither the source files of yours
            that are loaded nor what the two narrowest models do has changed; None keeps nothing.
        workers: Runs at a time, at most; None for one per CPU core, one on a GPU. Training that draws random numbers
            goes on one run at a time.

        decay: How learning rate times weight decay should scale: "independent" (not at all, as mup.MuAdamW has it),
            "width^-1/2", "constant" (the weight decay itself is) or "off"; None warns where it scales.

    Returns:
        The result: ``verdict``, ``findings``, ``records``, ``slopes``, ``audit``; ``plot`` and ``save`` write files.

    Raises:
        ValueError: naming the value, the rule and a working example.

    Example:
        >>> import torch
        >>> x, y = torch.randn(32, 8), torch.randint(0, 4, (32,))
        >>> def build(width):
        ...     return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 4))
        >>> coord_check(build, (x, y), widths=(64, 128, 256), seeds=3, device="cpu").verdict
        'fail'
    """
    from coordcheck.models.own import OwnCell, default_optimizer
    from coordcheck.run.device import pick_device
    from coordcheck.run.train import RunPlan

    axes = check_axes(widths, seeds, steps, kinds)
    selected = check_modules(modules)
    check_options(name=name, control=control, audit=audit, store=store, workers=workers)
    gate = dataclasses.replace(default_gate(), expect=member(Expect, "expect", expect))
    gate.decay = None if decay is None else member(Decay, "decay", decay).value
    arithmetic = member(Precision, "precision", precision)
    plan = RunPlan(axes.steps, axes.kinds, selected, pick_device(device), arithmetic)
    config = {**vars(axes), "modules": selected, "precision": precision}
    config |= {} if name is None else {"name": name}
    with _as_in_training(plan.device):
        chosen = default_optimizer() if optimizer is None else optimizer
        cell = OwnCell(build, batch, chosen, loss, axes.widths, name=name)
        twin: tuple[Cell, str] | None
        if isinstance(control, tuple | list):
            twin = OwnCell(control[0], batch, control[1], loss, axes.widths), "your own"
        else:
            twin = twin_of(cell, gate, min(axes.widths)) if control is None or control else None
        return check_cell(
            cell,
            twin,
            plan,
            gate,
            axes.widths,
            axes.seeds,
            audit=bool(audit),
            store=store,
            workers=workers,
            config=config,
        )


def check_options(*, name: Any, control: Any, audit: Any, store: Any, workers: Any) -> None:
    """Checks what a call may say by keyword, see :func:`coord_check`.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    if name is not None:
        text("name", name, "my model")
    pair = isinstance(control, tuple | list) and len(control) == 2 and all(map(callable, control))
    if not (control is None or is_flag(control) or pair):
        raise ValueError(
            f"`control` is True, False, or a pair of functions (build, optimizer) of a model that must fail; got "
            f"{shown(control)}. For example control=False, or control=(build_in_sp, optimizer)."
        )
    if not is_flag(audit):
        raise ValueError(f"`audit` is True or False; got {shown(audit)}. For example audit=False.")
    if store is not None:
        directory("store", store, "checks/runs")
    if workers is not None:
        whole("workers", workers, 2)


def check_config(config: CheckConfig) -> CoordCheck:
    """Checks what a configuration names; finished runs are stored and reused as `config` says.

    Raises:
        ValueError: naming the value, the rule and a working example, before anything is trained.
    """
    from coordcheck.models.families import make_cell
    from coordcheck.run.device import pick_device
    from coordcheck.run.train import RunPlan

    plan = RunPlan(config.steps, config.kinds, config.modules, pick_device(config.device), config.precision)
    directory("runs", config.runs, "checks/runs")
    with _as_in_training(plan.device):
        cell = make_cell(config)
        return check_cell(
            cell,
            twin_of(cell, config.gate, min(config.widths)) if config.control else None,
            plan,
            config.gate,
            config.widths,
            seeds_of(config),
            audit=config.audit,
            store=config.runs,
            reuse=config.resume,
            workers=config.workers,
            config=dataclasses.asdict(config),
        )


def twin_of(cell: "Cell", gate: GateConfig, smallest: int) -> "tuple[Cell, str]":
    """The control of a cell, and what it is in words."""
    from coordcheck.run.controls import Scaled

    if gate.expect == Expect.sp:
        return Scaled(cell, smallest, weights=0.5), LARGER
    in_sp = cell.in_sp()
    return (Scaled(cell, smallest, rates=1.0), FASTER) if in_sp is None else (in_sp, IN_SP)


def check_cell(
    cell: "Cell",
    twin: "tuple[Cell, str] | None",
    plan: "RunPlan",
    gate: GateConfig,
    widths: Sequence[int],
    seeds: Sequence[int],
    *,
    audit: bool = True,
    store: str | Path | None = None,
    reuse: bool = True,
    workers: int | None = None,
    config: Mapping[str, Any],
) -> CoordCheck:
    """Audits a cell, runs it and its control, and judges both.

    Args:
        cell: What is checked.
        twin: What must fail, and its name; None for no control.
        plan: What all runs have in common.
        gate: What turns slopes into verdicts.
        widths: d_model.
        seeds: One run at each width for each.
        audit: Whether to audit the narrowest models first.
        store: Where finished runs are kept; None keeps nothing.
        reuse: Whether stored runs are read.
        workers: Runs at a time at most; None for as many as share the device.
        config: What was asked for, kept beside the result.
    """
    from coordcheck.run.estimate import fitting, least_memory, not_silent
    from coordcheck.run.queue import RunQueue, announce, threads_of_runs

    audited, unaudited = None, ""
    with threads_of_runs(plan.device, len(seeds)) as share, not_silent(widths) as begun:
        widths, skipped = fitting(lambda width: least_memory(cell, width, seeds[0]), widths, plan.device)
        if audit:
            try:
                audited = audit_cell(cell, sorted(widths)[:AUDITED], gate)
            except Exception as error:  # whatever a constructor objects to, it must not cost the check
                unaudited = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        if audited is not None:
            cell.learn_roles(audited.roles())
        queues = [RunQueue(cell, plan, widths, seeds, workers=workers or share, title="check")]
        if twin is not None:
            axes = control_axes(widths, seeds)
            queues.append(RunQueue(twin[0], plan, *axes, workers=workers or share, title="control"))
        for queue in queues:
            prepare(queue, store, reuse)
        announce(queues)
        begun()
        done, *ran = [queue.finish() for queue in queues]
    control = Control() if twin is None else judge_control(ran[0].records, gate, twin[1])
    return CoordCheck.from_records(
        done.records,
        gate,
        control=control,
        audit=audited,
        unaudited=unaudited,
        readout=cell.readout,
        skipped=[*skipped, *done.skipped],
        config={**config, PARAMETERS: count_parameters(cell, widths)},
        versions=current_versions(),
        corpus_sha256=cell.corpus_sha256,
    )


def prepare(queue: "RunQueue", store: str | Path | None, reuse: bool) -> None:
    """Gives a queue its store, and one run at a time where runs would disturb each other."""
    behaviour = None
    if not queue.cell.readable and (store is not None or queue.workers > 1):
        behaviour = queue.try_out()
    if queue.cell.draws is not False and not queue.cell.readable:
        queue.workers = 1
    if store is not None:
        plan = {**vars(queue.plan), "device": str(queue.plan.device)}
        determinants = {**queue.cell.determinants, "plan": plan, "behaviour": behaviour, "versions": current_versions()}
        queue.store = RunStore(Path(store), determinants, reuse=reuse)


def audit(
    build: "Callable[[int], nn.Module]",
    widths: Sequence[int] = (64, 128, 256),
    optimizer: "Callable[[nn.Module], optim.Optimizer] | None" = None,
    expect: str = "mup",
    *,
    decay: str | None = None,
    batch: Any = None,
    loss: "Callable[[nn.Module, Any], Tensor] | None" = None,
) -> Audit:
    """Audits how a model of yours is initialized, and how that and its learning rates scale. Nothing is trained.

    Args:
        build: From width to an initialized, parametrized model with the same parameter names at every width, or to such
            a model and its optimizer; called with torch's global generator seeded.
        widths: d_model, at least three distinct values.
        optimizer: From model to its optimizer; None leaves learning rates and decays out.
        expect: Whose exponents to expect, "mup" or "sp".
        decay: As for :func:`coord_check`.
        batch: As for :func:`coord_check`. With one, a forward pass is run at each width, and roles and forward
            multipliers are read; without, they are assumed from shapes and classes.
        loss: Likewise.

    Returns:
        The audit: its ``parameters`` (one row each), ``findings`` and ``verdict``.

    Raises:
        ValueError: naming the value, the rule and a working example.

    Example:
        >>> from torch import nn, optim
        >>> def build(width):
        ...     return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width))
        >>> report = audit(build, optimizer=lambda model: optim.Adam(model.parameters(), lr=1e-3))
        >>> report.parameters.loc[[2], ["parameter", "std_exponent", "lr_exponent", "verdict"]].round(1).values.tolist()
        [['2.weight', -0.5, 0.0, 'learning_rate']]
    """
    import torch

    from coordcheck.models.given import audited_functions, least_of_audit
    from coordcheck.models.own import OwnCell, default_optimizer
    from coordcheck.run.estimate import fitting

    wanted = check_widths(widths)
    gate = dataclasses.replace(default_gate(), expect=member(Expect, "expect", expect))
    gate.decay = None if decay is None else member(Decay, "decay", decay).value
    make_model, make_optimizer = audited_functions(build, optimizer)
    with _as_in_training():
        fitting(lambda width: least_of_audit(build, width), wanted, torch.device("cpu"))
        if batch is None:
            return _audited(make_model, wanted, make_optimizer, gate)
        cell = OwnCell(build, batch, optimizer or default_optimizer(), loss, wanted)
        return audit_cell(cell, wanted, gate, with_optimizer=optimizer is not None)


def audit_cell(cell: "Cell", widths: Sequence[int], gate: GateConfig, with_optimizer: bool = True) -> Audit:
    """Audits a cell on CPU, as :func:`audit` does a model.

    Args:
        cell: What is built.
        widths: At least three.
        gate: Whose exponents to expect, and how far beyond them still passes.
        with_optimizer: Whether learning rates and decays are looked at.
    """
    import torch

    cpu = torch.device("cpu")

    def forward(model: "nn.Module") -> object:
        return cell.loss(model, cell.batch(0, cpu))

    return _audited(
        lambda width: cell.build(width, 0, cpu),
        widths,
        (lambda model: cell.optimizer(model, min(widths))) if with_optimizer else None,
        gate,
        forward,
    )


def _audited(
    build: "Callable[[int], nn.Module]",
    widths: Sequence[int],
    optimizer: "Callable[[nn.Module], optim.Optimizer] | None",
    gate: GateConfig,
    forward: "Callable[[nn.Module], object] | None" = None,
) -> Audit:
    import torch

    from coordcheck.observe.parameters import measure

    ascending = sorted(widths)
    threads = torch.get_num_threads()
    # on a machine that does other things, threads wait for each other longer than these short operations take
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            measured = measure(build, ascending, optimizer, forward)
    finally:
        torch.set_num_threads(threads)
    return Audit.from_parameters(measured, ascending, gate.expect, gate.tolerance.exponent, gate.decay)


def count_parameters(cell: "Cell", widths: Sequence[int]) -> dict[str, int]:
    """Entries of the parameters of the narrowest and the widest model, by width; a tied one counts once."""
    ends = {min(widths), max(widths)}
    return {str(width): sum(p.numel() for p in cell.on_meta(width).parameters()) for width in sorted(ends)}


def control_axes(widths: Sequence[int], seeds: Sequence[int]) -> tuple[list[int], list[int]]:
    """The widths and seeds of a control: the narrower ones, so that it costs little."""
    ordered = sorted(widths)
    return ordered[: max(3, len(ordered) - 2)], list(seeds)[:CONTROL_SEEDS]


def current_versions() -> dict[str, str]:
    """Of Python and of the packages that make the numbers."""
    packages = ("coordcheck", "torch", "mup", "numpy", "pandas")
    return {"python": python_version(), **{name: version(name) for name in packages}}


@contextmanager
def _as_in_training(device: "torch.device | None" = None) -> Iterator[None]:
    """Lets gradients flow, whatever mode the caller is in, and leaves torch's global generators as they were."""
    import torch

    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
        yield
