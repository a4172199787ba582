"""The cure command: what it writes, says and returns, whatever was found."""

import sys
from types import SimpleNamespace

import pytest

import coordcheck.curing
from conftest import power, synthetic
from coordcheck import CoordCheck, Cure
from coordcheck.cli import cure
from coordcheck.curing import Cured

TABLE = {"version": 1, "base_width": 64, "entries": [{"parameters": ["fc.weight"], "role": "hidden", "lr": -1}]}


@pytest.mark.parametrize(("exponent", "code"), [(0.0, 4), (0.9, 3)])
def test_both_checks_are_on_one_page_and_the_exit_code_is_that_after(
    tmp_path, monkeypatch, capsys, gate, exponent, code
):
    before, after = (
        CoordCheck.from_records(synthetic({("fc", "activation", 0): of}), gate)
        for of in (power(1.0, 0.01), power(exponent, 0.01 if exponent else 0.5))
    )
    result = Cured(Cure.from_dict(TABLE), before, after, SimpleNamespace())
    monkeypatch.setattr(coordcheck.curing, "cure_config", lambda config, target: result)
    monkeypatch.setattr(CoordCheck, "save_pictures", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["coordcheck-cure", "--output", str(tmp_path), "--as", "python"])
    with pytest.raises(SystemExit) as ended:
        cure.main()
    assert ended.value.code == code
    out = capsys.readouterr().out
    assert "before  FAIL: 1 of 1 curves at fault" in out and after.sentence() in out.replace("\n", " ")
    assert "cure.html" in out and "import torch" in out
    assert {"cure.yaml", "cure.png", "cure.html", "before", "after"} <= {path.name for path in tmp_path.iterdir()}
    page = (tmp_path / "cure.html").read_text()
    assert 'href="before/report.html"' in page and "<td>fc</td>" in page
