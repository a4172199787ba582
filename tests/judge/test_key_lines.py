"""Lines on which verdicts hang, each held by a test that fails if it is changed."""

import math

import pandas as pd
import pytest

from conftest import power, synthetic
from coordcheck.config.schema import Expect
from coordcheck.judge.control import judge_control
from coordcheck.judge.diagnose.evidence import by_locality
from coordcheck.judge.loss import InitialLoss
from coordcheck.judge.slopes import fit
from coordcheck.judge.verdict import judge
from coordcheck.records.schema import CLASSES


def judged(gate, exponents, role):
    """Slopes with verdicts by module, kind and step; the role of a module is given by name."""
    records = synthetic({key: power(exponent) for key, exponent in exponents.items()})
    records["role"] = records["module"].map(role).astype("string")
    return judge(fit(records, gate.confidence), gate).set_index(["module", "kind", "step"])


def test_a_readout_is_as_large_as_its_missing_multiplier_only_if_the_models_output_is_right(gate):
    """A model whose own output explodes excuses no readout."""
    role = {"head": "readout", "(model)": "readout"}
    for returned, verdict in ((-0.5, "pass"), (0.6, "explodes")):
        exponents = {("head", "activation", 1): returned + 1, ("(model)", "activation", 1): returned}
        curves = judged(gate, exponents, role)
        assert curves["verdict"].tolist() == [verdict, verdict]
        assert curves["expected_high"]["head", "activation", 1] == pytest.approx(1.0 if verdict == "pass" else 0.0)


def test_what_differs_by_less_than_exactness_is_not_multiplied(gate):
    role = {"head": "readout", "(model)": "readout"}
    almost = {("head", "activation", 1): -0.295, ("(model)", "activation", 1): -0.3}
    assert judged(gate, almost, role)["expected_high"].tolist() == [0.0, 0.0]


def test_the_widest_model_decides_whether_the_initial_loss_is_too_high():
    chance = math.log(10)
    for narrow, wide, too_high in ((chance + 9, chance, False), (chance, chance + 9, True)):
        of = {64: narrow, 128: (narrow + wide) / 2, 256: wide}
        records = synthetic(
            {("(loss)", "activation", 0): lambda w, s, of=of: of[w]}, widths=(256, 64, 128), role="loss"
        )
        records.attrs[CLASSES] = 10
        loss = InitialLoss.of(records)
        assert (loss.narrowest, loss.widest) == (pytest.approx(narrow), pytest.approx(wide))
        assert loss.exceeds_chance(1.0) is too_high


def test_in_a_control_of_activations_alone_step_0_says_nothing_of_training(gate):
    before = synthetic({("fc", "activation", 0): power(0.9), ("fc", "activation", 1): power(0.0)})
    assert judge_control(before, gate, "twin").saw is False
    after = synthetic({("fc", "activation", 0): power(0.0), ("fc", "activation", 1): power(0.9)})
    assert judge_control(after, gate, "twin").saw is True


@pytest.mark.parametrize(("exponent", "verdict"), [(-0.4, "vanishes"), (0.0, "pass"), (1.9, "pass"), (2.3, "explodes")])
def test_a_change_in_standard_parametrization_grows_like_width_squared_at_most(gate, exponent, verdict):
    gate.expect = Expect.sp
    curves = judged(gate, {("fc", "delta", 1): exponent}, {"fc": "hidden"})
    assert curves["verdict"].item() == verdict


def test_a_fault_starts_at_a_curve_before_it_starts_at_a_gradient_of_the_same_step():
    """Though gradients come first in forward order, they carry what comes after."""
    kinds = ["gradient", "activation", "delta", "effective_update"]
    curves = pd.DataFrame({"kind": kinds, "order": range(4), "step": 1, "role": "hidden", "verdict": "explodes"})
    assert by_locality(curves)["kind"].tolist() == ["effective_update", "delta", "activation", "gradient"]
