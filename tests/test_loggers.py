"""A check in TensorBoard, Weights & Biases and MLflow, read back from what each library wrote."""

import json
import sys
from unittest.mock import create_autospec

import pytest

from conftest import power, synthetic
from coordcheck import CoordCheck, loggers
from coordcheck.cli import report

CURVES = {
    ("fc", "activation", 0): power(0.0, 0.01),
    ("fc", "delta", 1): power(1.0, 0.01),
    ("a/../[b]", "activation", 0): power(0.0, 0.01),
    ("(loss)", "activation", 0): power(0.0, 0.01),
}
MEAN = 120 ** (1 / 5)  # of the constants 1 to 5 of the seeds, geometric
PAGE = "report.html"

foreign = pytest.mark.filterwarnings("default")  # of those libraries' own code


@pytest.fixture
def check(gate):
    records = synthetic(CURVES, widths=(64, 128, 256))
    records.loc[records["module"] == "(loss)", "role"] = "loss"
    return CoordCheck.from_records(records, gate)


def test_sizes_are_means_over_seeds_and_slopes_are_those_of_the_check(check):
    found = {(s.tag, s.width, s.step): s.value for s in loggers.scalars(check)}
    assert found["activation/fc", 64, 0] == pytest.approx(MEAN)
    assert found["delta/fc", 256, 1] == pytest.approx(256 * MEAN)
    assert found["slope_delta/fc", None, 1] == pytest.approx(1.0)
    assert found["loss", 128, 0] == pytest.approx(MEAN)
    assert len(found) == 4 * 3 + 4 and ("slope_loss", None, 0) in found
    assert loggers.summary(check)["verdict"] == "fail" and loggers.summary(check)["curves_at_fault"] == 1


def test_a_size_that_one_seed_does_not_have_is_not_hidden_by_the_others(gate):
    curves = {("fc", "activation", 0): lambda width, seed: float("inf") if (width, seed) == (64, 0) else 1.0 + seed}
    curves["out", "activation", 0] = lambda width, seed: 0.0 if (width, seed) == (64, 0) else 1.0 + seed
    found = {(s.tag, s.width): s.value for s in loggers.scalars(CoordCheck.from_records(synthetic(curves), gate))}
    assert found["activation/fc", 64] != found["activation/fc", 64]
    assert found["activation/out", 64] == 0.0 and found["activation/fc", 128] == pytest.approx(MEAN)


@foreign
def test_tensorboard(check, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'coordcheck[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers.tensorboard(check, tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"width=64", "width=128", "width=256"}
    narrow, overall = (EventAccumulator(str(path)).Reload() for path in (tmp_path / "width=64", tmp_path))
    (event,) = narrow.Scalars("delta/fc")
    assert (event.step, event.value) == (1, pytest.approx(64 * MEAN))
    assert overall.Scalars("slope_delta/fc")[0].value == pytest.approx(1.0)
    assert overall.Scalars("curves_at_fault")[0].value == 1
    (text,) = overall.Tensors("verdict/text_summary")
    assert text.tensor_proto.string_val[0].startswith(b"FAIL: 1 of 4 curves is at fault. First at fault: fc")
    (image,) = overall.Images("report")
    assert image.encoded_image_string.startswith(b"\x89PNG") and image.width > 1000


def written_offline(content):
    """The records of a run that W&B kept offline: seven bytes, then LevelDB's log, in blocks of 32 KiB."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, part = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if part in (1, 4):  # a whole one, or the last part of one
            yield whole
            whole = b""


@foreign
def test_wandb(check, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install 'coordcheck[wandb]'")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    loggers.wandb(check)
    assert wandb.run is None  # its own run is over
    wandb.teardown()  # waits until the file is written, as the end of a process does
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    logged, summary, defined = [], {}, {}
    for data in written_offline(path.read_bytes()):
        record = Record.FromString(data)
        logged.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
        summary |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
        defined |= {record.metric.glob_name or record.metric.name: record.metric.step_metric}
    steps = [row for row in logged if "coordcheck/step" in row]
    assert [row["coordcheck/step"] for row in steps] == [0, 1]
    assert steps[1]["delta/fc/64"] == pytest.approx(64 * MEAN) and "delta/fc/64" not in steps[0]
    assert steps[1]["slope_delta/fc"] == pytest.approx(1.0)
    assert defined["delta/*"] == defined["slope_delta/*"] == defined["slope_loss"] == "coordcheck/step"
    assert summary["coordcheck/verdict"] == "fail" and summary["coordcheck/curves_at_fault"] == 1
    media = {path.name.partition("_")[0] for path in path.parent.glob("files/media/**/*") if path.is_file()}
    assert media == {"report", "page", "findings"}


@foreign
def test_mlflow(check, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'coordcheck[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which makes no database
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    try:
        with mlflow.start_run() as run:
            loggers.mlflow(check)
        loggers.mlflow(check)
        assert mlflow.active_run() is None
        client = mlflow.MlflowClient()
        (own,) = (r for r in client.search_runs(["0"]) if r.info.run_id != run.info.run_id)
        assert own.info.run_name == check.cell()
        for stored in (client.get_run(run.info.run_id), own):
            (size,) = client.get_metric_history(stored.info.run_id, "delta/fc/64")
            assert (size.step, size.value) == (1, pytest.approx(64 * MEAN))
            metrics = stored.data.metrics
            assert metrics["slope_delta/fc"] == pytest.approx(1.0) and metrics["coordcheck/curves_at_fault"] == 1
            assert metrics["activation/a/_/_b_/64"] == pytest.approx(MEAN)
            assert stored.data.tags["coordcheck.verdict"] == "fail"
            files = {file.path for file in client.list_artifacts(stored.info.run_id, "coordcheck")}
            assert {f"coordcheck/{name}" for name in (PAGE, "report.png", "verdict.json", "slopes.csv")} <= files
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_library_that_is_missing_is_named_with_its_extra(check, tmp_path, monkeypatch, name):
    lacking = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, lacking, None)
    where = [tmp_path] if name == "tensorboard" else []
    with pytest.raises(ValueError, match=rf"logging to {name} needs .*For example pip install 'coordcheck\[{name}\]'"):
        getattr(loggers, name)(check, *where)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_the_report_logs_each_check_that_it_read(check, tmp_path, monkeypatch, name):
    check.save_text(tmp_path / "mine")
    logged = {each: create_autospec(getattr(loggers, each)) for each in ("tensorboard", "wandb", "mlflow")}
    for each, function in logged.items():
        monkeypatch.setattr(loggers, each, function)
    monkeypatch.setattr(CoordCheck, "save_pictures", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["coordcheck-report", str(tmp_path / "mine"), "--log", name])
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 3 and [each for each in logged if logged[each].called] == [name]
    given = logged[name].call_args.args
    assert given[0].verdict == "fail" and given[1:] == ((tmp_path / "mine",) if name == "tensorboard" else ())
