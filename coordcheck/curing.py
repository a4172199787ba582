"""The cure: a table that puts a model into muP, found from its audit and tried by a check.

:func:`cure` does it for a user's functions, :func:`cure_config` for what a configuration names.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from coordcheck.auditing import audit_cell, in_training
from coordcheck.check import IN_THREADS, check_once, engine_of_stages, twin_of
from coordcheck.config.axes import check_axes, check_budget
from coordcheck.config.call import elsewhere, executor_of
from coordcheck.config.load import default_gate
from coordcheck.config.rules import member, refuse_depth, seeds_of
from coordcheck.config.schema import AUTO, CheckConfig, Decay, ExecutorConfig, Expect, GateConfig, Precision
from coordcheck.judge.cure import CureTable, cure_of
from coordcheck.judge.looks import Auto
from coordcheck.judge.trial import table_of
from coordcheck.judge.verdict import counts
from coordcheck.records.files import write_text
from coordcheck.result import Audit, CoordCheck

if TYPE_CHECKING:
    from torch import Tensor, nn, optim

    from coordcheck.run.cell import Cell
    from coordcheck.run.train import RunPlan

ROUNDS = 3  # of looking at what the cure so far has left
FEWEST = 3  # widths
CURE, CURE_PICTURE = "cure.yaml", "cure.png"


@dataclass(frozen=True)
class Cure(CureTable):
    """What to change about a model's initial weights and learning rates, see :class:`CureTable`.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 128), torch.nn.Linear(128, 128))
        >>> table = Cure.from_dict({"version": 1, "base_width": 64, "entries": [
        ...     {"parameters": ["1.weight"], "role": "hidden", "lr": -1}]})
        >>> table.initialize(model, width=128)
        >>> groups = table.param_groups(model, width=128, lr=1e-2)
        >>> [(len(group["params"]), group["lr"]) for group in groups]
        [(3, 0.01), (1, 0.005)]
    """

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads ``cure.yaml``.

        Raises:
            ValueError: if it is none.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeError, yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read as a cure ({type(error).__name__}).") from error
        return cls.from_dict(content, str(path))

    def save(self, path: str | Path) -> None:
        """Writes ``cure.yaml``."""
        write_text(Path(path), yaml.safe_dump(self.to_dict(), sort_keys=False, width=120))

    def initialize(self, model: "nn.Module", width: int) -> None:
        """Multiplies initial weights in place, once.

        Raises:
            ValueError: if it was done before, or the table is another model's.
        """
        from coordcheck.models.cured import initialize

        initialize(self, model, width)

    def param_groups(
        self,
        model: "nn.Module",
        width: int,
        *,
        lr: float | None = None,
        groups: Sequence[Mapping[str, Any]] | None = None,
        **defaults: float,
    ) -> list[dict[str, Any]]:
        """Groups for any torch optimizer, with ``initial_lr`` for any scheduler.

        Args:
            model: Initialized.
            width: d_model.
            lr: The learning rate at the base width, for groups that have none.
            groups: The user's own, which are kept apart; None for one of all parameters.
            **defaults: ``weight_decay`` and ``eps`` at the base width, for groups that have none.

        Raises:
            ValueError: if a group has no learning rate, or the table is another model's.
        """
        from coordcheck.models.cured import check_names, names_of, param_groups

        check_names(self, names_of(model))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        given = [{"params": trained}] if groups is None else groups
        own = [{**defaults, **({} if lr is None else {"lr": lr}), **group} for group in given]
        own = [{**group, "params": list(group["params"])} for group in own]
        if any("lr" not in group for group in own):
            raise ValueError("`lr` is the learning rate at the base width; got None. For example lr=3e-3.")
        return param_groups(self, model, width, own)

    def attach(self, model: "nn.Module", width: int) -> None:
        """Lets modules multiply what they read, where no factor on weights can do that; does nothing for most models.

        Raises:
            ValueError: if it was done before, or a module of the table is not there.
        """
        from coordcheck.models.cured import attach

        attach(self, model, width)

    def as_python(self) -> str:
        """The cure as code that needs no package but torch."""
        rows = [
            (tuple(entry.parameters), *dataclasses.astuple(entry.exponents)[:3], entry.exponents.eps)
            for entry in self.entries
        ]
        table = "".join(f"    {row!r},\n" for row in rows)
        return _PYTHON.format(
            target=self.target, base=self.base_width, table=table, multipliers=dict(self.multipliers or {})
        )


_PYTHON = '''"""The parametrization {target} for this model, from base width {base}.

Call initialize once, and train with param_groups.
"""

import re

import torch

BASE_WIDTH = {base}
# parameters (* is a number), and powers of width / BASE_WIDTH for initial std, learning rate, weight decay, epsilon
TABLE = [
{table}]
MULTIPLIERS = {multipliers!r}  # of what a module reads


def exponents(name):
    for patterns, *powers in TABLE:
        if any(re.fullmatch(re.escape(p).replace(r"\\*", r"\\d+"), name) for p in patterns):
            return powers
    return 0.0, 0.0, 0.0, 0.0


def initialize(model, width):
    width_mult = width / BASE_WIDTH
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(width_mult ** exponents(name)[0])
    for name, power in MULTIPLIERS.items():
        factor = width_mult**power
        model.get_submodule(name).register_forward_pre_hook(lambda _, x, factor=factor: (x[0] * factor, *x[1:]))


def param_groups(model, width, lr, weight_decay=0.0, eps=1e-8):
    width_mult = width / BASE_WIDTH
    groups = {{}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(tuple(exponents(name)[1:]), []).append(parameter)
    return [
        {{
            "params": parameters,
            "lr": lr * width_mult**rate,
            "weight_decay": weight_decay * width_mult**decay,
            "eps": eps * width_mult**small,
        }}
        for (rate, decay, small), parameters in groups.items()
    ]
'''


@dataclass(frozen=True, repr=False)
class Cured:
    """What came of a cure.

    Attributes:
        cure: The table.
        before: The check of the model as it was, at the narrowest widths.
        after: The check with the cure applied.
        audit: Of the model as it was.
    """

    cure: Cure
    before: CoordCheck
    after: CoordCheck
    audit: Audit

    def __repr__(self) -> str:
        return "\n".join([f"before  {_counted(self.before)}", self.cure.describe(), f"after   {_counted(self.after)}"])

    def save(self, directory: str | Path) -> None:
        """Writes ``cure.yaml``, ``cure.png``, and the checks to ``before`` and ``after``."""
        directory = Path(directory)
        self.before.save(directory / "before")
        self.after.save(directory / "after")
        self.cure.save(directory / CURE)
        self.plot(directory / CURE_PICTURE)

    def plot(self, path: str | Path) -> None:
        """Writes a PNG: sizes against width before and with the cure, side by side, and the table."""
        from coordcheck.report.figures.cure import cure_figure
        from coordcheck.report.figures.style import save_figure

        save_figure(cure_figure(self.cure, self.before, self.after), Path(path), self.cure.to_dict())


def _counted(check: CoordCheck) -> str:
    """A verdict and how many curves are at fault and undecided."""
    at_fault, undecided = counts(check.slopes)
    return f"{check.verdict.upper()}: {at_fault} of {len(check.slopes)} curves at fault, {undecided} undecided"


def cure(
    build: "Callable[[int], nn.Module | tuple[nn.Module, optim.Optimizer]]",
    batch: Any,
    widths: Sequence[int] = (64, 128, 256, 512),
    base_width: int | None = None,
    optimizer: "Callable[[nn.Module], optim.Optimizer] | None" = None,
    *,
    seeds: int | Sequence[int] | str = AUTO,
    steps: int = 4,
    loss: "Callable[[nn.Module, Any], Tensor] | None" = None,
    device: str = "auto",
    precision: str = "fp32",
    name: str | None = None,
    store: str | Path | None = None,
    workers: int | None = None,
    executor: str | Mapping[str, Any] | Executor = "auto",
    decay: str | None = None,
    budget: float = 3.0,
    target: str = "mup",
) -> Cured:
    """Finds what puts a model of yours into muP or another parametrization, and tries it.

    Args:
        build: As for :func:`coordcheck.coord_check`.
        batch: Likewise.
        widths: Likewise.
        base_width: Where nothing changes; by default the narrowest.
        optimizer: As for :func:`coordcheck.coord_check`, as you train today.
        seeds: Likewise.
        steps: Likewise.
        loss: Likewise.
        device: Likewise.
        precision: Likewise.
        name: Likewise.
        store: Likewise.
        workers: Likewise.
        executor: Likewise.
        decay: The policy of weight decay, which the cure then follows; None leaves the decay alone.
        budget: As for :func:`coordcheck.coord_check`.
        target: The parametrization: "mup", or another row of :data:`coordcheck.judge.parametrizations.TABLES`.

    Returns:
        The table and the checks before and after.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    from coordcheck.models.own import OwnCell, default_optimizer
    from coordcheck.run.device import pick_device
    from coordcheck.run.train import RunPlan

    kinds = ("activation", "delta", "effective_update")
    axes = check_axes(widths, seeds, steps, kinds)
    base = min(axes.widths) if base_width is None else base_width
    if isinstance(base, bool) or not isinstance(base, int) or base < 1:
        raise ValueError(f"`base_width` is a positive integer; got {base_width!r}. For example base_width=64.")
    gate = dataclasses.replace(default_gate(), expect=member(Expect, "target", target))
    gate.decay = None if decay is None else member(Decay, "decay", decay).value
    maker = executor_of(executor)
    where = pick_device(device, elsewhere(maker))
    plan = RunPlan(axes.steps, axes.kinds, None, where, member(Precision, "precision", precision))
    with in_training(plan.device):
        cell = OwnCell(
            build, batch, default_optimizer() if optimizer is None else optimizer, loss, axes.widths, name=name
        )
        wanted = Auto(check_budget(budget)) if isinstance(axes.seeds, str) else axes.seeds
        config = {**vars(axes), "precision": precision}
        keeping: dict[str, Any] = {"store": store, "workers": workers, "executor": maker}
        return cure_cell(cell, plan, gate, axes.widths, wanted, base, config, **keeping)


def cure_config(config: CheckConfig, target: str = "mup") -> Cured:
    """Cures what a configuration names, see :func:`cure`.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    from coordcheck.models.families import make_cell
    from coordcheck.run.device import pick_device
    from coordcheck.run.train import RunPlan

    refuse_depth(config, "coordcheck-cure")
    config = dataclasses.replace(config, gate=dataclasses.replace(config.gate, expect=member(Expect, "target", target)))
    device = pick_device(config.device, elsewhere(config.executor))
    plan = RunPlan(config.steps, config.kinds, config.modules, device, config.precision)
    with in_training(plan.device):
        return cure_cell(
            make_cell(config),
            plan,
            config.gate,
            config.widths,
            Auto(config.budget, config.first_seed) if isinstance(seeds := seeds_of(config), str) else seeds,
            config.base_width,
            dataclasses.asdict(config),
            store=config.runs,
            reuse=config.resume,
            workers=config.workers,
            executor=config.executor,
        )


def cure_cell(
    cell: "Cell",
    plan: "RunPlan",
    gate: GateConfig,
    widths: Sequence[int],
    seeds: Sequence[int] | Auto,
    base_width: int,
    config: Mapping[str, Any],
    *,
    store: str | Path | None = None,
    reuse: bool = True,
    workers: int | None = None,
    executor: ExecutorConfig | Executor = IN_THREADS,
) -> Cured:
    """Audits a cell until nothing is left to change, then checks it with the changes applied.

    The check before is made at the three narrowest widths, to show what was wrong; the one after at all. Where its
    curves ask for more it is made once again.
    """
    from coordcheck.models.cured import Cured as CuredCell

    table, audited = find_cure(cell, gate, widths, base_width)
    with engine_of_stages(executor, plan, store, workers) as engine:
        keeping: dict[str, Any] = {"store": store, "reuse": reuse, "workers": workers, "executor": engine}

        def check(of: "Cell", at: Sequence[int]) -> CoordCheck:
            twin = twin_of(of, gate, min(at)) if of is not cell else None
            return check_once(of, twin, plan, gate, at, seeds, **keeping, config=config)

        before = check(cell, sorted(widths)[:FEWEST])
        after = check(CuredCell(cell, table), widths)
        longer = table.plus(asked_by_curves(after, base_width)).generalized(audited.parameters["parameter"])
        longer = dataclasses.replace(longer, notes=table.notes)
        if longer != table:
            again = check(CuredCell(cell, longer), widths)
            if again.verdict == "pass" or sum(counts(again.slopes)) < sum(counts(after.slopes)):
                table, after = longer, again
    return Cured(table, before, after, audited)


def asked_by_curves(check: CoordCheck, base_width: int) -> CureTable:
    """What the findings of a check ask for beyond its audit; of several that ask it of one weight the first counts."""
    table = CureTable(base_width)
    seen: set[tuple[str, str]] = set()
    for finding in check.findings:
        if check.audit is None or finding.change is None or finding.quantity is not None:
            continue
        asked = {(name, finding.change.quantity) for name in finding.parameters}
        if not asked & seen:
            table = table.plus(table_of(finding, check.audit, base_width))
        seen |= asked
    return table


def find_cure(cell: "Cell", gate: GateConfig, widths: Sequence[int], base_width: int) -> tuple[Cure, Audit]:
    """The table of a cell, from audits at the narrowest widths until nothing is left to change; and the first audit."""
    from coordcheck.models.cured import Cured as CuredCell

    narrow = sorted(widths)[:FEWEST]
    before = audited = audit_cell(cell, narrow, gate)
    table = Cure(base_width, target=gate.expect.value)
    for _ in range(ROUNDS):
        found = cure_of(audited, base_width)
        if not found:
            table = dataclasses.replace(table, notes=found.notes)
            break
        table = table.plus(found)
        audited = audit_cell(CuredCell(cell, table), narrow, gate)
    return table.generalized(before.parameters["parameter"]), before
