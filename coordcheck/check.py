"""The whole flow: runs, records, slopes, verdicts, and the result as one object with its files.

:func:`coord_check` checks a user's own model, :func:`check_config` a configured one. Torch is imported when
they are called; a stored :class:`CoordCheck` loads, judges and plots without it.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pandas as pd

from coordcheck import verdict as verdicts
from coordcheck.config import (
    NO_NUMBERS,
    CheckConfig,
    GateConfig,
    Parametrization,
    Precision,
    check_axes,
    default_gate,
    gate_from,
    seeds_of,
)
from coordcheck.slopes import cell_columns, fit
from coordcheck.storage import RunStore, write_atomically
from coordcheck.verdict import Finding

if TYPE_CHECKING:
    from torch import Tensor, nn, optim

    from coordcheck.cell import Cell
    from coordcheck.train import RunPlan

E = TypeVar("E", Parametrization, Precision)

CONTROL_SEEDS = 3
RECORDS, SLOPES, VERDICT, PICTURE, TEXT = (
    "records.parquet",
    "slopes.csv",
    "verdict.json",
    "report.png",
    "report.md",
)


@dataclass(frozen=True)
class Control:
    """Whether the check can see: a twin with a known fault, which must fail.

    Attributes:
        twin: What it was, in words; "none" if it was turned off.
        widths: At which it ran.
        seeds: How many.
        saw: Whether its fault was seen while it trained; None without a control.
        evidence: The curve that shows it best, in words.
    """

    twin: str = "none"
    widths: list[int] = field(default_factory=list)
    seeds: int = 0
    saw: bool | None = None
    evidence: str = ""

    def __str__(self) -> str:
        if self.saw is None:
            return "Control: none, so a pass does not show that a fault would have been seen."
        ran = f"Control ({self.twin}; widths {self.widths}, {self.seeds} seeds)"
        if self.saw:
            return f"{ran}: fails as it must; {self.evidence}"
        return f"{ran}: its fault was not seen. The learning rate or the number of steps is too small to see a fault."


@dataclass(frozen=True, eq=False)
class CoordCheck:
    """The result of a check.

    Attributes:
        records: One row per (cell, width, seed, step, module, kind).
        slopes: One row per curve, with its expected range and verdict.
        verdict: "pass", "fail" or "inconclusive".
        findings: One for each module that does not pass, worst first.
        control: What the control showed.
        gate: What turned slopes into verdicts.
        skipped: One sentence for each width that could not run.
        config: What was run, JSON-serializable.
        versions: Of Python and of the packages that made the numbers.
        corpus_sha256: Of the text, where there was one.
    """

    records: pd.DataFrame
    slopes: pd.DataFrame
    verdict: str
    findings: list[Finding]
    control: Control
    gate: GateConfig
    skipped: list[str]
    config: dict[str, Any]
    versions: dict[str, str]
    corpus_sha256: str | None

    @classmethod
    def from_records(
        cls,
        records: pd.DataFrame,
        gate: GateConfig,
        *,
        control: Control | None = None,
        readout: str | None = None,
        skipped: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        corpus_sha256: str | None = None,
    ) -> "CoordCheck":
        """Fits and judges records of one cell, wherever they were recorded.

        Raises:
            ValueError: if there are no records, or those of several cells.
        """
        if not len(records):
            raise ValueError("there are no records to judge. For example record one step: recorder.step().")
        names = cell_columns(records)
        cells = records[names].drop_duplicates()
        if names and len(cells) > 1:
            raise ValueError(
                f"a check judges one cell; these records hold {len(cells)}: {cells.to_dict('records')}. "
                f"For example records.groupby({list(cells.columns)}), one directory each."
            )
        control = Control() if control is None else control
        judged = verdicts.judge(fit(records, gate.confidence), gate, readout)
        return cls(
            records=records,
            slopes=judged,
            verdict=verdicts.overall(judged, control.saw),
            findings=verdicts.findings(judged, gate),
            control=control,
            gate=gate,
            skipped=list(skipped),
            config={"widths": sorted(int(width) for width in records["width"].unique()), **(config or {})},
            versions=dict(versions or {}),
            corpus_sha256=corpus_sha256,
        )

    def sentence(self) -> str:
        """The verdict and its reason."""
        first = verdicts.first_at_fault(self.slopes)
        counts = self.slopes["verdict"].value_counts()
        if first is not None and self.verdict == "fail":
            at_fault = int(counts[counts.index.isin(verdicts.FAILURES)].sum())
            return (
                f"FAIL: {at_fault} of {len(self.slopes)} curves are at fault. First at fault: {first['module']}, "
                f"{first['kind']}, step {first['step']}: {verdicts.describe(first)}"
            )
        if self.verdict == "pass":
            return f"PASS: all {len(self.slopes)} curves have the size that {self.gate.expect} expects at every width."
        if self.control.saw is False:
            return "INCONCLUSIVE: the control's fault was not seen, so a fault of this model would not be either."
        undecided = int(counts.get("inconclusive", 0))
        return f"INCONCLUSIVE: {undecided} of {len(self.slopes)} curves are undecided. {self.findings[0]}"

    def plot(self, path: str | Path) -> None:
        """Writes the picture of the check, a PNG: the curves, and the slope of every module at every step."""
        from coordcheck.plot import report_figure, save_figure

        save_figure(report_figure(self), Path(path), self.config)

    def save(self, directory: str | Path) -> None:
        """Writes ``records.parquet slopes.csv verdict.json report.png report.md``, each atomically."""
        from coordcheck.report import markdown

        directory = Path(directory)
        write_atomically(directory / RECORDS, self.records.to_parquet)
        write_atomically(directory / SLOPES, lambda path: self.slopes.to_csv(path, index=False))
        write_atomically(directory / VERDICT, lambda path: path.write_text(self.to_json()))
        self.plot(directory / PICTURE)
        write_atomically(directory / TEXT, lambda path: path.write_text(markdown(self)))

    def to_mup(self) -> pd.DataFrame:
        """The recorded activations in the format of ``mup.coord_check``: ``width module t l1 l2``."""
        from coordcheck.mup_format import to_mup

        return to_mup(self.records)

    def to_json(self) -> str:
        """The content of ``verdict.json``."""
        content = {
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "control": dataclasses.asdict(self.control),
            "skipped": self.skipped,
            "versions": self.versions,
            "corpus_sha256": self.corpus_sha256,
            "config": {**self.config, "gate": dataclasses.asdict(self.gate)},
        }
        return json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n"

    @classmethod
    def load(cls, directory: str | Path) -> "CoordCheck":
        """Reads stored records, with what ``verdict.json`` says of them if it is there, and judges them anew.

        Raises:
            ValueError: if the directory holds no records.
        """
        directory = Path(directory)
        if not (directory / RECORDS).is_file():
            raise ValueError(
                f"{directory} holds no {RECORDS}; a check's directory does. For example "
                f"coordcheck-report checks/gpt-mup-untied-zero-adam."
            )
        records = pd.read_parquet(directory / RECORDS)
        if not (directory / VERDICT).is_file():
            return cls.from_records(records, default_gate())
        said = json.loads((directory / VERDICT).read_text())
        return cls.from_records(
            records,
            gate_from(said["config"]["gate"]),
            control=Control(**said["control"]),
            readout=said["config"].get("readout", {}).get("name"),
            skipped=said["skipped"],
            config=said["config"],
            versions=said["versions"],
            corpus_sha256=said["corpus_sha256"],
        )


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
    control: "Literal[False] | tuple[Callable[[int], nn.Module], Callable[[nn.Module], optim.Optimizer]] | None" = None,
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
        kinds: "activation", "delta", or both.
        expect: Whose exponents the slopes are held against, "mup" or "sp".
        device: "auto" for a GPU if there is one, or any torch device.
        precision: "fp32", or "bf16" for autocast.
        modules: Names or shell patterns of modules to record; None for all.
        control: By default the same model with every learning rate multiplied by width / smallest width;
            a pair (build, optimizer) for another one that must fail, or False for none.

    Returns:
        The result: its ``verdict``, ``findings``, ``records``, ``slopes``; ``plot`` and ``save`` write files.

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

    from coordcheck.cell import FasterWithWidth, OwnCell
    from coordcheck.train import RunPlan, pick_device

    seed_list = list(range(int(seeds))) if isinstance(seeds, int | Integral) else list(seeds)
    check_axes(widths, seed_list, steps, kinds)
    widths, seed_list = [int(width) for width in widths], [int(seed) for seed in seed_list]
    gate = dataclasses.replace(default_gate(), expect=_member(Parametrization, "expect", expect))
    where = pick_device(device)
    plan = RunPlan(steps, kinds, modules, where, _member(Precision, "precision", precision))
    config = {"widths": widths, "seeds": seed_list, "steps": steps, "kinds": list(kinds)}
    config |= {"modules": None if modules is None else list(modules), "precision": precision}
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        train = optimizer or _adam
        cell = OwnCell(build, batch, train, loss, widths)
        twin: Cell | None = None
        name = "none"
        if control is None:
            twin = FasterWithWidth(build, batch, train, loss, widths)
            name = "every learning rate times width / smallest width"
        elif control is not False:
            twin, name = OwnCell(control[0], batch, control[1], loss, widths), "your own"
        return _check(cell, twin, name, plan, gate, widths, seed_list, config=config)


def check_config(config: CheckConfig) -> CoordCheck:
    """Checks a configured cell; finished runs are stored and reused as `config` says.

    Raises:
        ValueError: naming the value, the rule and a working example, before anything is trained.
    """
    import torch

    from coordcheck.cell import ConfiguredCell
    from coordcheck.sweep import default_workers
    from coordcheck.train import RunPlan, pick_device

    device = pick_device(config.device)
    plan = RunPlan(config.steps, config.kinds, config.modules, device, config.precision)
    cell = ConfiguredCell(config)
    twin = cell.control() if config.control else None
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        return _check(
            cell,
            twin,
            "the same model in standard parametrization",
            plan,
            config.gate,
            config.widths,
            seeds_of(config),
            store=lambda c: _store(c.config, c.corpus.sha256, str(device)),
            workers=config.workers or default_workers(device),
            readout=config.readout.name,
            config=dataclasses.asdict(config),
            corpus_sha256=cell.corpus.sha256,
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
    store: Callable[[Any], RunStore | None] = lambda cell: None,
    workers: int = 1,
    readout: str | None = None,
    config: Mapping[str, Any],
    corpus_sha256: str | None = None,
) -> CoordCheck:
    """Runs a cell and its control, and judges both."""
    from coordcheck.sweep import RunQueue

    done = RunQueue(cell, plan, widths, seeds, store(cell), workers, "check").finish()
    control = Control()
    if twin is not None:
        narrow, few = control_axes(widths, seeds)
        ran = RunQueue(twin, plan, narrow, few, store(twin), workers, "control").finish()
        control = judge_control(ran.records, gate, twin_name)
    return CoordCheck.from_records(
        done.records,
        gate,
        control=control,
        readout=readout,
        skipped=done.skipped,
        config=config,
        versions=current_versions(),
        corpus_sha256=corpus_sha256,
    )


def control_axes(widths: Sequence[int], seeds: Sequence[int]) -> tuple[list[int], list[int]]:
    """The widths and seeds of a control: the narrower ones, so that it costs little."""
    ordered = sorted(widths)
    return ordered[: max(3, len(ordered) - 2)], list(seeds)[:CONTROL_SEEDS]


def judge_control(records: pd.DataFrame, gate: GateConfig, twin: str) -> Control:
    """Whether a control's fault shows, in what training did to it.

    A fault at step 0 would show without any training, so it says nothing of the learning rate: where deltas
    are recorded only they count, else activations after step 0.
    """
    judged = verdicts.judge(fit(records, gate.confidence), gate)
    trained = judged[judged["kind"] == "delta"] if (judged["kind"] == "delta").any() else judged[judged["step"] > 0]
    seen = verdicts.worst_first(trained[trained["verdict"].isin(("explodes", "nonfinite"))])
    evidence = ""
    if len(seen):
        worst = seen.iloc[0]
        evidence = f"{worst['module']}, {worst['kind']}, step {worst['step']}: {verdicts.describe(worst)}"
    return Control(
        twin=twin,
        widths=sorted(int(width) for width in records["width"].unique()),
        seeds=int(records["seed"].nunique()),
        saw=bool(len(seen)),
        evidence=evidence,
    )


def current_versions() -> dict[str, str]:
    """Of Python and of the packages that make the numbers."""
    packages = ("coordcheck", "torch", "mup", "numpy", "pandas")
    return {"python": python_version(), **{name: version(name) for name in packages}}


def _store(config: CheckConfig, corpus_sha256: str, device: str) -> RunStore:
    """Where runs of a configured cell are kept, keyed by what their numbers depend on."""
    values = dataclasses.asdict(config)
    numbers = {key: value for key, value in values.items() if key not in NO_NUMBERS | {"widths"}}
    return RunStore(
        Path(config.runs),
        {**numbers, "corpus": corpus_sha256, "device": device, "versions": current_versions()},
        reuse=config.resume,
    )


def _adam(model: "nn.Module") -> "optim.Optimizer":
    import torch

    return torch.optim.Adam(model.parameters(), lr=1e-2)


def _member(options: type[E], name: str, value: str) -> E:
    try:
        return options(value)
    except ValueError as error:
        known = [option.value for option in options]
        raise ValueError(f"`{name}` is one of {known}; got {value!r}. For example {name}={known[0]!r}.") from error


def _without_nan(value: Any) -> Any:
    """`value` with every float that JSON lacks replaced by None, and enums by their values."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
