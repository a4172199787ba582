"""The whole flow: runs of a cell and of its control, records, slopes, verdicts.

:func:`coord_check` checks a user's own model, :func:`check_config` a configured one. Torch is imported when
they are called.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import pandas as pd

from coordcheck import verdict as verdicts
from coordcheck.config import (
    PARAMETERS,
    CheckConfig,
    GateConfig,
    Parametrization,
    Precision,
    check_axes,
    default_gate,
    member,
    seeds_of,
)
from coordcheck.result import Control, CoordCheck
from coordcheck.slopes import fit
from coordcheck.storage import RunStore

if TYPE_CHECKING:
    from torch import Tensor, nn, optim

    from coordcheck.cell import Cell
    from coordcheck.train import RunPlan

CONTROL_SEEDS = 3
AUDITED = 3  # widths, the narrowest; exponents that are read off a model need no more
FASTER = "every learning rate times width / smallest width"
LARGER = "every initial weight matrix times (width / smallest width)^1/2"


def coord_check(
    build: "Callable[[int], nn.Module]",
    batch: Any,
    widths: Sequence[int] = (64, 128, 256, 512),
    seeds: int | Sequence[int] = 5,
    steps: int = 4,
    optimizer: "Callable[[nn.Module], optim.Optimizer] | None" = None,
    loss: "Callable[[nn.Module, Any], Tensor] | None" = None,
    kinds: Sequence[str] = ("activation", "delta"),
    expect: str = "mup",
    device: str = "auto",
    precision: str = "fp32",
    *,
    modules: Sequence[str] | None = None,
    control: "bool | tuple[Callable[[int], nn.Module], Callable[[nn.Module], optim.Optimizer]] | None" = None,
    audit: bool = True,
) -> CoordCheck:
    """Checks how a model of yours scales with width.

    Each run builds the model with torch's global generator seeded, trains it for a few steps on one batch and
    records the output of every module.

    Args:
        build: From width to an initialized, parametrized model with the same parameter names at every width.
        batch: (inputs, targets), a dict for ``model(**batch)``, or a function from seed to either.
        widths: d_model, at least three distinct values.
        seeds: How many, or which.
        steps: Forward passes recorded: steps 0 to ``steps - 1``.
        optimizer: From model to its optimizer; by default ``torch.optim.Adam(model.parameters(), lr=1e-2)``.
        loss: From model and batch to a scalar; by default :func:`coordcheck.train.default_loss`.
        kinds: A selection of "activation", "delta", "effective_update" and "gradient", see
            :class:`coordcheck.Recorder`.
        expect: Whose exponents the slopes are held against, "mup" or "sp".
        device: "auto" for a GPU if there is one, or any torch device.
        precision: "fp32", or "bf16" for autocast.
        modules: Names or shell patterns of modules to record; None for all.
        control: By default the same model with every learning rate multiplied by width / smallest width (with
            ``expect="sp"``, which allows that, with every initial weight matrix multiplied by its square root);
            a pair (build, optimizer) for another one that must fail, or False for none.
        audit: Whether to audit the three narrowest models first, see :func:`coordcheck.audit`.

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
    import torch

    from coordcheck.cell import FasterWithWidth, LargerWithWidth, OwnCell
    from coordcheck.train import RunPlan, pick_device

    seed_list = list(range(int(seeds))) if isinstance(seeds, int | Integral) else list(seeds)
    check_axes(widths, seed_list, steps, kinds)
    widths, seed_list = [int(width) for width in widths], [int(seed) for seed in seed_list]
    gate = dataclasses.replace(default_gate(), expect=member(Parametrization, "expect", expect))
    where = pick_device(device)
    plan = RunPlan(steps, kinds, modules, where, member(Precision, "precision", precision))
    config = {"widths": widths, "seeds": seed_list, "steps": steps, "kinds": list(kinds)}
    config |= {"modules": None if modules is None else list(modules), "precision": precision}
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        train = optimizer or _adam
        cell = OwnCell(build, batch, train, loss, widths)
        twin: Cell | None = None
        name = "none"
        if control is not None and not isinstance(control, bool):
            twin, name = OwnCell(control[0], batch, control[1], loss, widths), "your own"
        elif control is not False and gate.expect == Parametrization.sp:
            twin, name = LargerWithWidth(cell, min(widths)), LARGER
        elif control is not False:
            twin, name = FasterWithWidth(build, batch, train, loss, widths), FASTER
        return _check(cell, twin, name, plan, gate, widths, seed_list, audit=audit, config=config)


def check_config(config: CheckConfig) -> CoordCheck:
    """Checks a configured cell; finished runs are stored and reused as `config` says.

    Raises:
        ValueError: naming the value, the rule and a working example, before anything is trained.
    """
    import torch

    from coordcheck.cell import Cell, LargerWithWidth
    from coordcheck.families import make_cell
    from coordcheck.sweep import share_cores
    from coordcheck.train import RunPlan, pick_device

    device = pick_device(config.device)
    plan = RunPlan(config.steps, config.kinds, config.modules, device, config.precision)
    cell = make_cell(config)
    twin: Cell | None = None
    name = "none"
    if config.control and config.gate.expect == Parametrization.sp:
        twin, name = LargerWithWidth(cell, min(config.widths)), LARGER
    elif config.control:
        twin, name = cell.in_sp(), "the same model in standard parametrization"
    threads, seeds = torch.get_num_threads(), seeds_of(config)
    workers, threads_of_run = share_cores(device, len(seeds))
    torch.set_num_threads(threads_of_run)
    try:
        return _check(
            cell,
            twin,
            name,
            plan,
            config.gate,
            config.widths,
            seeds,
            store=lambda cell: _store(cell, config, str(device)),
            workers=config.workers or workers,
            readout=cell.readout,
            audit=config.audit,
            config=dataclasses.asdict(config),
            corpus_sha256=cell.corpus_sha256,
        )
    finally:
        torch.set_num_threads(threads)


def _check(
    cell: "Cell",
    twin: "Cell | None",
    twin_name: str,
    plan: "RunPlan",
    gate: GateConfig,
    widths: Sequence[int],
    seeds: Sequence[int],
    *,
    store: "Callable[[Cell], RunStore | None]" = lambda cell: None,
    workers: int = 1,
    readout: str | None = None,
    audit: bool = True,
    config: Mapping[str, Any],
    corpus_sha256: str | None = None,
) -> CoordCheck:
    """Audits a cell, runs it and its control, and judges both."""
    from coordcheck.auditing import audit_cell
    from coordcheck.sweep import RunQueue, announce

    audited, unaudited = None, ""
    if audit:
        try:
            audited = audit_cell(cell, sorted(widths)[:AUDITED], gate)
        except Exception as error:  # whatever a constructor objects to, it must not cost the check
            unaudited = f"{type(error).__name__}: {error}"
    queues = [RunQueue(cell, plan, widths, seeds, store(cell), workers, "check")]
    if twin is not None:
        queues.append(RunQueue(twin, plan, *control_axes(widths, seeds), store(twin), workers, "control"))
    announce(queues)
    done, *ran = [queue.finish() for queue in queues]
    control = judge_control(ran[0].records, gate, twin_name) if ran else Control()
    return CoordCheck.from_records(
        done.records,
        gate,
        control=control,
        audit=audited,
        unaudited=unaudited,
        readout=readout,
        skipped=done.skipped,
        config={**config, PARAMETERS: count_parameters(cell, widths)},
        versions=current_versions(),
        corpus_sha256=corpus_sha256,
    )


def count_parameters(cell: "Cell", widths: Sequence[int]) -> dict[str, int]:
    """Entries of the parameters of the narrowest and the widest model, by width; a tied one counts once."""
    ends = {min(widths), max(widths)}
    return {str(width): sum(p.numel() for p in cell.on_meta(width).parameters()) for width in sorted(ends)}


def control_axes(widths: Sequence[int], seeds: Sequence[int]) -> tuple[list[int], list[int]]:
    """The widths and seeds of a control: the narrower ones, so that it costs little."""
    ordered = sorted(widths)
    return ordered[: max(3, len(ordered) - 2)], list(seeds)[:CONTROL_SEEDS]


def judge_control(records: pd.DataFrame, gate: GateConfig, twin: str) -> Control:
    """Whether a control's fault shows.

    In what training did to it: a fault at step 0 would show without any training, so it says nothing of the learning
    rate. Where changes are recorded only they count, else activations after step 0. A check that expects standard
    parametrization has its control's fault in the initialization: there every curve counts.
    """
    judged = verdicts.judge(fit(records, gate.confidence), gate)
    if gate.expect != Parametrization.sp:
        changes = judged["kind"].isin(("delta", "effective_update"))
        judged = judged[changes if changes.any() else judged["step"] > 0]
    seen = judged[judged["verdict"].isin(("explodes", "nonfinite"))]
    beyond = judged[(judged["verdict"] == "inconclusive") & (judged["slope"] > judged["expected_high"])]
    beyond = beyond[beyond["excess"] > 0]
    evidence = ""
    if len(seen) or len(beyond):
        worst = verdicts.worst_first(seen if len(seen) else beyond).iloc[0]
        evidence = f"{worst['module']}, {worst['kind']}, step {worst['step']}: {verdicts.describe(worst)}"
    return Control(
        twin=twin,
        widths=sorted(int(width) for width in records["width"].unique()),
        seeds=int(records["seed"].nunique()),
        saw=bool(len(seen)),
        evidence=evidence,
        undecided=not len(seen) and bool(len(beyond)),
    )


def current_versions() -> dict[str, str]:
    """Of Python and of the packages that make the numbers."""
    packages = ("coordcheck", "torch", "mup", "numpy", "pandas")
    return {"python": python_version(), **{name: version(name) for name in packages}}


def _store(cell: "Cell", config: CheckConfig, device: str) -> RunStore:
    """Where runs of a configured cell or its control are kept, keyed by what their numbers depend on."""
    determinants = {**cell.determinants, "device": device, "versions": current_versions()}
    return RunStore(Path(config.runs), determinants, reuse=config.resume)


def _adam(model: "nn.Module") -> "optim.Optimizer":
    import torch

    return torch.optim.Adam(model.parameters(), lr=1e-2)
