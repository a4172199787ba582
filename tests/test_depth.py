"""Checks over depths: our GPT in CompleteP and without it, and a residual network written here."""

import pandas as pd
import pytest
import torch
from torch import nn

import coordcheck
from coordcheck.check import check_config
from coordcheck.config.load import load
from coordcheck.records.schema import RECORD_COLUMNS
from coordcheck.report.markdown import check_markdown

SMALL = ["axis=depth", "base_width=32", "widths=[32,64,128]", "model.head_size=16", "depths=[2,4,8]", "data=zipf"]
SMALL += ["data.vocab_size=64", "data.batch=4", "data.context=16", "seeds=4", "steps=3", "plots=null"]


class Block(nn.Module):
    def __init__(self, multiplier, inside):
        super().__init__()
        self.norm, self.fc, self.proj = nn.RMSNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.branch = nn.Sequential(self.norm, self.fc, nn.ReLU(), self.proj)
        self.multiplier = multiplier
        if inside:
            self.branch.register_forward_hook(lambda module, inputs, output: output * multiplier)
            self.multiplier = 1.0

    def forward(self, x):
        return x + self.multiplier * self.branch(x)


class Residual(nn.Module):
    def __init__(self, depth, alpha, inside=False):
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.layers = nn.Sequential(*(Block((depth / 2) ** -alpha, inside) for _ in range(depth)))
        self.norm, self.head = nn.RMSNorm(32), nn.Linear(32, 64)

    def forward(self, tokens):
        return self.head(self.norm(self.layers(self.embed(tokens))))


def batch(seed):
    tokens = torch.randint(64, (8, 17), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def checked(alpha=1.0, rate=0.0, inside=False, **options):
    def build(depth):
        model = Residual(depth, alpha, inside)
        return model, torch.optim.Adam(model.parameters(), lr=1e-3 * (depth / 2) ** rate)

    options = {"steps": 3, "seeds": 4, "control": False, "device": "cpu"} | options
    return coordcheck.coord_check(build, batch, depths=(2, 4, 8, 16), **options)


def at_fault(check):
    return {(row.module, row.kind) for row in check.slopes.itertuples() if row.verdict in ("explodes", "vanishes")}


def test_completep_keeps_its_sizes_over_depths(tmp_path):
    check = check_config(load([*SMALL, "parametrization=completep", f"runs={tmp_path}"]))
    assert not at_fault(check) and check.control.saw
    assert check.axis == "depth" and check.cell().startswith("gpt width=32 head_size=16 · completep · untied")
    assert "· depths 2–8 (3) · 4 seeds" in check.cell()
    assert str(check.control).startswith(
        "Control (the same model without a multiplier of its branches; depths [2, 4, 8]"
    )
    check.save_text(tmp_path / "check")
    again = coordcheck.CoordCheck.load(tmp_path / "check")
    assert (again.cell(), again.verdict, again.axis) == (check.cell(), check.verdict, "depth")
    assert "(depth 2)" in check_markdown(again)


def test_without_a_multiplier_the_residual_stream_grows(tmp_path):
    check = check_config(load([*SMALL, "parametrization=mup", "control=false", f"runs={tmp_path}"]))
    assert check.verdict == "fail"
    (fault,) = [finding for finding in check.findings if finding.fault]
    assert (fault.fault, fault.module, fault.step) == ("multiplier", "blocks.(last)", 0)
    assert "grows like depth^+0." in fault.cause and "base depth / depth" in fault.advice
    assert ("blocks.(last)", "delta") in at_fault(check)
    said = f"{check} {check_markdown(check)}"
    assert "width^" not in said and "widths" not in said


@pytest.mark.parametrize("inside", [False, True])
def test_a_branch_may_be_multiplied_where_it_is_added_or_within(inside):
    assert not at_fault(checked(inside=inside))


def test_half_a_multiplier_lets_changes_grow():
    """With depth^-1/2 and one learning rate, changes of depth branches add up to depth^1/2 (arXiv 2310.02244)."""
    check = checked(alpha=0.5)
    assert check.findings[0].fault == "multiplier" and check.findings[0].kind == "delta"
    assert check.findings[0].slope == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("rate", [1.0, -1.0])
def test_a_learning_rate_that_scales_with_depth_is_told(rate):
    check = checked(rate=rate)
    assert (check.findings[0].fault, check.findings[0].module) == ("learning_rate", "embed")
    assert check.findings[0].slope == pytest.approx(rate, abs=0.02)


def test_the_control_of_ones_own_model_is_a_learning_rate_that_grows():
    check = checked(control=None, modules=["embed", "layers.(last)", "head"])
    assert check.control.saw and check.control.twin == "every learning rate times depth / smallest depth"
    assert {*check.slopes["module"]} == {"embed", "layers.(last)", "head", "(loss)"}


def test_what_is_asked_of_depth_must_be_known_of_it():
    with pytest.raises(ValueError, match=r"`depths` needs at least 3 distinct.*got \[2, 4\].*depths=\[2,4,8,16\]"):
        coordcheck.coord_check(lambda depth: Residual(depth, 1.0), batch, depths=(2, 4))
    with pytest.raises(
        ValueError, match=r"`expect` is completep where depth varies.*got ntk\. For example expect=compl"
    ):
        checked(expect="ntk")
    with pytest.raises(ValueError, match=r"`accept` names what an audit finds.*got \['a.weight: lr'\]"):
        checked(accept=["a.weight: lr"])
    for overrides, pattern in (
        (["model=t5"], r"axis=depth takes model=gpt, hf or own.*got model=t5"),
        (["gate.expect=sp"], r"`gate.expect` is completep where depth varies.*got sp"),
        (["depths=[2]"], r"`depths` needs at least 3"),
        (["depths=[2,4,100000]"], r"`depths` are at most 10000; got \[2, 4, 100000\]"),
        (["base_depth=0"], r"`base_depth` is at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=pattern):
            load(["axis=depth", *overrides])


@pytest.mark.parametrize("command", ["audit", "cure", "transfer"])
def test_what_goes_by_width_says_so(command):
    from coordcheck.auditing import audit_config
    from coordcheck.curing import cure_config
    from coordcheck.transferring import transfer_config

    run = {"audit": audit_config, "cure": cure_config, "transfer": transfer_config}[command]
    with pytest.raises(ValueError, match=f"coordcheck-{command} goes by exponents of width; got axis=depth"):
        run(load(["axis=depth"]))


def judged_by_hand(gate, slopes):
    """A check of records that somebody wrote: sizes are exact powers of depth, all else keeps its size."""
    modules = ["embed", "h.(first).fc", "h.(first)", "h.(middle).fc", "h.(middle)", "h.(last)", "head"]
    rows = []
    for depth in (2, 4, 8):
        for seed in (0, 1, 2):
            for order, module in enumerate(modules):
                for kind, step in (("activation", 0), ("activation", 1), ("delta", 1), ("effective_update", 1)):
                    size = depth ** slopes.get((module, kind), 0.0) * (1 + 0.001 * seed)
                    rows.append(("depth", depth, seed, step, module, order, "hidden", kind, size, size, size, 0, 64))
    names = ["axis", *RECORD_COLUMNS]
    return coordcheck.CoordCheck.from_records(pd.DataFrame(rows, columns=names), gate)


@pytest.mark.parametrize(
    ("slopes", "fault"),
    [
        ({}, None),
        ({("h.(middle).fc", "effective_update"): 0.8}, ("unexplained", "h.(middle).fc")),
        ({("h.(first).fc", "effective_update"): 0.8}, ("learning_rate", "h.(first).fc")),
        ({("h.(last)", "delta"): 1.0, ("h.(middle).fc", "effective_update"): 0.8}, ("multiplier", "h.(last)")),
        ({("h.(last)", "delta"): 1.0, ("h.(first).fc", "effective_update"): 0.8}, ("learning_rate", "h.(first).fc")),
        ({("h.(last)", "delta"): -1.0}, ("unexplained", "h.(last)")),
        ({("h.(last)", "activation"): -0.5, ("h.(first)", "delta"): -1.0}, None),
    ],
)
def test_where_a_fault_begins_is_told_from_what_only_follows(gate, slopes, fault):
    check = judged_by_hand(gate, slopes)
    assert check.gate.expect == "completep"
    found = [finding for finding in check.findings if finding.fault]
    assert [(finding.fault, finding.module) for finding in found] == ([] if fault is None else [fault])
