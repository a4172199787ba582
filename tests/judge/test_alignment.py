"""Alignment exponents against powers that were put in."""

import numpy as np
import pandas as pd
import pytest

from conftest import power, synthetic
from coordcheck.judge.alignment import alignments
from coordcheck.judge.judgement import Judgement
from coordcheck.report.tables import alignment_rows


def layer(name, alignment, role="hidden", update=-1.0, met=0.25):
    """Records of a layer whose update, of width^update, meets inputs of width^met."""
    own = synthetic({(name, "effective_update", 1): power(alignment + update + met)}, role=role)
    own["input_rms"] = [width**met for width in own["width"]]
    changes = synthetic({(f"{name}.weight", "update", 1): power(update)}, role=role)
    return pd.concat([own, changes.assign(spectral=changes["rms"])], ignore_index=True)


def test_aligned_and_independent_terms_are_told_apart():
    records = pd.concat([layer("a", 1.0), layer("b", 0.5), layer("head", 0.75, role="readout")], ignore_index=True)
    found = alignments(records).set_index("module")
    assert found["alignment"].to_dict() == pytest.approx({"a": 1.0, "b": 0.5, "head": 0.75})
    assert (found["n_widths"] == 4).all()
    assert found["ci_low"].le(found["alignment"] + 1e-9).all()


def test_what_sums_over_nothing_that_grows_has_none():
    assert not len(alignments(layer("wte", 0.0, role="input")))


@pytest.mark.parametrize("kind", ["effective_update", "update"])
def test_without_one_of_the_kinds_there_is_nothing_to_tell(kind):
    records = layer("a", 1.0)
    assert not len(alignments(records[records["kind"] != kind]))


def test_older_records_have_none(gate):
    records = synthetic({("a", "effective_update", 1): power(0.0)})
    assert not len(Judgement.from_records(records, gate).alignments)


def test_an_update_of_zero_leaves_its_step_out():
    records = layer("a", 1.0)
    records.loc[records["kind"] == "update", "rms"] = 0.0
    with np.errstate(divide="raise"):
        assert not len(alignments(records))


def test_steps_are_columns_of_the_table():
    records = layer("a", 1.0)
    both = pd.concat([records, records.assign(step=2)], ignore_index=True)
    table = alignment_rows(alignments(both))
    assert list(table.columns) == ["module", "role", "step 1", "step 2"]
    assert table.iloc[0]["step 2"].startswith("+1.00 [")
