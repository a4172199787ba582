"""The whole flow for a JAX model: runs of a cell and of its control, records, and from there on what torch's have."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import jax

from coordcheck.config.axes import check_axes, check_modules, check_widths
from coordcheck.config.call import check_options, gate_of
from coordcheck.config.rules import member
from coordcheck.config.schema import PARAMETERS, Expect, GateConfig, Precision
from coordcheck.jax.audit import measure
from coordcheck.jax.cell import Cured, JaxCell, Optimizer
from coordcheck.jax.models import Loss
from coordcheck.jax.run import Plan, Runs
from coordcheck.jax.told import recorded_kinds
from coordcheck.judge.control import Control, judge_control
from coordcheck.judge.cure import CureTable
from coordcheck.judge.trial import table_of, trials_of
from coordcheck.judge.words import of_jax
from coordcheck.records.store import RunStore
from coordcheck.result import Audit, CoordCheck

SEEDS = 5
CONTROL_SEEDS = 3
AUDITED = 3  # widths, the narrowest
FASTER = "every learning rate times width / smallest width"
LARGER = "every initial weight matrix times (width / smallest width)^1/2"
ROOMS = ("jax", "run")  # whose code makes the numbers


def coord_check(
    build: Callable[[int], Any],
    batch: Any,
    widths: Sequence[int] = (64, 128, 256, 512),
    seeds: int | Sequence[int] | str = SEEDS,
    steps: int = 4,
    optimizer: Optimizer | None = None,
    loss: Loss | None = None,
    kinds: Sequence[str] = ("activation", "delta", "effective_update"),
    expect: str = "mup",
    precision: str = "fp32",
    *,
    name: str | None = None,
    modules: Sequence[str] | None = None,
    control: bool | tuple[Callable[[int], Any], Optimizer] | None = None,
    audit: bool = True,
    try_advice: bool = True,
    store: str | Path | None = None,
    decay: str | None = None,
) -> CoordCheck:
    """Checks how a JAX model of yours scales with width, as :func:`coordcheck.coord_check` does one of torch.

    Args:
        build: From width to a ``flax.linen.Module``, to a function from ``flax.nnx.Rngs`` to an ``nnx.Module``, or to a
            pair (init, apply), called as ``init(key, inputs)`` and ``apply(params, inputs)``; modules of flax are
            recorded by themselves, in a pair what :func:`coordcheck.jax.tap` names.
        batch: (inputs, targets), a dict for ``model(**batch)``, or a function from seed to either.
        widths: d_model, at least three distinct values.
        seeds: How many, or which, five for "auto"; each initializes the model with ``jax.random.key(seed)``.
        steps: Forward passes recorded: steps 0 to ``steps - 1``.
        optimizer: From width and the roles of parameters (a dict by name) to an optax transformation; by default
            ``optax.adam(1e-3)``. See :func:`coordcheck.jax.scale_by_width`.
        loss: From a model, which is called with inputs, and a batch to a scalar; by default cross entropy.
        kinds: A selection of "activation", "delta", "effective_update" and "gradient".
        expect: Whose exponents the slopes are held against, "mup" or "sp".
        precision: "fp32", or "bf16" for parameters and inputs of bfloat16 in forward and backward pass.
        name: Of the model, in titles and tables; by default that of `build`.
        modules: Names or shell patterns of modules to record; None for all.
        control: By default the same model with every learning rate multiplied by width / smallest width (with
            ``expect="sp"`` with every initial matrix multiplied by its square root); a pair (build, optimizer) for
            another one that must fail, or False for none.
        audit: Whether to audit the three narrowest models first, see :func:`coordcheck.jax.audit`.
        try_advice: Whether advice that is a number is tried where the check fails, see :func:`coordcheck.coord_check`.
        store: A directory where finished runs are kept and found again.
        decay: As for :func:`coordcheck.coord_check`.

    Returns:
        The result, as of a torch model.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    axes = check_axes(widths, seeds, steps, kinds)
    recorded_kinds(axes.kinds)
    selected = check_modules(modules)
    check_options(
        name=name, control=control, audit=audit, rerun=False, try_advice=try_advice, store=store, workers=None
    )
    gate = gate_of(expect, decay, ())
    arithmetic = member(Precision, "precision", precision)
    cell = JaxCell(build, batch, optimizer, loss, axes.widths, name=name, precision=arithmetic)
    twin: tuple[JaxCell, str] | None = None
    if isinstance(control, tuple | list):
        twin = JaxCell(control[0], batch, control[1], loss, axes.widths, precision=arithmetic), "your own"
    elif control is None or control:
        twin = twin_of(cell, gate, min(axes.widths))
    config = {**vars(axes), "modules": selected, "precision": precision, **({} if name is None else {"name": name})}
    plan = Plan(axes.steps, axes.kinds, selected)
    listed = listed_seeds(axes.seeds)
    wanted: dict[str, Any] = {"audited": bool(audit), "try_advice": bool(try_advice), "store": store}
    return check_cell(cell, twin, plan, gate, axes.widths, listed, config=config, **wanted)


def listed_seeds(seeds: Sequence[int] | str, first_seed: int = 0) -> list[int]:
    """The seeds; five for "auto", since a width costs its compilation here, and hardly the number of its runs."""
    return list(range(first_seed, first_seed + SEEDS)) if isinstance(seeds, str) else list(seeds)


def twin_of(cell: JaxCell, gate: GateConfig, smallest: int) -> tuple[JaxCell, str]:
    """The control of a cell, and what it is in words."""
    if gate.expect == Expect.sp:
        return cell.scaled(smallest, weights=0.5), LARGER
    return cell.scaled(smallest, rates=1.0), FASTER


def check_cell(
    cell: JaxCell,
    twin: tuple[JaxCell, str] | None,
    plan: Plan,
    gate: GateConfig,
    widths: Sequence[int],
    seeds: Sequence[int],
    *,
    audited: bool = True,
    try_advice: bool = True,
    store: str | Path | None = None,
    reuse: bool = True,
    config: Mapping[str, Any],
    corpus_sha256: str | None = None,
) -> CoordCheck:
    """Audits a cell, runs it and its control, judges both, and tries what is advised where that fails."""
    keeping: dict[str, Any] = {"store": store, "reuse": reuse, "corpus_sha256": corpus_sha256}
    check = _check_once(cell, twin, plan, gate, sorted(widths), seeds, audited=audited, config=config, **keeping)
    narrow, few = sorted(widths)[:AUDITED], list(seeds)[:CONTROL_SEEDS]
    audit = check.audit
    if check.verdict != "fail" or not try_advice or audit is None or len(narrow) < AUDITED or len(few) < 2:
        return check

    def check_with(table: CureTable) -> CoordCheck:
        return _check_once(Cured(cell, table), None, plan, gate, narrow, few, config=config, **keeping)

    possible = [finding for finding in check.findings if _can_be_tried(table_of(finding, audit, narrow[0]))]
    try:
        return check.with_trials(trials_of(possible, audit, narrow, check_with))
    except Exception as error:  # of a user's model or optimizer, which need not bear a change
        warnings.warn(f"the advice could not be tried ({type(error).__name__}: {error})", stacklevel=2)
        return check


def _can_be_tried(table: CureTable) -> bool:
    """Whether a change is one of initial sizes and learning rates alone: an optax transformation has nothing else."""
    return not table.multipliers and not any(e.exponents.weight_decay or e.exponents.eps for e in table.entries)


def _check_once(
    cell: JaxCell,
    twin: tuple[JaxCell, str] | None,
    plan: Plan,
    gate: GateConfig,
    widths: Sequence[int],
    seeds: Sequence[int],
    *,
    audited: bool = True,
    store: str | Path | None,
    reuse: bool,
    config: Mapping[str, Any],
    corpus_sha256: str | None,
) -> CoordCheck:
    """Audits a cell, runs it and its control, and judges both; widths are ascending."""
    found = audit_cell(cell, widths[:AUDITED], gate) if audited else None
    runs = [Runs(cell, plan, widths, seeds)]
    if twin is not None:
        narrower = widths[: max(3, len(widths) - 2)]
        runs.append(Runs(twin[0], plan, narrower, list(seeds)[:CONTROL_SEEDS], title="control"))
    for one in runs:
        if store is not None:
            determinants = {"plan": vars(plan), "behaviour": one.try_out(), "versions": current_versions()}
            one.store = RunStore(Path(store), {**one.cell.determinants, **determinants}, reuse=reuse, rooms=ROOMS)
    done, *ran = [one.finish() for one in runs]
    counts = {str(width): sum(p.size for p in jax.tree.leaves(cell.traced(width).parameters)) for width in widths}
    return CoordCheck.from_records(
        done,
        gate,
        control=Control() if twin is None else judge_control(ran[0], gate, twin[1]),
        audit=found,
        config={**config, PARAMETERS: {w: counts[w] for w in (str(widths[0]), str(widths[-1]))}},
        versions=current_versions(),
        corpus_sha256=corpus_sha256,
    )


def audit(
    build: Callable[[int], Any],
    batch: Any,
    widths: Sequence[int] = (64, 128, 256),
    optimizer: Optimizer | None = None,
    expect: str = "mup",
    *,
    loss: Loss | None = None,
    decay: str | None = None,
) -> Audit:
    """Audits how a JAX model is initialized and used, and how that and its learning rates scale. Nothing is trained.

    Roles, fan-in and forward multipliers are read from the jaxpr, init stds from several keys, learning rates by trying
    the optax transformation.

    Args:
        build: As for :func:`coord_check`.
        batch: Likewise.
        widths: d_model, at least three distinct values.
        optimizer: From width and roles to an optax transformation; None leaves learning rates and decays out.
        expect: Whose exponents to expect, "mup" or "sp".
        loss: As for :func:`coord_check`.
        decay: Likewise.

    Returns:
        The audit: its ``parameters`` (one row each), ``findings`` and ``verdict``.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    wanted = sorted(check_widths(widths))
    cell = JaxCell(build, batch, optimizer, loss, wanted)
    return audit_cell(cell, wanted, gate_of(expect, decay, ()), with_optimizer=optimizer is not None)


def audit_cell(cell: JaxCell, widths: Sequence[int], gate: GateConfig, with_optimizer: bool = True) -> Audit:
    """Audits a cell, as :func:`audit` does a model."""
    measured = measure(cell, sorted(widths), with_optimizer)
    found = Audit.from_parameters(measured, sorted(widths), gate.expect, gate.tolerance.exponent, gate.decay)
    return dataclasses.replace(found, findings=[of_jax(finding) for finding in found.findings])


def current_versions() -> dict[str, str]:
    """Of Python and of the packages that make the numbers."""
    packages = ("coordcheck", "jax", "flax", "optax", "numpy", "pandas")
    return {"python": python_version(), **{name: version(name) for name in packages}}
