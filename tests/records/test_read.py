"""Files of others: refused in one sentence that names the file, the place and the rule, within seconds."""

import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from conftest import power, synthetic
from coordcheck import CoordCheck
from coordcheck.config.load import gate_from
from coordcheck.records import read
from coordcheck.records.mup_format import read_mup
from coordcheck.records.read import read_csv, read_json, read_parquet
from coordcheck.records.schema import check_records

READERS = {"x.parquet": read_parquet, "x.csv": read_csv, "x.json": lambda path: read_json(path, {"type": "object"})}


def records(widths=(64, 128, 256)):
    return synthetic({("fc", "activation", 0): power(0.1), ("fc", "delta", 1): power(0.2)}, widths=widths, seeds=2)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("what", ["missing", "directory", "pipe", "device", "empty", "garbage", "zeros", "large"])
@pytest.mark.timeout(20)
def test_what_is_no_file_of_its_format_is_refused(tmp_path, monkeypatch, name, what):
    path = tmp_path / name
    if what == "directory":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "large":
        with path.open("wb") as file:
            file.truncate(1 << 40)  # a hole, which takes no room
    elif what != "missing":
        path.write_bytes({"empty": b"", "garbage": b"\xff\xfe\x00\xd8PAR1" * 999, "zeros": b"\x00" * 9999}[what])
    rule = {"missing": "No such file", "directory": "it is a directory", "pipe": "it is a pipe", "device": "or device"}
    rule["large"] = r"holds at most \d+ MiB; it has 1048576"
    if what == "zeros" and name == "x.csv":
        assert read_csv(path).empty  # a line without an end: a header of one strange name
        return
    with pytest.raises(ValueError, match=f"{name} .*{rule.get(what, '')}.*For example"):
        READERS[name](path)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "1e999 is beyond the numbers of a float"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"a": ' + "9" * 5000 + "}", "must be JSON"),
        ("[" * 100_000, "goes deeper"),
        ('{"a":' * 60 + "1" + "}" * 60, "goes deeper"),
        ("[1, 2]", r"does not fit at \$: type \"object\"; got \[1, 2\]"),
        ('{"n": -1}', r"does not fit at \$.n: minimum 0; got -1"),
        ('{"n": true}', r"does not fit at \$.n: type \"integer\"; got True"),
        ('{"n": "\\u001b[31m' + "x" * 9999 + '"}', r"\$.n: type \"integer\"; got '.x1b.31mx+…x+'"),
        ('{"a": 1', "must be JSON"),
    ],
)
def test_json_that_is_not_strict_or_does_not_fit(tmp_path, text, rule):
    (tmp_path / "x.json").write_text(text)
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}}
    with pytest.raises(ValueError, match=f"x.json .*{rule}") as error:
        read_json(tmp_path / "x.json", schema)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_a_parquet_file_that_unpacks_to_more_than_the_memory(tmp_path, monkeypatch):
    """Text that is stored once, a run of equal numbers, and a footer that claims more than there is."""
    name = pa.DictionaryArray.from_arrays(pa.array(np.zeros(4000, dtype=np.int32)), pa.array(["x" * 1_000_000]))
    parquet.write_table(pa.table({"module": name}), tmp_path / "text.parquet")
    assert (tmp_path / "text.parquet").stat().st_size < 2_000_000
    with pytest.raises(
        ValueError, match=r"text.parquet may hold 1024 MiB of text in a column; 'module' has up to 3814"
    ):
        read_parquet(tmp_path / "text.parquet")
    monkeypatch.setattr(read, "MOST_ROWS", 1000)
    pd.DataFrame({"l1": np.zeros(1001)}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"may hold 1000 rows, .* it claims 1001 rows"):
        read_parquet(tmp_path / "rows.parquet")


def test_parquet_columns_are_numbers_or_text_and_stand_once(tmp_path):
    parquet.write_table(pa.table({"a": [[1, 2]]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"columns of numbers or text; 'a' is of type list<"):
        read_parquet(tmp_path / "x.parquet")
    parquet.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"each column once; these stand twice: \['a'\]"):
        read_parquet(tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(ValueError, match=r"each column once; these stand twice: \['a'\]"):
        read_csv(tmp_path / "x.csv")


def test_what_pandas_says_of_a_frame_is_not_believed(tmp_path):
    table = pa.table({"a": [1]}).replace_schema_metadata({"pandas": "[" * 99_999, "PANDAS_ATTRS": '{"classes": 4}'})
    parquet.write_table(table, tmp_path / "x.parquet")
    frame = read_parquet(tmp_path / "x.parquet")
    assert frame["a"].tolist() == [1] and frame.attrs == {"classes": 4}


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("width", 0, "a whole number from 1 on in column 'width'; row 3 has 0"),
        ("width", 64.5, "a whole number from 1 on in column 'width'"),
        ("width", float("nan"), "a whole number from 1 on"),
        ("width", float("inf"), "a whole number from 1 on"),
        ("seed", 0.5, "a whole number in column 'seed'"),
        ("step", -1, "a whole number from 0 on in column 'step'"),
        ("order", -1, "a whole number from 0 on in column 'order'"),
        ("l1", -1e-9, "a number that is not negative, or NaN in column 'l1'; row 3"),
        ("rms", float("-inf"), "column 'rms'"),
        ("max", "three", "column 'max'"),
        ("l1", True, "column 'l1'"),
        ("nonfinite", float("nan"), "a number that is not negative in column 'nonfinite'"),
        ("count", -1, "column 'count'"),
        ("module", None, "text in column 'module'; row 3 has nan"),
        ("module", 3, "text in column 'module'"),
        ("role", 3, "text, or nothing in column 'role'"),
        ("kind", "activations", r"kind of a record is one of .* got \['activations'\]"),
        ("cell", None, "a word or a number in column 'cell'"),
        ("cell", [1], "a word or a number in column 'cell'"),
    ],
)
def test_every_value_is_what_its_column_holds(column, value, rule):
    frame = records()
    frame.insert(0, "cell", "gpt")
    values = frame[column].astype(object)
    values.iloc[3] = value
    frame[column] = values.infer_objects() if not isinstance(value, bool) else values
    with pytest.raises(ValueError, match=rule):
        check_records(frame)


def test_each_run_has_one_record_of_a_curve():
    frame = records()
    with pytest.raises(ValueError, match=r"1 rows are there again, the first: width 64, seed 0, step 0, module fc"):
        check_records(pd.concat([frame, frame.head(1)]))


@pytest.mark.parametrize("name", ["size", "log", "slope", "verdict"])
def test_a_column_of_the_cell_may_not_have_the_name_of_another(name):
    frame = records()
    frame.insert(0, name, "gpt")
    with pytest.raises(ValueError, match=f"stand .*{name}|of another meaning are .*{name}"):
        check_records(frame)


def test_whole_numbers_may_stand_as_floats_and_a_diverged_run_is_data(gate):
    frame = records().astype({"width": float, "seed": float, "step": float})
    frame.loc[0, ["l1", "nonfinite"]] = [float("inf"), 3]
    checked = check_records(frame)
    assert checked["width"].dtype == "int64"
    assert CoordCheck.from_records(frame, gate).verdict == "fail"


def test_a_file_of_records_is_named(tmp_path):
    frame = records()
    frame.loc[2, "l1"] = -1.0
    frame.to_parquet(tmp_path / "records.parquet")
    with pytest.raises(ValueError, match=r"records.parquet: records hold .* column 'l1'; row 2 has .*-1.0"):
        CoordCheck.load(tmp_path)


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ("64,fc,1,abc", r"must hold a number in column 'l1', row 1; got 'abc'"),
        ("64,fc,0,1.0", r"where step is t - 1: .* column 'step'"),
        ("-64,fc,1,1.0", r"column 'width'"),
        ("64.5,fc,1,1.0", r"column 'width'"),
        ("64,fc,1,-1.0", r"column 'l1'"),
        ("64,fc,1,1.0,9,9", r"no CSV file that can be read"),
    ],
)
def test_a_frame_of_mup_holds_numbers(tmp_path, row, rule):
    (tmp_path / "coords.csv").write_text(f"width,module,t,l1\n{row}\n128,fc,1,1.0\n256,fc,1,1.0\n")
    with pytest.raises(ValueError, match=f"coords.csv.*{rule}"):
        read_mup(tmp_path / "coords.csv")


def test_numbers_of_csv_are_read_to_the_last_bit(tmp_path):
    sizes = np.random.default_rng(0).lognormal(size=500)
    pd.DataFrame({"width": 64, "module": "fc", "t": 1, "l1": sizes}).to_csv(tmp_path / "c.csv", index=False)
    assert read_mup(tmp_path / "c.csv")["l1"].tolist() == sizes.tolist()


@pytest.fixture
def saved(tmp_path, gate):
    """A check's directory, and a function that changes what verdict.json says."""
    CoordCheck.from_records(records(), gate).save(tmp_path)
    path = tmp_path / "verdict.json"

    def change(place, value):
        said = json.loads(path.read_text())
        *outer, key = place
        inner = said
        for name in outer:
            inner = inner[name]
        inner[key] = value
        path.write_text(json.dumps(said))

    return tmp_path, change


@pytest.mark.parametrize(
    ("place", "value", "rule"),
    [
        (("control", "saw"), "yes", r"verdict.json does not fit at \$.control.saw"),
        (("control", "power"), 9, r"\$.control: additionalProperties false"),
        (("skipped",), "all", r"\$.skipped: type \"array\""),
        (("config",), None, r"\$.config: type \"object\""),
        (("config", "gate"), {}, r"verdict.json: `gate` does not fit"),
        (("config", "gate", "confidence"), 2, r"verdict.json: `gate.confidence` lies between 0 and 1; got 2"),
        (("config", "gate", "confidence"), "much", r"verdict.json: `gate` does not fit its schema"),
        (
            ("config", "gate", "tolerance", "explodes"),
            {},
            r"verdict.json: `gate.tolerance` has no number for \['activation', 'delta'\]",
        ),
        (
            ("config", "gate", "tolerance", "vanishes", "delta"),
            [],
            r"`gate.tolerance.vanishes` has numbers; got others for \['delta'\]",
        ),
        (("config", "gate", "expect"), "???", r"verdict.json: `gate` does not fit its schema"),
        (("config", "parameters"), {"64": 10**400}, r"\$.config.parameters"),
    ],
)
def test_a_verdict_that_no_check_wrote(saved, place, value, rule):
    directory, change = saved
    change(place, value)
    with pytest.raises(ValueError, match=rule) as error:
        CoordCheck.load(directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("expect",), "${oc.env:SECRET}"),
        (("confidence",), "${oc.env:SECRET}"),
        (("tolerance", "explodes", "delta"), "${oc.decode:${oc.env:SECRET}}"),
        (("tolerance", "explodes"), "${oc.env:SECRET}"),
        (("tolerance", "explodes", "${oc.env:SECRET}"), 1),
    ],
)
def test_nothing_in_a_verdict_is_resolved(saved, monkeypatch, place, value):
    monkeypatch.setenv("SECRET", "0.123456")
    directory, change = saved
    change(("config", "gate", *place), value)
    with pytest.raises(ValueError, match="holds plain values") as error:
        CoordCheck.load(directory)
    assert "0.123456" not in str(error.value) and "${oc." in str(error.value)
    with pytest.raises(ValueError, match=r"has named values; got '\${oc.env:SECRET}'"):
        gate_from("${oc.env:SECRET}")
