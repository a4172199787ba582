"""The whole flow: the facts a check must find, on our models and on others', and what its result keeps."""

import base64
import json
import re
import subprocess
import sys
import time
from collections import namedtuple
from html import escape
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from conftest import plan_of, power, synthetic, tiny_config
from coordcheck import CoordCheck, coord_check
from coordcheck.check import check_config, queue_of
from coordcheck.config.load import load
from coordcheck.judge.control import Control, judge_control
from coordcheck.judge.looks import narrow
from coordcheck.models.families import make_cell
from coordcheck.report.markdown import audit_markdown, check_markdown
from coordcheck.run.device import to_device
from coordcheck.run.loss import default_loss

WIDTHS = ["widths=[64,128,256,512]", "model.depth=2", "data.batch=4"]


def checked(tmp_path, *overrides):
    return check_config(load([*WIDTHS, f"runs={tmp_path}", "plots=null", *overrides]))


def slope(check, module, kind, step):
    found = check.slopes.query("module == @module and kind == @kind and step == @step")
    return found["slope"].item()


@pytest.fixture(scope="module")
def mup_check(tmp_path_factory):
    return checked(tmp_path_factory.mktemp("runs"))


def test_mup_passes_and_its_control_fails(mup_check):
    assert mup_check.verdict == "pass", mup_check.findings
    assert mup_check.findings == []
    assert mup_check.control.saw is True
    assert mup_check.control.widths == [64, 128, 256]
    assert ", step 3: scales like width^+1." in mup_check.control.evidence
    assert mup_check.sentence().startswith("PASS: all ")


def test_mup_keeps_every_size(mup_check):
    hidden = mup_check.slopes.query("kind == 'activation' and role in ('hidden', 'input', 'vector')")
    assert hidden["slope"].abs().max() < 0.06
    logits = mup_check.slopes.query("module == 'lm_head' and kind == 'activation'").set_index("step")
    assert logits.loc[0, "n_zero"] == logits.loc[0, "n_runs"]
    assert logits.loc[[1, 2, 3], "slope"].abs().max() < 0.10


def test_the_frames_have_the_columns_of_the_contract(mup_check):
    cell = ["model", "parametrization", "embedding", "readout", "optimizer"]
    records = ["width", "seed", "step", "module", "order", "role", "kind", "l1", "rms", "max", "nonfinite", "count"]
    assert list(mup_check.records.columns) == cell + records
    slopes = "module order role kind step slope ci_low ci_high expected_low expected_high verdict n_widths n_seeds"
    assert list(mup_check.slopes.columns)[: len(cell) + 13] == cell + slopes.split()


def test_standard_parametrization_explodes(tmp_path):
    check = checked(tmp_path, "parametrization=sp")
    assert check.verdict == "fail"
    assert set(check.slopes["verdict"]) >= {"explodes"}
    assert "vanishes" not in set(check.slopes["verdict"])
    assert slope(check, "lm_head", "activation", 1) == pytest.approx(1.0, abs=0.1)
    assert slope(check, "blocks.0.mlp.fc", "delta", 2) > 0.5
    assert check.sentence().startswith("FAIL: ")
    assert check.findings[0].module == "lm_head"
    assert list(tmp_path.iterdir())
    assert str(check.control) == "Control: not run, for the check fails without it."
    assert check.skipped == ["width 512 not run: the check fails without it"]


def test_the_released_shared_readout_fails_at_the_embedding(tmp_path):
    """microsoft/mup#55."""
    check = checked(tmp_path, "embedding=tied_rescaled", "readout=constant")
    first = check.findings[0]
    assert check.verdict == "fail"
    assert (first.fault, first.module, first.kind, first.step) == ("shared_readout", "wte", "activation", 0)
    assert first.slope == pytest.approx(0.5, abs=0.02)
    assert "First at fault: wte.weight: its output grows like width^+0.5" in check.sentence()


@pytest.mark.parametrize("embedding", ["untied", "tied"])
def test_logits_of_a_constant_readout_shrink_at_first(tmp_path, embedding):
    check = checked(tmp_path, f"embedding={embedding}", "readout=constant")
    assert slope(check, "lm_head", "activation", 0) == pytest.approx(-0.5, abs=0.03)
    assert slope(check, "wte", "activation", 0) == pytest.approx(0.0, abs=0.02)
    assert check.verdict != "fail"


def test_logits_of_a_constant_readout_grow_in_standard_parametrization(tmp_path):
    check = checked(tmp_path, "parametrization=sp", "gate.expect=sp", "readout=constant", "steps=1")
    assert slope(check, "lm_head", "activation", 0) == pytest.approx(0.5, abs=0.03)
    assert check.findings[0].module == "lm_head" and check.findings[0].curve.verdict == "explodes"
    assert [(found.parameter, found.verdict) for found in check.audit.findings] == [("lm_head.weight", "init")]


def test_growing_heads_shrink_the_attention_logits_in_mup_only(tmp_path):
    overrides = ["model.heads=2", "model.head_size=null", "steps=1", "control=false"]
    assert slope(checked(tmp_path, *overrides), "blocks.0.attn[attention_logits]", "activation", 0) == pytest.approx(
        -0.5, abs=0.05
    )
    in_sp = checked(tmp_path, *overrides, "parametrization=sp")
    assert slope(in_sp, "blocks.0.attn[attention_logits]", "activation", 0) == pytest.approx(0.0, abs=0.05)


def test_a_check_that_trains_nothing_fails(tmp_path):
    assert checked(tmp_path, "optimizer.lr=0").verdict == "fail"


def test_a_check_that_could_see_nothing_does_not_pass(tmp_path):
    check = checked(tmp_path, "steps=1")
    assert check.control.saw is False
    assert check.verdict == "inconclusive"
    assert "control's fault was not seen" in check.sentence()
    assert "too small to see a fault" in str(check.control)
    check.save(tmp_path / "check")


def test_a_check_of_standard_parametrization_can_fail_and_shows_it(tmp_path):
    """Its SP twin and a faster learning rate are within what standard parametrization allows."""
    check = checked(tmp_path, "parametrization=sp", "gate.expect=sp")
    assert check.verdict == "pass", check.findings
    assert check.control.saw is True
    assert "initial weight matrix times (width / smallest width)^1/2" in str(check.control)
    assert "activation, step 0: scales like width^+1." in check.control.evidence


@pytest.mark.parametrize("options", [{}, {"steps": 1}, {"control": True}])
def test_a_check_of_ones_own_model_in_standard_parametrization_can_fail(options):
    def build(width):
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 4))

    check = coord_check(build, random_batch, widths=(64, 128, 256), seeds=3, expect="sp", device="cpu", **options)
    assert check.control.saw is True
    assert check.verdict != "fail", check.findings


@pytest.mark.parametrize(("exponent", "seeds"), [(0.9, 1), (0.5, 3)])
def test_a_control_beyond_its_limit_by_less_than_its_interval_is_undecided(gate, exponent, seeds):
    control = judge_control(synthetic({("fc", "delta", 1): power(exponent, noise=0.2)}, seeds=seeds), gate, "twin")
    assert (control.saw, control.undecided) == (False, True)
    assert "shows, but not for certain; fc, delta, step 1: scales like width^" in str(control)
    assert "Use more seeds" in str(control)
    check = CoordCheck.from_records(synthetic({("fc", "activation", 0): power(0.0)}), gate, control=control)
    assert check.verdict == "inconclusive"
    assert re.search("control's fault shows, but not for certain.*Use more seeds", check.sentence())


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_control_within_its_limits_is_not_seen(gate, noise):
    control = judge_control(synthetic({("fc", "delta", 1): power(0.1, noise)}), gate, "twin")
    assert (control.saw, control.undecided) == (False, False)


def test_a_model_that_seeds_itself_is_one_sample():
    def build(width):
        torch.manual_seed(0)
        return mlp(width)

    with pytest.warns(UserWarning, match=r"seeds \[1, 2\] repeat .*`build` seems to seed itself.*global generator"):
        check = coord_check(build, XY, widths=(8, 16, 32), seeds=3, steps=1, device="cpu", control=False, audit=False)
    assert set(check.slopes["n_seeds"]) == {1}
    assert check.verdict == "inconclusive"


def test_a_finding_of_ones_own_model_names_its_parameter_before_and_after_loading(tmp_path):
    check = coord_check(Classifier, batch_of, widths=(64, 128, 256), seeds=3, optimizer=plain_adam, device="cpu")
    named = {(finding.module, finding.parameter) for finding in check.findings}
    assert ("encoder.self_attn[0]", "encoder.self_attn.in_proj_weight") in named
    assert ("encoder.linear2", "encoder.linear2.weight") in named
    check.save(tmp_path)
    assert CoordCheck.load(tmp_path).findings == check.findings


def test_without_a_control_the_result_says_so(tmp_path):
    check = checked(tmp_path, "control=false", "steps=2")
    assert check.control == Control()
    assert "does not show that a fault would have been seen" in str(check.control)


def test_a_diverged_check_is_nonfinite(tmp_path):
    check = checked(tmp_path, "optimizer.lr=1e30", "readout=constant", "widths=[64,128,256]", "seeds=2")
    assert check.verdict == "fail"
    assert "nonfinite" in set(check.slopes["verdict"])
    assert "Lower the learning rate" in check.findings[0].advice
    check.save(tmp_path / "check")


@pytest.mark.parametrize("recorded", ["kinds=[delta]", "modules=[blocks.*]"])
def test_what_is_recorded_does_not_make_a_correct_model_dead(tmp_path, recorded):
    check = checked(tmp_path, recorded, "control=false", "widths=[64,128,256]", "seeds=2")
    assert not set(check.slopes["verdict"]) & {"dead", "nonfinite"}


def test_dropout_does_not_hide_a_fault():
    def build(width):
        return nn.Sequential(nn.Linear(8, width), nn.Dropout(0.5), nn.Linear(width, 4))

    still = coord_check(
        build,
        XY,
        widths=(8, 16, 32),
        seeds=2,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.0),
        device="cpu",
    )
    assert (still.records.query("kind == 'delta'")["l1"] == 0).all()


def test_what_no_parameter_reaches_is_not_dead():
    def build(width):
        return nn.Sequential(nn.Flatten(), nn.Linear(8, width), nn.Linear(width, 4))

    check = coord_check(build, XY, widths=(8, 16, 32), seeds=2, device="cpu")
    assert "dead" not in set(check.slopes["verdict"])


def test_building_for_shapes_leaves_a_shared_part_where_it_is():
    shared = nn.Linear(8, 8).requires_grad_(False)

    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.shared, self.head = shared, nn.Linear(8, width)

        def forward(self, x):
            return self.head(self.shared(x))

    coord_check(Model, XY, widths=(8, 16, 32), seeds=2, steps=2, device="cpu")
    assert shared.weight.device.type == "cpu"


class Slow(nn.Module):
    """Lets other threads in, as any longer computation does."""

    def forward(self, x):
        time.sleep(0.01)
        return x.relu()


def test_models_that_share_a_module_are_recorded_each_for_itself(monkeypatch):
    monkeypatch.setattr("coordcheck.run.queue.useful_workers", lambda seconds, narrowest: 4)
    one = Slow()

    def records(activation):
        def build(width):
            return nn.Sequential(nn.Linear(8, width), activation(), nn.Linear(width, 4))

        options = {"control": False, "audit": False, "name": "model", "workers": 4}
        return coord_check(build, XY, widths=(8, 16, 32), seeds=3, steps=2, device="cpu", **options).records

    pd.testing.assert_frame_equal(records(lambda: one), records(Slow))


def test_a_control_leaves_frozen_weights_alone_that_models_share():
    shared = nn.Linear(8, 8).requires_grad_(False)
    before = shared.weight.clone()

    def build(width):
        return nn.Sequential(shared, nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))

    coord_check(build, XY, widths=(8, 16, 32), seeds=2, steps=2, device="cpu", expect="sp", audit=False)
    assert torch.equal(shared.weight, before)


def test_a_bf16_check_sees_the_same(tmp_path):
    assert checked(tmp_path, "precision=bf16", "parametrization=sp", "control=false").verdict == "fail"


@pytest.mark.parametrize(("optimizer", "seeds"), [("adamw", 12), ("sgd", 16)])  # enough whatever the text
def test_other_optimizers_pass_in_mup_and_fail_in_standard_parametrization(tmp_path, optimizer, seeds):
    in_mup = checked(tmp_path, f"optimizer={optimizer}", f"seeds={seeds}")
    assert in_mup.verdict == "pass", in_mup.findings
    in_sp = checked(tmp_path, f"optimizer={optimizer}", "parametrization=sp", "control=false")
    assert in_sp.verdict == "fail", in_sp.findings


def test_a_modules_filter_records_only_these(tmp_path):
    check = checked(tmp_path, "modules=[lm_head,blocks.0.*]", "steps=2", "control=false", "widths=[64,128,256]")
    assert {name.split(".")[0] for name in check.slopes["module"]} == {"blocks", "lm_head", "(loss)"}
    with pytest.raises(ValueError, match=r"pattern 'head' matches no module"):
        checked(tmp_path, "modules=[head]")


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"`device` must be one that this machine.*'abacus'.*device='cpu'"):
        check_config(tiny_config("device=abacus"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_is_named():
    with pytest.raises(ValueError, match=r"`device`.*'cuda'"):
        check_config(tiny_config("device=cuda"))


def test_a_control_runs_the_narrower_widths_of_three_seeds():
    assert narrow([1024, 64, 256, 128, 512]) == [64, 128, 256]
    assert narrow([64, 128, 256]) == [64, 128, 256]
    config = tiny_config()
    queue = queue_of(make_cell(config), plan_of(config), dict.fromkeys([64, 128, 256], 3), [7, 8, 9, 10], "control")
    assert {seed for _, seed in queue.runs()} == {7, 8, 9}


# a model that is not from this project, with dict input and output as Hugging Face has them


class Classifier(nn.Module):
    """torch's own encoder; in muP, for Adam, by hand."""

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.encoder = nn.TransformerEncoderLayer(
            width, width // 16, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 50, bias=False)
        self.width_mult = width / 64
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
            self.embed.weight.normal_(std=1.0)
            self.head.weight.zero_()

    def forward(self, input_ids, labels):
        logits = self.head(self.norm(self.encoder(self.embed(input_ids))) / self.width_mult)
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def batch_of(seed):
    ids = torch.randint(0, 50, (8, 17), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


def adam_in_mup(model):
    hidden = [p for n, p in model.named_parameters() if p.dim() > 1 and "encoder" in n]
    others = [p for n, p in model.named_parameters() if not (p.dim() > 1 and "encoder" in n)]
    return torch.optim.Adam([{"params": hidden, "lr": 1e-3 / model.width_mult}, {"params": others}], lr=1e-3)


def plain_adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


@pytest.mark.parametrize(("optimizer", "verdict"), [(adam_in_mup, "pass"), (plain_adam, "fail")])
def test_a_model_of_the_users_own(optimizer, verdict):
    check = coord_check(Classifier, batch_of, widths=(64, 128, 256, 512), optimizer=optimizer, device="cpu")
    assert check.verdict == verdict, check.findings
    assert check.control.saw is (True if verdict == "pass" else None)
    assert check.records["model"].unique().tolist() == ["Classifier"]
    assert check.records["optimizer"].unique().tolist() == ["Adam lr=0.001"]
    roles = check.slopes.drop_duplicates("module").set_index("module")["role"]
    assert roles[["embed", "encoder.linear1", "norm", "head", "encoder"]].tolist() == [
        "input",
        "hidden",
        "vector",
        "readout",
        "hidden",
    ]
    assert roles["(model)[logits]"] == "readout"


def test_your_own_control():
    def check(control):
        return coord_check(
            Classifier, batch_of, widths=(64, 128, 256), seeds=3, optimizer=adam_in_mup, device="cpu", control=control
        )

    assert check((Classifier, plain_adam)).control.saw is True
    same = check((Classifier, adam_in_mup))
    assert same.control.saw is False
    assert same.verdict == "inconclusive"
    assert check(False).control.saw is None


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    coord_check(mlp, (torch.ones(4, 8), torch.zeros(4, dtype=torch.long)), widths=(8, 16, 32), seeds=2, steps=1)
    assert torch.rand(1) == expected


def mlp(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


def random_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 8, generator=generator), torch.randint(0, 4, (16,), generator=generator)


XY = (torch.ones(4, 8), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (64, 128)}, r"`widths`.*\[64, 128\]"),
        ({"widths": "64"}, r"`widths`.*got '64'"),
        ({"widths": (64.5, 128, 256)}, r"`widths`.*whole numbers.*64.5"),
        ({"steps": 0}, r"`steps`.*got 0"),
        ({"steps": 2.5}, r"`steps`.*whole number.*2.5"),
        ({"seeds": [0.5]}, r"`seeds`.*whole numbers.*0.5"),
        (
            {"optimizer": lambda model: None},
            r"`optimizer` must return a torch.optim.Optimizer, or a list of them; got NoneType",
        ),
        ({"seeds": []}, r"`seeds`.*\[\]"),
        ({"kinds": ("slope",)}, r"`kinds`.*'slope'"),
        ({"expect": "xp"}, r"`expect` is one of \['mup', 'sp', .*; got 'xp'"),
        ({"precision": "fp8"}, r"`precision`.*'fp8'"),
        ({"device": "abacus"}, r"`device`.*'abacus'"),
        ({"modules": ["head"]}, r"`modules` pattern 'head'"),
        ({"build": lambda width: nn.Linear(8, 4)}, r"no parameter's shape changes with width"),
        ({"build": lambda width: nn.Sequential(*[nn.Linear(8, 8)] * width)}, r"same parameter names"),
        ({"build": lambda width: width}, r"`build` must return a torch.nn.Module; got int"),
        (
            {"build": lambda width: nn.LazyLinear(width)},
            r"parameters have their shapes.*\['weight', 'bias'\].*nn.Linear",
        ),
        ({"device": "meta"}, r"`device`.*can train on; got 'meta'"),
        ({"device": "hpu"}, r"`device`.*can train on; got 'hpu'"),
        ({"modules": []}, r"`modules` needs at least one"),
        ({"kinds": ("delta",), "steps": 1}, r"`steps` is at least 2"),
        (
            {"batch": (torch.ones(4, 8), torch.ones(4))},
            r"integer targets.*\(4, 4\) and targets torch.float32.*mse_loss",
        ),
        ({"batch": (torch.ones(4, 8), torch.ones(3).long())}, r"torch.int64 of shape \(3,\)"),
        ({"loss": lambda model, batch: model(batch[0])}, r"a loss is a tensor with one entry; got shape \(4, 4\)"),
        ({"loss": lambda model, batch: 1.0}, r"a loss is a tensor with one entry; got float"),
        ({"batch": torch.ones(4, 8)}, r"`batch` is \(inputs, targets\).*got Tensor"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_trained(arguments, message):
    with pytest.raises(ValueError, match=message):
        coord_check(**{"build": mlp, "batch": XY, "widths": (8, 16, 32), "device": "cpu", **arguments})


def test_a_dict_batch_without_a_loss_is_named():
    class NoLoss(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.fc = nn.Linear(8, width)

        def forward(self, x):
            return {"logits": self.fc(x)}

    with pytest.raises(ValueError, match="output has no loss"):
        coord_check(NoLoss, {"x": XY[0]}, widths=(8, 16, 32), device="cpu")
    own = coord_check(
        NoLoss,
        {"x": XY[0]},
        widths=(8, 16, 32),
        seeds=2,
        device="cpu",
        loss=lambda model, batch: model(**batch)["logits"].square().mean(),
    )
    assert len(own.records)


Batch = namedtuple("Batch", ["inputs", "targets"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits, loss: (logits, None),
        lambda logits, loss: (None, logits),
        lambda logits, loss: {"logits": logits},
        lambda logits, loss: {"loss": loss},
        lambda logits, loss: SimpleNamespace(loss=loss),
    ],
)
def test_the_default_loss_finds_loss_or_logits(wrap):
    inputs, targets = random_batch(0)
    model = mlp(8)
    expected = nn.functional.cross_entropy(model(inputs), targets)

    def wrapped(x):
        return wrap(model(x), nn.functional.cross_entropy(model(x), targets))

    assert default_loss(wrapped, Batch(inputs, targets.int())) == expected


def test_a_batch_keeps_its_type_on_its_way_to_the_device():
    moved = to_device(Batch(torch.ones(2), [torch.ones(1)]), torch.device("cpu"))
    assert isinstance(moved, Batch)
    assert isinstance(moved.targets, list)


class Reused(nn.Module):
    """One layer under two names, called twice, and an output without entries."""

    def __init__(self, width):
        super().__init__()
        self.fc_in = nn.Linear(8, width)
        self.fc = nn.Linear(width, width)
        self.layers = nn.ModuleList([self.fc, self.fc])
        self.nothing = nn.Identity()
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        self.nothing(x[:0])
        hidden = self.fc_in(x)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


def test_a_layer_under_two_names_is_one_module_and_its_calls_are_pooled():
    check = coord_check(Reused, XY, widths=(8, 16, 32), seeds=np.int64(2), steps=2, device="cpu")
    assert set(check.slopes["module"]) == {"fc_in", "fc", "head", "(model)", "(loss)"}
    counts = check.records.query("module == 'fc' and width == 8 and kind == 'activation'")["count"]
    assert set(counts) == {2 * 4 * 8}


def test_widths_may_be_numpys_and_in_any_order():
    check = coord_check(mlp, XY, widths=np.array([32, 8, 16]), seeds=2, steps=2, device="cpu")
    assert check.config["widths"] == [32, 8, 16]
    assert json.loads(check.to_json())["config"]["widths"] == [32, 8, 16]


def test_seeds_may_be_named():
    check = coord_check(mlp, XY, widths=(8, 16, 32), seeds=(3, 9), steps=2, device="cpu")
    assert sorted(check.records["seed"].unique()) == [3, 9]


def test_a_model_that_cannot_be_audited_is_checked_all_the_same(tmp_path):
    def refuses_tracing(width):
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise TypeError("no modes here")
        return mlp(width)

    check = coord_check(refuses_tracing, XY, widths=(8, 16, 32), seeds=2, steps=2, device="cpu")
    assert check.audit is None and "`build` raises TypeError: no modes here" in check.unaudited
    check.save(tmp_path)
    escaped = check.unaudited.replace("`", "\\`")
    assert f"Audit: none could be made ({escaped})" in (tmp_path / "report.md").read_text()
    assert CoordCheck.load(tmp_path).unaudited == check.unaudited


# files


def test_a_saved_check_loads_as_it_was(tmp_path, mup_check):
    mup_check.save(tmp_path)
    files = {path.name for path in tmp_path.iterdir() if not path.name.startswith(("audit", "."))}
    assert files == {"records.parquet", "report.html", "report.md", "report.png", "slopes.csv", "verdict.json"}
    loaded = CoordCheck.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.slopes, mup_check.slopes)
    assert (loaded.verdict, loaded.control, loaded.sentence()) == ("pass", mup_check.control, mup_check.sentence())
    assert (loaded.gate, loaded.versions) == (mup_check.gate, mup_check.versions)
    assert loaded.corpus_sha256 == mup_check.corpus_sha256
    assert loaded.audit.facts() == mup_check.audit.facts()


def test_verdict_json_has_the_contracts_keys_and_is_strict_json(tmp_path):
    check = CoordCheck.from_records(
        synthetic({("a", "activation", 1): lambda w, s: np.nan, ("b", "activation", 0): power(0.05, 0.06)}), load().gate
    )
    check.save(tmp_path)
    said = json.loads((tmp_path / "verdict.json").read_text(), parse_constant=pytest.fail)
    assert set(said) >= {"verdict", "findings", "control", "versions", "corpus_sha256", "config"}
    assert [(f["module"], f["verdict"]) for f in said["findings"]] == [("a", "nonfinite"), ("b", "inconclusive")]
    assert said["findings"][0]["slope"] is None


def test_records_alone_are_judged_with_the_default_gate(tmp_path):
    synthetic({("fc", "activation", 0): power(0.5)}).to_parquet(tmp_path / "records.parquet")
    assert CoordCheck.load(tmp_path).verdict == "fail"


def test_a_directory_without_records_and_records_of_two_cells_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no records.parquet"):
        CoordCheck.load(tmp_path)
    records = synthetic({("fc", "activation", 0): power(0.5)})
    two = pd.concat([records.assign(cell="a"), records.assign(cell="b")])[["cell", *records.columns]]
    with pytest.raises(ValueError, match=r"one cell; these records hold 2"):
        CoordCheck.from_records(two, load().gate)
    with pytest.raises(ValueError, match="no records"):
        CoordCheck.from_records(records.iloc[:0], load().gate)


def test_a_check_says_in_three_lines_what_it_is(mup_check):
    said = repr(mup_check).split("\n")
    assert said == [mup_check.cell(), mup_check.sentence(), str(mup_check.control)]


def test_a_notebook_shows_the_verdict_and_no_markup_of_a_name(gate):
    check = CoordCheck.from_records(synthetic({("<b>fc", "activation", 0): power(0.5, 0.01)}), gate)
    assert "FAIL" in (html := check._repr_html_())
    assert "<b>fc" not in html and "&lt;b&gt;fc" in html


def test_a_notebook_shows_the_findings_and_the_picture(gate, tmp_path):
    curves = {("fc", "activation", s): power(0.5 * s, 0.01) for s in (0, 1)} | {("wte", "activation", 0): power(0.7)}
    check = CoordCheck.from_records(synthetic(curves), gate)
    html = check._repr_html_()
    assert all(escape(str(finding)) in html for finding in check.findings)
    (picture,) = re.findall(r"<img [^>]*src='data:image/png;base64,([^']*)'>", html)
    (tmp_path / "own.png").write_bytes(base64.b64decode(picture))
    check.plot(tmp_path / "file.png")
    own, file = (matplotlib.image.imread(tmp_path / name) for name in ("own.png", "file.png"))
    assert own.shape[0] / own.shape[1] == pytest.approx(file.shape[0] / file.shape[1], rel=0.01)
    assert own.std() > 0.05


def test_no_picture_is_drawn_before_a_notebook_asks(gate, tmp_path):
    synthetic({("fc", "activation", 0): power(0.5, 0.01)}).to_parquet(tmp_path / "records.parquet")
    code = "import sys, coordcheck; print(coordcheck.CoordCheck.load('.')); assert 'matplotlib' not in sys.modules"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")


class AsNanoGPT(nn.Module):
    """Takes its targets, and returns logits and loss; without targets the last logits, and None."""

    def __init__(self, width):
        super().__init__()
        self.wte, self.lm_head = nn.Embedding(16, width), nn.Linear(width, 16)

    def forward(self, idx, targets=None):
        logits = self.lm_head(self.wte(idx))
        if targets is None:
            return logits[:, [-1]], None
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_a_model_that_returns_logits_and_loss_is_trained_on_its_loss():
    tokens = torch.randint(16, (2, 9), generator=torch.Generator().manual_seed(0))
    both = {"idx": tokens[:, :-1], "targets": tokens[:, 1:]}
    model = AsNanoGPT(8)
    assert default_loss(model, both) == model(**both)[1]
    with pytest.raises(ValueError, match=r"A model that takes its targets gets a dict, for example batch=\{'idx': "):
        default_loss(model, (tokens[:, :-1], tokens[:, 1:]))


@pytest.mark.parametrize("damage", ["cut", "edited"])
def test_an_audit_that_is_not_the_stored_one_is_refused(tmp_path, mup_check, damage):
    mup_check.save(tmp_path)
    path = tmp_path / "audit.csv"
    lines = path.read_text().splitlines(keepends=True)
    half = len(lines) // 2
    path.write_text("".join(lines[:half] if damage == "cut" else [*lines[:half], *lines[half + 1 :], lines[half]]))
    with pytest.raises(ValueError, match=r"is not the file that verdict\.json beside it was written with"):
        CoordCheck.load(tmp_path)


def test_an_audit_that_is_missing_is_told(tmp_path, mup_check):
    mup_check.save(tmp_path)
    (tmp_path / "audit.csv").unlink()
    check = CoordCheck.load(tmp_path)
    assert check.audit is None and "audit.csv, which verdict.json tells of, is missing" in check.unaudited


def test_a_loaded_audit_is_stored_again_as_it_was(tmp_path, mup_check):
    mup_check.save(tmp_path / "a")
    CoordCheck.load(tmp_path / "a").save(tmp_path / "b")
    for name in ("audit.csv", "verdict.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_check_stored_before_audits_had_a_hash_still_loads(tmp_path, mup_check):
    mup_check.save(tmp_path)
    content = json.loads((tmp_path / "verdict.json").read_text())
    del content["audit"]["sha256"]
    (tmp_path / "verdict.json").write_text(json.dumps(content))
    assert CoordCheck.load(tmp_path).audit.facts() == mup_check.audit.facts()


def test_slopes_and_audits_say_who_says_so(mup_check):
    slopes, parameters = mup_check.slopes.query("role != 'loss'"), mup_check.audit.parameters
    assert slopes["source"].str.startswith("Tensor Programs V").all()
    assert parameters["source"].str.startswith("Tensor Programs V").all()
    text, of_audit = check_markdown(mup_check), audit_markdown(mup_check.audit)
    assert "## Who says so" in text and "Tensor Programs V, arXiv 2203.03466, appendix J.2" in text
    said = "Tensor Programs V, arXiv 2203.03466, tables 3, 8 and 9, as the mup package writes it"
    assert f"| {len(parameters)} | {said} |" in of_audit
