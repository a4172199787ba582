"""A check where its users keep their runs: TensorBoard, Weights & Biases, MLflow.

:func:`scalars` makes numbers of a check, and what is told in words and pictures is what :meth:`CoordCheck.save` writes.
A function for each library hands both over in that library's own way. Each library is an extra, imported when its
function is called.
"""

import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coordcheck.judge.verdict import FAILURES
from coordcheck.records.files import AUDIT_PICTURE, REPORT_PAGE, REPORT_PICTURE
from coordcheck.records.names import printable
from coordcheck.records.schema import KINDS, LOSS, sizes
from coordcheck.report.tables import in_markdown
from coordcheck.result import CoordCheck

AT_ONCE = 1000  # metrics that MLflow takes in one batch
LONGEST_METRIC = 250  # characters of a metric's name in MLflow
LONGEST_TAG = 4000  # of a tag's value


class Scalar(NamedTuple):
    """A number of a check.

    Attributes:
        tag: "KIND/MODULE" for a size, "slope_KIND/MODULE" for its exponent of width; "loss" and "slope_loss".
        width: d_model of a size or a loss; None for a slope, which is of all widths.
        step: Optimizer updates before it.
        value: Of a size the geometric mean over seeds.
    """

    tag: str
    width: int | None
    step: int
    value: float


def scalars(check: CoordCheck) -> list[Scalar]:
    """The sizes of a check at each width and step, and the slopes of its curves, in the model's order.

    A size is zero where one seed's is, and not finite where one seed's is not.
    """
    records = check.records
    loss = (records["role"] == LOSS).fillna(False)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(sizes(records).where(records["nonfinite"] == 0, np.nan))
    tags = (records["kind"] + "/" + records["module"]).where(~loss, LOSS)
    table = records.assign(tag=tags, log=logs).sort_values("order", kind="stable")
    means = table.groupby(["tag", "width", "step"], sort=False)["log"].agg(lambda log: log.mean(skipna=False))
    found = [
        Scalar(str(row["tag"]), int(row["width"]), int(row["step"]), float(np.exp(row["log"])))
        for row in means.reset_index().to_dict("records")
    ]
    for row in check.slopes[check.slopes["slope"].notna()].to_dict("records"):
        tag = LOSS if row["role"] == LOSS else f"{row['kind']}/{row['module']}"
        found.append(Scalar(f"slope_{tag}", None, int(row["step"]), float(row["slope"])))
    return found


def summary(check: CoordCheck) -> dict[str, str | int]:
    """The verdict, its sentence, and how many curves there are, are at fault and are undecided."""
    verdicts = check.slopes["verdict"]
    return {
        "verdict": check.verdict,
        "sentence": printable(check.sentence(), LONGEST_TAG),
        "curves": len(verdicts),
        "curves_at_fault": int(verdicts.isin(FAILURES).sum()),
        "curves_undecided": int((verdicts == "inconclusive").sum()),
    }


def tensorboard(check: CoordCheck, log_dir: str | Path) -> None:
    """Writes a check for TensorBoard: ``tensorboard --logdir LOG_DIR``.

    Each width is a run of its own in `log_dir`, so that a module's sizes at all widths are lines of one chart. Slopes,
    pictures and the verdict with its findings are in the run that is `log_dir` itself.

    Args:
        check: The check.
        log_dir: A directory; what is there stays there.

    Raises:
        ValueError: if TensorBoard is not installed.
    """
    writers: dict[int | None, Any] = {}
    made = _library("torch.utils.tensorboard", "tensorboard").SummaryWriter
    try:
        for scalar in scalars(check):
            if scalar.width not in writers:
                name = "." if scalar.width is None else f"width={scalar.width}"
                writers[scalar.width] = made(str(Path(log_dir) / name))
            writers[scalar.width].add_scalar(scalar.tag, scalar.value, scalar.step)
        overall = writers[None] if None in writers else writers.setdefault(None, made(str(log_dir)))
        findings = "\n".join(f"1. {in_markdown(finding)}" for finding in check.findings)
        overall.add_text("verdict", f"{in_markdown(check.sentence())}\n\n{in_markdown(check.control)}\n\n{findings}")
        for name in ("curves", "curves_at_fault", "curves_undecided"):
            overall.add_scalar(name, summary(check)[name], 0)
        with _saved(check) as directory:
            from matplotlib.image import imread

            for picture in _pictures(directory):
                overall.add_image(picture.stem, imread(picture)[..., :3], 0, dataformats="HWC")
    finally:
        for writer in writers.values():
            writer.close()


def wandb(check: CoordCheck, run: Any = None) -> None:
    """Logs a check to a run of Weights & Biases: to the active one, or to one of its own where none is.

    Sizes and slopes are drawn against ``coordcheck/step``, whatever else the run has logged. Its summary gets the
    verdict, its media the pictures and report.html, its tables the findings.

    Args:
        check: The check.
        run: What ``wandb.init`` returned; None for the active one.

    Raises:
        ValueError: if wandb is not installed.
    """
    library = _library("wandb", "wandb")
    run = library.run if run is None else run
    if run is None:
        with library.init(project="coordcheck", name=printable(check.cell(), 100), config=check.config) as own:
            return wandb(check, own)
    found = scalars(check)
    clock = "coordcheck/step"
    run.define_metric(clock, hidden=True)
    for name in (LOSS, *KINDS):
        run.define_metric(f"{name}/*", step_metric=clock)
        run.define_metric(f"slope_{name}{'' if name == LOSS else '/*'}", step_metric=clock)
    for step in sorted({scalar.step for scalar in found}):
        run.log({clock: step, **{_name(scalar): scalar.value for scalar in found if scalar.step == step}})
    rows = [[f.fault or "undecided", f.module, f.parameter or "", str(f)] for f in check.findings]
    with _saved(check) as directory:
        run.log(
            {
                **{f"coordcheck/{path.stem}": library.Image(str(path)) for path in _pictures(directory)},
                "coordcheck/page": library.Html(str(directory / REPORT_PAGE)),
                "coordcheck/findings": library.Table(columns=["fault", "module", "parameter", "finding"], data=rows),
            }
        )
    run.summary.update({f"coordcheck/{name}": value for name, value in summary(check).items()})


def mlflow(check: CoordCheck) -> None:
    """Logs a check to MLflow: to the active run, or to one of its own where none is.

    Sizes and slopes are metrics, the verdict is in the run's tags, and the artifacts in ``coordcheck/`` are what
    :meth:`CoordCheck.save` writes, report.html among them. Where, is for ``mlflow.set_tracking_uri`` to say.

    Args:
        check: The check.

    Raises:
        ValueError: if MLflow is not installed.
    """
    library = _library("mlflow", "mlflow")
    metric = import_module("mlflow.entities").Metric
    found = scalars(check)
    names = _metric_names([_name(scalar) for scalar in found])
    now = int(time.time() * 1000)
    metrics = [metric(names[_name(scalar)], scalar.value, now, scalar.step) for scalar in found]
    told = summary(check)
    metrics += [metric(f"coordcheck/{name}", value, now, 0) for name, value in told.items() if isinstance(value, int)]
    active = library.active_run()
    with nullcontext(active) if active else library.start_run(run_name=printable(check.cell(), 200)) as run:
        client = library.MlflowClient()
        for start in range(0, len(metrics), AT_ONCE):
            client.log_batch(run.info.run_id, metrics=metrics[start : start + AT_ONCE])
        library.set_tags({f"coordcheck.{name}": told[name] for name in ("verdict", "sentence")})
        with _saved(check) as directory:
            library.log_artifacts(str(directory), artifact_path="coordcheck")


def _library(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"logging to {extra} needs {error.name}, which is not installed. For example pip install "
            f"'coordcheck[{extra}]'."
        ) from error


@contextmanager
def _saved(check: CoordCheck) -> Iterator[Path]:
    """A check's files, for as long as they are handed over."""
    with tempfile.TemporaryDirectory() as directory:
        check.save(directory)
        (Path(directory) / ".lock").unlink(missing_ok=True)
        yield Path(directory)


def _pictures(directory: Path) -> list[Path]:
    return [path for name in (REPORT_PICTURE, AUDIT_PICTURE) if (path := directory / name).exists()]


def _name(scalar: Scalar) -> str:
    """A tag that is one of a kind where there are no runs for widths."""
    return scalar.tag if scalar.width is None else f"{scalar.tag}/{scalar.width}"


def _metric_names(names: Sequence[str]) -> Mapping[str, str]:
    """For each name one that MLflow takes, and no two the same.

    MLflow takes letters, digits and ``/_-. :``, 250 characters of them, in what could be a path.

    >>> _metric_names(["delta/(model)/64", "delta/[model]/64", "delta/a//../b"])
    {'delta/(model)/64': 'delta/_model_/64', 'delta/[model]/64': 'delta/_model_/64.2', 'delta/a//../b': 'delta/a/_/_/b'}
    """
    found: dict[str, str] = {}
    taken = set()
    for name in dict.fromkeys(names):
        parts = [re.sub(r"^\.*$", "_", re.sub(r"[^\w.\- ]", "_", part)) for part in name.split("/")]
        plain = shorter = printable("/".join(parts), LONGEST_METRIC - 8).replace("…", "_")
        number = 1
        while shorter in taken:
            number += 1
            shorter = f"{plain}.{number}"
        taken.add(shorter)
        found[name] = shorter
    return found
