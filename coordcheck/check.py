"""The whole flow: runs of a cell and of its control, records, slopes, verdicts, files and pictures.

:func:`coord_check` checks a user's own model, :func:`check_config` what a configuration names; both make a cell and
come together in :func:`check_cell`. Torch is imported when they are called, so that stored checks need none.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordcheck.auditing import audit_cell, in_training, of_jax
from coordcheck.config.accept import accepted_quantities
from coordcheck.config.arguments import LARGEST, directory, whole
from coordcheck.config.axes import check_axes, check_budget, check_modules
from coordcheck.config.call import check_accepted, check_options, elsewhere, executor_of, gate_of
from coordcheck.config.rules import check_gate_in_depth, member, seeds_of
from coordcheck.config.schema import (
    AUTO,
    PARAMETERS,
    Axis,
    CheckConfig,
    ExecutorConfig,
    ExecutorName,
    Expect,
    FlaxConfig,
    GateConfig,
    Precision,
)
from coordcheck.judge.control import Control, judge_control
from coordcheck.judge.cure import CureTable
from coordcheck.judge.diagnose.lacking import lacking
from coordcheck.judge.judgement import judged_curves
from coordcheck.judge.looks import Auto, look_confidence, look_until_decided, narrow, pilot, seeds_at
from coordcheck.judge.trial import trials_of
from coordcheck.records.merge import completed
from coordcheck.records.store import RunStore, current_versions
from coordcheck.result import Audit, CoordCheck

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn, optim

    from coordcheck.run.cell import Cell
    from coordcheck.run.executors import Engine
    from coordcheck.run.queue import Finished, RunQueue
    from coordcheck.run.train import RunPlan

CONTROL_SEEDS = 3
WORKERS = 4  # that runs of unknown number share the cores for
NOT_NEEDED = "not run, for the check fails without it."
NARROW = 3  # widths and seeds, the fewest that make a slope and an interval worth having
TRIED = 0.55  # of a pilot's runs try an advice; as many runs of the same seeds at every width would decide less
AUDITED = 3  # widths, the narrowest; exponents that are read off a model need no more
IN_SP = "the same model in standard parametrization"
PLAIN = "the same model without a multiplier of its branches"
FASTER = "every learning rate times width / smallest width"
IN_THREADS = ExecutorConfig(ExecutorName.threads, {})
LARGER = "every initial weight matrix times (width / smallest width)^1/2"


def coord_check(
    build: "Callable[[int], nn.Module | tuple[nn.Module, optim.Optimizer]]",
    batch: Any,
    widths: Sequence[int] = (64, 128, 256, 512),
    seeds: int | Sequence[int] | str = AUTO,
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
    executor: str | Mapping[str, Any] | Executor = "auto",
    decay: str | None = None,
    budget: float = 3.0,
    first_seed: int = 0,
    accept: Sequence[str] = (),
    rerun: bool = True,
    try_advice: bool = True,
    depths: Sequence[int] | None = None,
) -> CoordCheck:
    """Checks how a model of yours scales with width, or with depth.

    Each run builds the model with torch's global generator seeded, trains it for a few steps on one batch and
    records the output of every module.

    Args:
        build: From width to an initialized, parametrized model with the same parameter names at every width, or to
            such a model and its optimizer.
        batch: (inputs, targets), a dict for ``model(**batch)``, or a function from seed to either.
        widths: d_model, at least three distinct values.
        seeds: How many, or which, each at every width and with a batch of its own; "auto" for as many runs as decide
            all curves, of which each width has its own number, all on the batch of `first_seed`.
        steps: Forward passes recorded: steps 0 to ``steps - 1``.
        optimizer: From model to its optimizer; by default that of ``configs/optimizer/adam.yaml``: Adam, learning
            rate 1e-3, mup's where every parameter has an ``infshape``.
        loss: From model and batch to a scalar; by default :func:`coordcheck.run.loss.default_loss`.
        kinds: A selection of "activation", "delta", "effective_update", "gradient", "weight" and "update", see
            :class:`coordcheck.Recorder`.
        expect: Whose exponents the slopes are held against: "mup", "sp", or another row of
            :data:`coordcheck.judge.parametrizations.TABLES`.
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
        workers: Runs at a time, at most; None for one per CPU core, one on each GPU. In threads, training that draws
            random numbers goes on one run at a time.
        executor: Who makes the runs: "threads"; "processes", one for each GPU, or on CPU; "submitit", "ray" or "dask",
            or a dict of such a name and what that engine is told; or any executor of ``concurrent.futures``. "auto" is
            processes where there are several GPUs, else threads. Functions are sent by cloudpickle.
        decay: How learning rate times weight decay should scale: "independent" (not at all, as mup.MuAdamW has it),
            "width^-1/2", "constant" (the weight decay itself is) or "off"; None warns where it scales.
        budget: What ``seeds="auto"`` may spend, in multiples of the runs that it begins with.
        first_seed: Of ``seeds="auto"``; another one repeats the check with fresh weights and another batch.
        accept: Deviations that are meant, "PARAMETER: QUANTITY", for example "wte.weight: lr". A parameter may be a
            shell pattern; quantities are "init", "lr", "multiplier", "decay", "epsilon", "writes", "groups" and
            "shape". They are listed as accepted and do not fail the check. Curves of the module that uses the
            parameter, and of what hands its output on unchanged until the next weight matrix, may lie as far off as an
            accepted init, multiplier or rate explains, and no further. Curves behind that fail as ever: what other
            modules receive was not accepted.
        rerun: Whether a few narrow runs record what a diagnosis lacks (effective updates, or a third step), where the
            check fails and nothing recorded tells why; one sentence of the result says so.
        try_advice: Whether what findings advise is tried, where the check fails and that is a number, by a few
            runs at the three narrowest widths. What does not help is no longer the advice.
        depths: Numbers of blocks, at least three distinct values from 2 on: `build` is then given one of these in the
            place of a width, and sizes are held against what CompleteP expects of them. Blocks are the children of an
            ``nn.ModuleList`` or the like that is longer in a deeper model; first and middle ones are compared, and the
            stream behind the last. There is no audit, and no advice is tried.

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

    axis = Axis.width if depths is None else Axis.depth
    axes = check_axes(widths if depths is None else depths, seeds, steps, kinds, axis)
    selected = check_modules(modules)
    check_options(
        name=name, control=control, audit=audit, rerun=rerun, try_advice=try_advice, store=store, workers=workers
    )
    maker = executor_of(executor)
    auto = Auto(check_budget(budget), whole("first_seed", first_seed, 100, at_least=0, at_most=LARGEST // 2))
    gate = gate_of(expect, decay, accept)
    check_accepted(gate, audit)
    if axis == Axis.depth:
        check_gate_in_depth(gate)
    arithmetic = member(Precision, "precision", precision)
    plan = RunPlan(axes.steps, axes.kinds, selected, pick_device(device, elsewhere(maker)), arithmetic)
    config = {**vars(axes), "budget": auto.budget, "modules": selected, "precision": precision}
    config |= {} if name is None else {"name": name}
    with in_training(plan.device):
        chosen = default_optimizer() if optimizer is None else optimizer
        cell = OwnCell(build, batch, chosen, loss, axes.widths, name=name, axis=axis)
        twin: tuple[Cell, str] | None
        if isinstance(control, tuple | list):
            twin = OwnCell(control[0], batch, control[1], loss, axes.widths, axis=axis), "your own"
        else:
            twin = twin_of(cell, gate, min(axes.widths)) if control is None or control else None
        return check_cell(
            cell,
            twin,
            plan,
            gate,
            axes.widths,
            auto if isinstance(axes.seeds, str) else axes.seeds,
            audit=bool(audit),
            rerun=bool(rerun),
            try_advice=bool(try_advice),
            store=store,
            workers=workers,
            executor=maker,
            config=config,
        )


def check_config(config: CheckConfig) -> CoordCheck:
    """Checks what a configuration names; finished runs are stored and reused as `config` says.

    Raises:
        ValueError: naming the value, the rule and a working example, before anything is trained.
    """
    directory("runs", config.runs, "checks/runs")
    if isinstance(config.model, FlaxConfig):
        checked: CoordCheck = of_jax().check(config)
        return checked
    from coordcheck.models.families import make_cell
    from coordcheck.run.device import pick_device
    from coordcheck.run.train import RunPlan

    device = pick_device(config.device, elsewhere(config.executor))
    plan = RunPlan(config.steps, config.kinds, config.modules, device, config.precision)
    check_accepted(config.gate, config.audit)
    widths = config.depths if config.axis == Axis.depth else config.widths
    with in_training(plan.device):
        cell = make_cell(config)
        return check_cell(
            cell,
            twin_of(cell, config.gate, min(widths)) if config.control else None,
            plan,
            config.gate,
            widths,
            Auto(config.budget, config.first_seed) if isinstance(seeds := seeds_of(config), str) else seeds,
            audit=config.audit,
            rerun=config.rerun,
            try_advice=config.try_advice,
            store=config.runs,
            reuse=config.resume,
            workers=config.workers,
            executor=config.executor,
            config=dataclasses.asdict(config),
        )


def twin_of(cell: "Cell", gate: GateConfig, smallest: int) -> "tuple[Cell, str]":
    """The control of a cell, and what it is in words."""
    from coordcheck.run.controls import Scaled

    if gate.expect == Expect.sp:
        return Scaled(cell, smallest, weights=0.5), LARGER
    known = cell.plain() if cell.lists else cell.in_sp()
    if known is None:
        return Scaled(cell, smallest, rates=1.0), FASTER
    return known, PLAIN if cell.lists else IN_SP


def check_cell(
    cell: "Cell",
    twin: "tuple[Cell, str] | None",
    plan: "RunPlan",
    gate: GateConfig,
    widths: Sequence[int],
    seeds: Sequence[int] | Auto,
    *,
    audit: bool = True,
    rerun: bool = True,
    try_advice: bool = True,
    store: str | Path | None = None,
    reuse: bool = True,
    workers: int | None = None,
    executor: ExecutorConfig | Executor = IN_THREADS,
    config: Mapping[str, Any],
) -> CoordCheck:
    """Audits a cell, runs it and its control, judges both, and tries what is advised where that fails.

    Args:
        cell: What is checked.
        twin: What must fail, and its name; None for no control.
        plan: What all runs have in common.
        gate: What turns slopes into verdicts.
        widths: d_model.
        seeds: One run at each width for each, or as many as it needs.
        audit: Whether to audit the narrowest models first.
        rerun: Whether narrow runs record what a diagnosis lacks.
        try_advice: Whether narrow runs try what is advised.
        store: Where finished runs are kept; None keeps nothing.
        reuse: Whether stored runs are read.
        workers: Runs at a time at most; None for as many as share the device.
        executor: Who makes the runs.
        config: What was asked for, kept beside the result.
    """
    from coordcheck.models.cured import Cured

    if cell.lists:  # an audit reads exponents of width, and so does what asks for more records or gives advice
        audit = rerun = try_advice = False
    with engine_of_stages(executor, plan, store, workers) as engine:
        options: dict[str, Any] = {"store": store, "reuse": reuse, "workers": workers, "executor": engine}
        options["config"] = config
        check = check_once(cell, twin, plan, gate, widths, seeds, audit=audit, rerun=rerun, **options)
        ran = sorted(int(width) for width in check.records["width"].unique())[:NARROW]
        if check.verdict != "fail" or not try_advice or len(ran) < NARROW:
            return check
        few = Auto(1.0, seeds.first_seed if isinstance(seeds, Auto) else seeds[0], TRIED)
        changed = options | {"config": {**config, "seeds": pilot(ran, TRIED)}}

        def check_with(table: CureTable) -> CoordCheck:
            return check_once(Cured(cell, table), None, plan, gate, ran, few, rerun=False, title="advice", **changed)

        try:
            return check.with_trials(trials_of(check.findings, check.audit, ran, check_with))
        except Exception as error:  # of a user's model or optimizer, which need not bear a change
            warnings.warn(f"the advice could not be tried ({type(error).__name__}: {error})", stacklevel=2)
            return check


@contextmanager
def engine_of_stages(
    executor: ExecutorConfig | Executor, plan: "RunPlan", store: str | Path | None, workers: int | None
) -> "Iterator[ExecutorConfig | Engine]":
    """What makes the runs of all stages of a check, so that processes are begun once; it ends with them."""
    from coordcheck.run.executors import engine_of

    with engine_of(executor, plan.device, None if store is None else Path(store), workers) as engine:
        yield IN_THREADS if engine is None else engine


def check_once(
    cell: "Cell",
    twin: "tuple[Cell, str] | None",
    plan: "RunPlan",
    gate: GateConfig,
    widths: Sequence[int],
    seeds: Sequence[int] | Auto,
    *,
    audit: bool = True,
    rerun: bool = True,
    store: str | Path | None = None,
    reuse: bool = True,
    workers: int | None = None,
    executor: "ExecutorConfig | Executor | Engine" = IN_THREADS,
    config: Mapping[str, Any],
    title: str = "check",
) -> CoordCheck:
    """Audits a cell, runs it and its control, and judges both, see :func:`check_cell`; the title is of its progress."""
    from coordcheck.run.estimate import fitting, least_memory, not_silent
    from coordcheck.run.executors import engine_of
    from coordcheck.run.queue import announce, threads_of_runs

    if gate.accept:
        names = dict(cell.on_meta(min(widths)).named_parameters(remove_duplicate=False))
        accepted_quantities(gate.accept, {name: [name] for name in names})
    audited, unaudited = None, ""
    auto = seeds if isinstance(seeds, Auto) else None
    listed = [seeds.first_seed] * WORKERS if isinstance(seeds, Auto) else [*seeds]
    with (
        threads_of_runs(plan.device, len(listed)) as share,
        not_silent(widths) as begun,
        engine_of(executor, plan.device, None if store is None else Path(store), workers) as engine,
    ):
        if engine is not None:
            share = max(share, engine.devices)
        widths, skipped = fitting(lambda width: least_memory(cell, width, listed[0]), widths, plan.device)
        if audit:
            try:
                audited = audit_cell(cell, sorted(widths)[:AUDITED], gate)
            except Exception as error:  # of a user's constructor or optimizer: it is told, and the check goes on
                unaudited = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        if audited is not None:
            cell.learn_roles(audited.roles())

        def ready(queue: "RunQueue") -> "RunQueue":
            queue.workers, queue.engine = workers or share, engine
            prepare(queue, store, reuse)
            return queue

        queue = ready(queue_of(cell, plan, pilot(widths, 1.0 if auto is None else auto.share), seeds, title))
        of_twin = None
        if twin is not None:
            counts = dict.fromkeys(narrow(widths), CONTROL_SEEDS)
            of_twin = ready(queue_of(twin[0], plan, counts, seeds, "control"))
        announce([queue] if of_twin is None else [queue, of_twin])
        begun()
        done = queue.finish() if auto is None else as_many_as_needed(queue, gate, auto, cell.readout, audited)
        control = Control()
        if twin is not None and of_twin is not None:
            if auto is not None and fails_anyway(done.records, gate, cell.readout, audited):
                control = Control(evidence=NOT_NEEDED)
            else:
                control = judge_control(of_twin.finish().records, gate, twin[1])
        ran = sorted(int(width) for width in done.records["width"].unique())
        skipped = [*skipped, *(done.skipped or not_needed([width for width in sorted(widths) if width not in ran]))]
        judged = partial(
            CoordCheck.from_records,
            gate=gate,
            control=control,
            audit=audited,
            unaudited=unaudited,
            readout=cell.readout,
            skipped=skipped,
            config={**config, PARAMETERS: count_parameters(cell, widths)},
            versions=current_versions(),
            corpus_sha256=cell.corpus_sha256,
        )
        check = judged(done.records)
        more = lacking(check.findings, plan.kinds, plan.steps) if rerun else None
        if check.verdict != "fail" or more is None:
            return check
        richer = dataclasses.replace(plan, kinds=more[0], steps=more[1])
        again = ready(queue_of(cell, richer, dict.fromkeys(ran[:NARROW], NARROW), seeds, "why it fails"))
        return judged(completed(done.records, again.finish().records))


def not_needed(wider: Sequence[int]) -> list[str]:
    """That widths were not run because the narrower ones decided; nothing where there are none."""
    which = f"width{'s' * (len(wider) > 1)} {', '.join(map(str, wider))}"
    return [f"{which} not run: the check fails without {'them' if len(wider) > 1 else 'it'}"] if wider else []


def queue_of(
    cell: "Cell", plan: "RunPlan", counts: Mapping[int, int], seeds: Sequence[int] | Auto, title: str
) -> "RunQueue":
    """The runs of a cell: so many at each width where a check decides on their number, else one for each seed."""
    from coordcheck.run.queue import RunQueue

    if isinstance(seeds, Auto):
        of_widths, batch_seed = seeds_at(counts, seeds.first_seed), seeds.first_seed
        return RunQueue(cell, plan, list(counts), of_widths, title=title, batch_seed=batch_seed)
    return RunQueue(cell, plan, list(counts), seeds if title == "check" else seeds[:CONTROL_SEEDS], title=title)


def as_many_as_needed(
    queue: "RunQueue", gate: GateConfig, auto: Auto, readout: str | None, audited: Audit | None
) -> "Finished":
    """Runs until all curves are decided or the budget is spent, see :mod:`coordcheck.judge.looks`."""
    from coordcheck.run.queue import Finished

    skipped: list[str] = []
    title = queue.title

    def finish(seeds: dict[int, list[int]], still_open: str) -> "pd.DataFrame":
        queue.seeds, queue.title = seeds, f"{title}: {still_open}"
        done = queue.finish()
        skipped[:] = done.skipped
        return done.records

    def judge(records: "pd.DataFrame", confidence: float) -> "pd.DataFrame":
        return judged_curves(records, gate, confidence, readout, audited)

    records = look_until_decided(finish, judge, gate, queue.widths, auto, queue.cell.cost)
    return Finished(records, skipped)


def fails_anyway(records: "pd.DataFrame", gate: GateConfig, readout: str | None, audited: Audit | None) -> bool:
    """Whether a check fails whatever its control shows; what is dead may be so because training is too gentle."""
    verdicts = judged_curves(records, gate, look_confidence(gate), readout, audited)["verdict"]
    return bool(verdicts.isin(("explodes", "vanishes", "nonfinite")).any())


def prepare(queue: "RunQueue", store: str | Path | None, reuse: bool) -> None:
    """Gives a queue its store, and one run at a time where runs in one process would disturb each other."""
    behaviour = None
    if not queue.cell.readable and (store is not None or queue.workers > 1):
        behaviour = queue.try_out()
    if queue.engine is None and (queue.cell.shares or (queue.cell.draws is not False and not queue.cell.readable)):
        queue.workers = 1
    if store is not None:
        plan = {**vars(queue.plan), "device": queue.plan.device.type}
        determinants = {**queue.cell.determinants, "plan": plan, "behaviour": behaviour, "versions": current_versions()}
        determinants |= {} if queue.batch_seed is None else {"batch_seed": queue.batch_seed}
        queue.store = RunStore(Path(store), determinants, reuse=reuse)


def count_parameters(cell: "Cell", widths: Sequence[int]) -> dict[str, int]:
    """Entries of the parameters of the narrowest and the widest model, by width; a tied one counts once."""
    ends = {min(widths), max(widths)}
    return {str(width): sum(p.numel() for p in cell.on_meta(width).parameters()) for width in sorted(ends)}
