"""Where a fault starts and what it is, on frames with known exponents and audits made by hand."""

import numpy as np
import pandas as pd
import pytest

from conftest import power, synthetic
from coordcheck import CoordCheck
from coordcheck.judge.control import Control
from coordcheck.judge.diagnose.evidence import FAULT_CLASSES
from coordcheck.result import Audit

WIDTHS = [64, 128, 256]
SAW, BLIND = Control("twin", WIDTHS, 3, saw=True), Control("twin", WIDTHS, 3, saw=False)
ROLES = {"wte": "input", "head": "readout", "(model)": None, "attn[attention_logits]": "attention_logits"}


def zero(width, seed):
    return 0.0


def records(curves, counts=None):
    """Records of curves; `counts` gives a module's number of entries by width and step."""
    frame = synthetic({key: of if callable(of) else power(of) for key, of in curves.items()})
    frame["role"] = frame["module"].map(lambda name: ROLES.get(name, "hidden")).astype("string")
    fixed = frame["module"].isin(("head", "(model)", "attn[attention_logits]"))
    frame["count"] = frame["count"].where(~fixed, 8)
    for module, of in (counts or {}).items():
        mine = frame["module"] == module
        frame.loc[mine, "count"] = [of(w, s) for w, s in frame.loc[mine, ["width", "step"]].to_numpy()]
    return frame


def parameter(name, **facts):
    """A hidden weight as muP wants it, but for `facts`."""
    module = name.removesuffix(".weight")
    role = ROLES.get(module, "hidden")
    std, lr = {"input": (0.0, 0.0), "readout": (0.0, 0.0)}.get(role, (-0.5, -1.0))
    row = {"parameter": name, "module": module, "role": role, "tied_to": "", "shape": "256 x 256", "entries": 65536}
    row |= {"fan_in": 256, "fan_out": 256, "init_std": 0.1, "std_fan_in": 1.0, "std_exponent": std, "lr_exponent": lr}
    row |= {"writes": 2, "operations": 2, "unwritten": 0, "repeats": 1, "conflict": False, "groups": 1}
    row |= {"rules": "Linear.reset_parameters (std 0.1)", "update": "adam", "multiplier_exponent": np.nan}
    row |= {"decay_exponent": np.nan, "effective_decay_exponent": np.nan, "eps_exponent": 0.0, **facts}
    return {**row, "std_low": row["std_exponent"] - 0.01, "std_high": row["std_exponent"] + 0.01}


def check_of(gate, curves, parameters=(), control=SAW, counts=None):
    audit = Audit.from_parameters(pd.DataFrame(parameters), WIDTHS, "mup", 0.1) if parameters else None
    return CoordCheck.from_records(records(curves, counts), gate, control=control, audit=audit)


def first(*arguments, **keywords):
    return check_of(*arguments, **keywords).findings[0]


def downstream(kind, step, *modules, exponent=0.5):
    return {(module, kind, step): exponent for module in modules}


def test_what_only_follows_has_no_finding(gate):
    curves = {("wte", "activation", 0): 0.0, **downstream("activation", 0, "fc", "act", "proj", "(model)")}
    curves |= downstream("delta", 1, "wte", "fc", "act", "proj")
    check = check_of(gate, curves, [parameter("wte.weight"), parameter("fc.weight", std_exponent=0.0)])
    (finding,) = check.findings
    assert (finding.fault, finding.module, finding.parameter, finding.step) == ("init", "fc", "fc.weight", 0)
    assert finding.explains == 8
    assert check.verdict == "fail"
    assert f"8 of 9 curves are at fault. First at fault: {finding}" in check.sentence()


def test_lost_base_shapes_explain_the_logits_of_step_0_and_their_updates(gate):
    lost = parameter("head.weight", class_multiplier_exponent=-1.0, multiplier_exponent=0.0, returned=True)
    lost |= {"used_in": "linear in head", "after_exponent": 0.0, "lr_exponent": 0.0}
    curves = {("head", "activation", 0): 0.5, ("head", "effective_update", 1): 1.0, ("fc", "delta", 1): 0.8}
    curves[("fc", "activation", 0)] = 0.0
    check = check_of(gate, curves, [parameter("fc.weight", lr_exponent=0.0), lost])
    assert [(f.fault, f.module, f.step) for f in check.findings if f.fault] == [
        ("base_shapes", "head", 0),
        ("learning_rate", "fc", 1),
    ]


def test_a_finding_says_what_is_seen_why_and_what_to_do(gate):
    curves = {("fc", "activation", 0): 0.0, ("fc", "effective_update", 1): 0.87, ("fc", "delta", 1): 0.4}
    assert str(first(gate, curves, [parameter("fc.weight", lr_exponent=0.0)])) == (
        "fc.weight: its updates grow like width^+0.87 at step 1 (expected +0.00). Its learning rate scales like "
        "width^+0.00; expected -1.00 (hidden weight under an optimizer like Adam). Put it in a parameter group with "
        "lr / width_mult, for example mup.MuAdam."
    )


ATTENTION = [parameter(f"attn.{name}.weight") for name in "qkv"]
FORGOTTEN = {"lr_exponent": 0.0, "shape": "1024 x 256"}


@pytest.mark.parametrize(
    ("fault", "module", "parameters"),
    [
        ("init", "fc", [parameter("fc.weight", std_exponent=0.0)]),
        ("reinitialized", "fc", [parameter("fc.weight", std_exponent=0.0, conflict=True, repeats=2)]),
        ("init", "fc", [parameter("fc.weight", unwritten=5)]),
        ("shared_readout", "wte", [parameter("wte.weight", std_exponent=0.5, tied_to="head.weight")]),
        ("learning_rate", "fc", [parameter("fc.weight", lr_exponent=0.0), parameter("act.weight")]),
        ("learning_rate", "fc", [parameter("fc.weight", groups=2)]),
        ("untrained", "fc", [parameter("fc.weight", groups=0)]),
        ("epsilon", "fc", [parameter("fc.weight", eps_exponent=1.0)]),
        ("multiplier", "fc", [parameter("fc.weight", std_exponent=0.0, multiplier_exponent=-1.0)]),
        ("multiplier", "head", [parameter("head.weight", std_exponent=-0.5, lr_exponent=0.0)]),
        ("learning_rate", "head", [parameter("head.weight", std_exponent=-1.0, lr_exponent=0.0)]),
        ("base_shapes", "fc", [parameter("fc.weight", **FORGOTTEN), parameter("proj.weight", **FORGOTTEN), *ATTENTION]),
        (
            "width",
            "attn.k",
            [parameter("attn.k.weight", role="readout", std_exponent=-0.5, lr_exponent=0.0), *ATTENTION[::2]],
        ),
    ],
)
@pytest.mark.parametrize("seen", [True, False])
def test_what_the_audit_names_is_refined(gate, fault, module, parameters, seen):
    """Whether or not a curve shows it."""
    order = ["wte", "attn.q", "attn.k", "attn.v", "fc", "act", "proj", "head"]
    curves = {(name, "activation", 0): 0.0 for name in order}
    curves |= {(name, "effective_update", 1): 0.9 if seen and name == module else 0.0 for name in order}
    finding = first(gate, curves, parameters)
    assert (finding.fault, finding.module) == (fault, module)
    assert (finding.step, finding.explains) == ((1, 1) if seen else (None, 0))
    assert finding.advice


UNDECIDED = power(0.45, noise=0.3)
HEAD = parameter("head.weight", multiplier_exponent=-1.0)


@pytest.mark.parametrize(
    ("fault", "module", "curves", "parameters"),
    [
        ("nonfinite", "fc", {("fc", "activation", 0): lambda w, s: np.inf}, []),
        ("nonfinite", "fc", {("fc", "activation", 2): lambda w, s: np.inf}, []),
        ("untrained", "fc", {("fc", "effective_update", 3): zero, ("fc", "delta", 3): 0.0}, []),
        ("dead", "fc", {("fc", "activation", 2): zero, ("attn.q", "effective_update", 2): zero}, []),
        ("multiplier", "head", {("head", "activation", 0): 0.5}, [HEAD]),
        ("multiplier", "head", {("head", "activation", 0): -1.5}, [HEAD]),
        ("base_shapes", "head", {("head", "activation", 0): 0.5}, [HEAD, parameter("fc.weight", lr_exponent=0.0)]),
        ("multiplier", "attn[attention_logits]", {("attn[attention_logits]", "activation", 2): 0.5}, []),
        ("multiplier", "attn[attention_logits]", {("attn[attention_logits]", "activation", 0): -1.5}, []),
        ("multiplier", "fc", {("fc", "activation", 0): -1.0}, [parameter("fc.weight")]),
        (
            "learning_rate",
            "fc",
            {("fc", "effective_update", 2): 0.9, ("proj", "delta", 2): 0.5},
            [parameter("fc.weight")],
        ),
        (
            "learning_rate",
            "fc",
            {("fc", "delta", 2): 0.5, ("fc", "effective_update", 2): UNDECIDED},
            [parameter("fc.weight")],
        ),
        ("epsilon", "fc", {("fc", "effective_update", 1): -0.9}, [parameter("fc.weight")]),
        ("unexplained", "fc", {("fc", "delta", 1): 0.9}, [parameter("fc.weight")]),
        ("unexplained", "fc", {("fc", "effective_update", 1): 0.9}, []),
    ],
)
def test_what_only_curves_show(gate, fault, module, curves, parameters):
    check = check_of(gate, {("wte", "activation", 0): 0.0, **curves}, parameters)
    assert (check.findings[0].fault, check.findings[0].module) == (fault, module)
    assert check.findings[0].explains >= 1
    assert check.verdict == "fail"


@pytest.mark.parametrize(("slope", "verdict"), [(0.9, "fail"), (UNDECIDED, "inconclusive")])
@pytest.mark.parametrize(("std", "change"), [(-0.5, -0.5), (-1.0, None), (0.0, None)])
def test_a_router_that_drifts_is_told_how_its_init_must_shrink(gate, slope, verdict, std, change):
    """Unless its init is smaller already, or the audit finds it too large."""
    router = parameter("fc.weight", role="projection", std_exponent=std, multiplier_exponent=0.0)
    curves = {("wte", "activation", 0): 0.0, ("fc", "effective_update", 1): 0.0, ("fc", "delta", 1): slope}
    check = check_of(gate, curves, [router])
    asked = [finding.change for finding in check.findings if finding.quantity is None and finding.change is not None]
    assert [of.exponent for of in asked] == ([] if change is None else [change])
    if change is not None:
        assert (check.verdict, asked[0].quantity) == (verdict, "init_std")
        assert "gradient" in check.findings[0].cause and "1/width" in check.findings[0].advice


def test_what_cannot_be_explained_says_so_and_how_to_learn_more(gate):
    finding = first(gate, {("fc", "delta", 1): 0.9})
    assert "not known" in finding.cause
    assert "effective_update" in finding.advice
    assert "audit" in finding.advice


@pytest.mark.parametrize(("inside", "module"), [(0.5, "mlp.proj"), (0.0, "mlp")])
def test_a_container_repeats_its_last_child_unless_it_multiplies(gate, inside, module):
    curves = {("mlp.fc", "activation", 0): 0.0, ("mlp.proj", "activation", 0): inside, ("mlp", "activation", 0): 0.5}
    finding = first(gate, curves)
    assert (finding.fault, finding.module) == ("multiplier", module)


def test_heads_that_grow_without_shrinking_attention_are_seen_before_training(gate):
    curves = {("attn.q", "activation", 0): 0.0, ("attn[attention_logits]", "activation", 0): 0.0}
    check = check_of(gate, curves)
    assert check.findings[0].fault == "multiplier"
    assert "1/sqrt(head size)" in check.findings[0].cause
    assert check.verdict == "fail"
    more_heads = check_of(gate, curves, counts={"attn[attention_logits]": lambda w, s: 8 * w})
    assert more_heads.verdict == "pass"
    smaller = check_of(gate, {**curves, ("attn[attention_logits]", "activation", 0): -0.5})
    assert smaller.verdict == "pass"


def test_a_readout_whose_logits_are_multiplied_afterwards_passes(gate):
    """The readout is as much larger as its multiplier is missing, at every step."""
    sizes = {("activation", 0): -0.5, ("activation", 1): -0.2, ("delta", 1): -0.1}
    curves = {("head", *key): exponent + 1 for key, exponent in sizes.items()}
    curves |= {("(model)", *key): exponent for key, exponent in sizes.items()}
    curves |= {("head", "effective_update", 1): 1.0}
    check = check_of(gate, curves)
    assert check.verdict == "pass", check.findings
    assert check.slopes.query("module == 'head' and kind == 'effective_update'")["expected_high"].item() == 1.0
    curves[("head", "activation", 1)] = 0.9  # no constant power
    assert check_of(gate, curves).verdict == "fail"


def test_one_cause_of_several_parameters_is_told_once_with_all_names(gate):
    curves = {("wte", "activation", 0): 0.0, ("fc", "activation", 0): 0.5, ("proj", "activation", 0): 0.5}
    wrong = {"std_exponent": 0.0}
    check = check_of(gate, curves, [parameter("proj.weight", **wrong), parameter("fc.weight", **wrong)])
    (finding,) = check.findings
    assert (finding.module, finding.explains, finding.parameters) == ("fc", 2, ("fc.weight", "proj.weight"))
    assert finding.advice == "Make its std / sqrt(width_mult). The same holds for proj.weight (2 in all)."
    assert (finding.change.quantity, finding.change.exponent) == ("init_std", -0.5)


def test_of_two_faults_the_one_that_explains_more_comes_first(gate):
    curves = {("fc", "activation", 0): 0.5, ("proj", "activation", 0): 0.5, ("head", "effective_update", 1): 0.9}
    wrong = [parameter("proj.weight", std_exponent=0.0), parameter("fc.weight", conflict=True, std_exponent=0.0)]
    check = check_of(gate, curves, [parameter("head.weight", std_exponent=-1.0, lr_exponent=0.0), *wrong])
    assert [(f.module, f.explains) for f in check.findings] == [("fc", 3), ("proj", 2), ("head", 1)]


def test_decay_is_a_warning_unless_a_policy_is_chosen(gate):
    coupled = parameter("fc.weight", decay_exponent=0.0, effective_decay_exponent=-1.0)
    curves = {("fc", "activation", 0): 0.0}
    check = check_of(gate, curves, [coupled])
    assert (check.verdict, check.findings) == ("pass", [])
    assert [f.verdict for f in check.audit.findings] == ["decay_policy"]
    for policy, exponent in (("independent", 1.0), ("width^-1/2", 0.5)):
        chosen = Audit.from_parameters(pd.DataFrame([coupled]), WIDTHS, "mup", 0.1, policy)
        (finding,) = CoordCheck.from_records(records(curves), gate, control=SAW, audit=chosen).findings
        assert (finding.fault, finding.change.quantity, finding.change.exponent) == ("decay", "weight_decay", exponent)
    for policy in ("constant", "off"):
        assert Audit.from_parameters(pd.DataFrame([coupled]), WIDTHS, "mup", 0.1, policy).verdict == "pass"
    scaled = parameter("fc.weight", decay_exponent=1.0, effective_decay_exponent=0.0)
    assert Audit.from_parameters(pd.DataFrame([scaled]), WIDTHS, "mup", 0.1, "constant").verdict == "fail"


def test_a_learning_rate_does_not_explain_what_is_wrong_before_training(gate):
    curves = {("fc", "activation", 0): 0.5, ("head", "effective_update", 1): 0.9}
    rows = [parameter("fc.weight"), parameter("head.weight", std_exponent=-1.0, lr_exponent=0.0)]
    found = check_of(gate, curves, rows).findings
    assert [(f.module, f.fault) for f in found] == [("fc", "multiplier"), ("head", "learning_rate")]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"(model)": lambda w, s: 64 if s == 0 else 128}, "more entries at a later step"),
        ({"(model)": lambda w, s: 4096 // w}, r"entries of \(model\) scales like width\^-1.00"),
    ],
)
def test_runs_that_differ_in_what_they_must_share_tell_nothing_of_the_model(gate, counts, said):
    curves = {(m, "activation", s): 0.5 for m in ("fc", "head", "(model)") for s in (0, 1)}
    check = check_of(gate, curves, counts=counts)
    assert (check.verdict, check.findings[0].fault) == ("inconclusive", "harness")
    assert pd.Series(check.findings[0].cause).str.contains(said).all()
    assert check.findings[0].cause in check.sentence()


def test_experts_may_have_other_shares_of_the_batch_at_each_step(gate):
    curves = {("fc", "activation", s): 0.0 for s in (0, 1)}
    assert check_of(gate, curves, counts={"fc": lambda w, s: 64 + s * w}).verdict == "pass"


def test_changes_that_drown_in_rounding_are_too_gentle(gate):
    curves = {("fc", "activation", 1): 0.0, ("fc", "delta", 1): lambda w, s: 1e-7 * power(-0.9)(w, s)}
    check = check_of(gate, curves)
    assert (check.verdict, check.findings[0].fault) == ("inconclusive", "gentle")
    assert "rounding" in check.sentence()


@pytest.mark.parametrize("change", [0.0, 1e-7])
def test_memory_that_nothing_wrote_is_named_whatever_it_held(gate, change):
    """Huge numbers make every change one of rounding; none of that is what the user must mend."""
    curves = {("fc", "activation", 1): 0.0, ("fc", "delta", 1): lambda w, s: change * power(-0.9)(w, s)}
    check = check_of(gate, curves, [parameter("fc.weight", unwritten=5)])
    assert check.verdict == "fail"
    assert [finding.fault for finding in check.findings] == ["init"]


def test_waiting_for_the_first_gradient_is_not_too_gentle(gate):
    """Behind a zero readout nothing else moves at step 1."""
    curves = {("fc", "activation", 1): 0.0, ("fc", "delta", 1): zero, ("proj", "delta", 1): zero}
    curves |= {("head", "activation", 0): zero, ("head", "activation", 1): 0.9, ("head", "delta", 1): 0.9}
    check = check_of(gate, curves)
    assert (check.verdict, check.findings[0].module) == ("fail", "head")


def test_a_control_that_passes_is_too_gentle_but_hides_no_fault_that_shows(gate):
    blind = check_of(gate, {("fc", "activation", 1): 0.0}, control=BLIND)
    assert (blind.verdict, blind.findings[0].fault) == ("inconclusive", "gentle")
    seeing = check_of(gate, {("fc", "activation", 0): 0.5}, control=BLIND)
    assert (seeing.verdict, [f.fault for f in seeing.findings]) == ("fail", ["multiplier"])


def test_a_stored_check_is_diagnosed_anew(gate, tmp_path):
    check = check_of(gate, {("fc", "effective_update", 1): 0.9}, [parameter("fc.weight", lr_exponent=0.0)])
    check.save(tmp_path)
    loaded = CoordCheck.load(tmp_path)
    assert loaded.findings == check.findings
    assert loaded.findings[0].fault == "learning_rate"
    assert str(check.findings[0]) in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("names", ["blocks.{}.mlp.{}.weight", "Block_{}.{}.kernel", "block_{}_{}.kernel"])
def test_a_size_that_was_typed_in_is_seen_however_blocks_are_numbered(names):
    up, down, typed, reads = (names.format(block, layer) for block in (0, 1) for layer in ("up", "down"))
    rows = [parameter(up), parameter(down), parameter(typed, role="projection", fan_out=128)]
    rows.append(parameter(reads, role="input", fan_in=128, std_exponent=0.0, lr_exponent=0.0))
    audit = Audit.from_parameters(pd.DataFrame(rows), WIDTHS, "mup", 0.1)
    assert [(finding.verdict, finding.parameter) for finding in audit.findings] == [("width", typed)]
    assert f"128 entries at every width, but that of {up} grows" in str(audit.findings[0])
    meant = pd.DataFrame(rows[:3])  # a code that leaves its block
    assert Audit.from_parameters(meant, WIDTHS, "mup", 0.1).verdict == "pass"


def test_every_class_has_its_meaning():
    assert all(FAULT_CLASSES.values())
