"""Whatever is in a file that somebody wrote, it is judged or refused in one sentence that names the file."""

import json
import warnings

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import power, synthetic
from coordcheck import CoordCheck
from coordcheck.records.files import AUDIT_TABLE, RECORDS, VERDICT
from coordcheck.records.mup_format import read_mup, to_mup
from coordcheck.records.schema import KINDS, LOSS
from coordcheck.records.store import RunStore
from coordcheck.report.markdown import check_markdown

FEW = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
WIDTHS = (64, 128, 256)
VERDICTS = ("pass", "fail", "inconclusive")
NUMBERS = [0, -1, 1, 2.5, 1e308, 5e-324, 2**62, -(2**40), float("nan"), float("inf"), float("-inf")]
ODD = st.sampled_from([*NUMBERS, True, None, "", "nan", "abc", "1e400", "\x00", "${oc.env:HOME}", "a|b\n", "x" * 5000])

ODD_LISTS = st.sampled_from([[], {}, [[]], {"a": {}}, [1, "2"], {"${a}": "???"}])


def records():
    curves = {("fc", "activation", 0): power(0.1), ("fc", "delta", 1): power(0.2), ("head", "activation", 0): power(0)}
    return synthetic(curves, widths=WIDTHS, seeds=2)


PATCHES = st.one_of(st.binary(max_size=12), st.sampled_from([b"", b"\x00" * 64, b"\xff" * 8, b'{"a":', b"," * 900]))
DAMAGE = st.tuples(st.floats(0, 1), PATCHES, st.sampled_from(["insert", "byte", "replace", "hole", "cut"]))


def damaged(content, damage):
    """Bytes with a cut, a hole, or bytes of another file in the middle."""
    where, patch, how = damage
    at = round(where * len(content))
    skipped = {"insert": 0, "byte": 1, "replace": len(patch), "hole": 100, "cut": len(content)}[how]
    return content[:at] + patch + content[at + skipped :]


@st.composite
def odd_frames(draw, frame):
    """Records with cells, columns or rows that are not what they should be."""
    frame = frame.astype(object)
    for _ in range(draw(st.integers(1, 3))):
        column, row = draw(st.sampled_from(list(frame.columns))), draw(st.integers(0, len(frame) - 1))
        change = draw(st.sampled_from(["cell", "column", "drop", "rename", "rows", "none"]))
        value = draw(ODD)
        if change == "cell":
            frame.iloc[row, frame.columns.get_loc(column)] = value
        elif change == "column":
            frame[column] = pd.Series([value] * len(frame), dtype=object)
        elif change == "drop" and len(frame.columns) > 2:
            frame = frame.drop(columns=column)
        elif change == "rename":
            frame = frame.rename(columns={column: draw(st.sampled_from(["size", "slope", "x\n", "", "log"]))})
        elif change == "rows":
            frame = frame.iloc[[*range(row), *range(draw(st.integers(0, 2)))]].reset_index(drop=True)
        frame = frame.loc[:, ~frame.columns.duplicated()]
        if not len(frame):
            break
    return frame.infer_objects()


def judged_or_refused(judge, path):
    """Makes sure that a file is refused in one sentence with its name, or judged by what may be believed of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that seeds repeat each other
            check = judge()
            text = check_markdown(check)
    except ValueError as error:
        assert str(path) in str(error) or str(path.parent) in str(error)
        assert "For example" in str(error)
        assert len(str(error)) < 2000
        return
    assert text.startswith(f"# {check.verdict.upper()}: ")
    assert check.verdict in VERDICTS
    sizes = check.records[["l1", "rms", "max", "nonfinite", "count"]].to_numpy(dtype=float)
    assert not (sizes < 0).any()
    assert set(check.records["kind"]) <= set(KINDS)
    assert not check.records.duplicated(["width", "seed", "step", "module", "kind"]).any()
    unread = check.slopes[check.slopes["slope"].isna()]
    assert not unread["verdict"].eq("pass").any() or (unread["n_zero"] > 0).any() or (unread["role"] == LOSS).any()


@pytest.fixture(scope="module")
def written(tmp_path_factory, gate=None):
    """A check's directory, with the whole content of its files, and a frame of mup's."""
    from torch import nn, optim

    from coordcheck import audit
    from coordcheck.config.load import default_gate

    directory = tmp_path_factory.mktemp("check")
    frame = records()
    report = audit(
        lambda w: nn.Sequential(nn.Linear(8, w), nn.Linear(w, w)), WIDTHS, lambda m: optim.Adam(m.parameters())
    )
    check = CoordCheck.from_records(frame, default_gate(), audit=report, config={"steps": 2}, versions={"torch": "2"})
    check.save(directory)
    to_mup(frame).to_csv(directory / "coords.csv", index=False)
    to_mup(frame).to_parquet(directory / "coords.parquet")
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def laid_out(directory, written, name, content):
    for other in (RECORDS, VERDICT, AUDIT_TABLE, "coords.csv", "coords.parquet"):
        (directory / other).write_bytes(written[other] if other != name else content)
    return directory / name


@pytest.mark.parametrize("name", [RECORDS, VERDICT, AUDIT_TABLE])
@FEW
@given(damage=DAMAGE)
def test_damaged_files_of_a_check(tmp_path, written, name, damage):
    path = laid_out(tmp_path, written, name, damaged(written[name], damage))
    judged_or_refused(lambda: CoordCheck.load(tmp_path), path)


@pytest.mark.parametrize("name", ["coords.csv", "coords.parquet"])
@FEW
@given(damage=DAMAGE)
def test_damaged_frames_of_mup(tmp_path, written, gate, name, damage):
    path = laid_out(tmp_path, written, name, damaged(written[name], damage))
    judged_or_refused(lambda: CoordCheck.from_records(read_mup(path), gate), path)


@FEW
@given(frame=odd_frames(records()))
def test_odd_records(tmp_path, frame):
    try:
        frame.to_parquet(tmp_path / RECORDS)
    except Exception:  # not every frame can be written
        return
    judged_or_refused(lambda: CoordCheck.load(tmp_path), tmp_path / RECORDS)


@FEW
@given(frame=odd_frames(to_mup(records())))
def test_odd_frames_of_mup(tmp_path, gate, frame):
    frame.to_csv(tmp_path / "coords.csv", index=False)
    judged_or_refused(lambda: CoordCheck.from_records(read_mup(tmp_path / "coords.csv"), gate), tmp_path / "coords.csv")


def places(said, outer=()):
    """The keys of nested objects, each with those around it."""
    for key, value in said.items():
        yield (*outer, key)
        if isinstance(value, dict):
            yield from places(value, (*outer, key))


@FEW
@given(where=st.integers(0, 10_000), value=st.one_of(ODD, ODD_LISTS))
def test_odd_values_in_a_verdict(tmp_path, written, where, value):
    said = json.loads(written[VERDICT])
    every = list(places(said))
    *outer, key = every[where % len(every)]
    inner = said
    for name in outer:
        inner = inner[name]
    inner[key] = value
    path = laid_out(tmp_path, written, VERDICT, json.dumps(said).encode())
    judged_or_refused(lambda: CoordCheck.load(tmp_path), path)


@FEW
@given(damage=DAMAGE)
def test_a_damaged_stored_run_is_never_believed_and_never_fatal(tmp_path, damage):
    frame = synthetic({("fc", "activation", 0): power(0.1)}, widths=(64,), seeds=1)
    store = RunStore(tmp_path, {})
    store.put(64, 0, frame)
    path = store._path(64, 0)
    path.write_bytes(damaged(path.read_bytes(), damage))
    found = RunStore(tmp_path, {}).get(64, 0)
    assert found is None or found.equals(frame)
