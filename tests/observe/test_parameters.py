"""Planted faults, one each, seen to be reported by name; and no report on correct models."""

import re

import mup
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils import skip_init

from conftest import tiny_cell, tiny_config
from coordcheck import audit
from coordcheck.auditing import audit_cell
from coordcheck.observe.parameters import _error, _exponents
from coordcheck.observe.writes import root_mean_square
from coordcheck.result import Audit, read_audit

WIDTHS = (32, 64, 128)
BASE = 32


class Model(nn.Module):
    """A residual model in muP (Tensor Programs V, table 8), with a place for every fault.

    Args:
        width: D.
        inner: Hidden size of the block, by default the width.
    """

    def __init__(self, width: int, inner: int | None = None, tied: bool = False):
        super().__init__()
        inner = width if inner is None else inner
        self.embed = nn.Embedding(64, width)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, inner)
        self.proj = nn.Linear(inner, width)
        self.head = mup.MuSharedReadout(self.embed.weight, bias=False) if tied else mup.MuReadout(width, 64, bias=False)

    def init(self, hidden_exponent: float = -0.5, head_exponent: float = 0.0) -> "Model":
        for layer in (self.fc, self.proj):
            nn.init.normal_(layer.weight, std=layer.in_features**hidden_exponent)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.head.weight, std=0.1 * self.head.weight.shape[1] ** head_exponent)
        return self


def build(width: int) -> Model:
    return Model(width).init()


def groups(model: nn.Module, exponents: dict[str, float] | None = None, lr: float = 1e-3, **more) -> list[dict]:
    """One group per parameter, with muP's learning rates for Adam: hidden matrices get lr / width_mult."""
    width_mult = model.embed.weight.shape[1] / BASE
    hidden = {"fc.weight": -1.0, "proj.weight": -1.0}
    return [
        {"params": [p], "lr": lr * width_mult ** (hidden | (exponents or {})).get(name, 0.0), **more}
        for name, p in model.named_parameters()
    ]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups(model))


def adam_of_all(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def found(report: Audit) -> set[tuple[str, str]]:
    return {(finding.parameter, finding.verdict) for finding in report.findings}


@pytest.mark.parametrize("bias_std", [0.0, 0.5], ids=["zero biases", "random biases"])
def test_a_correct_model_has_no_report(bias_std):
    def random_biases(width):
        model = build(width)
        for layer in (model.fc, model.proj):
            layer.bias.data.normal_(0.0, bias_std) if bias_std else None
        return model

    report = audit(random_biases if bias_std else build, WIDTHS, adam)
    assert report.verdict == "pass"
    assert not {verdict for _, verdict in found(report)} & {"init", "learning_rate"}
    if not bias_std:
        assert report.findings == []


def test_the_numbers_of_a_correct_model():
    report = audit(build, WIDTHS, adam).parameters.set_index("parameter")
    assert report.loc["fc.weight", "std_exponent"] == pytest.approx(-0.5, abs=0.05)
    assert report.loc["fc.weight", "std_fan_in"] == pytest.approx(1.0, abs=0.05)
    assert report.loc["fc.weight", "lr_exponent"] == pytest.approx(-1.0)
    assert report.loc["head.weight", "multiplier_exponent"] == -1.0
    assert report.loc["norm.weight", ["std_exponent", "std_low", "std_high"]].tolist() == pytest.approx(
        [0, 0, 0], abs=1e-5
    )
    assert np.isnan(report.loc["fc.bias", "std_exponent"])  # zero
    assert report["role"].tolist() == ["input", *["vector"] * 2, *["hidden", "vector"] * 2, "readout"]
    assert report["update"].eq("adam").all()


def test_the_interval_of_a_std_covers_at_its_level():
    exponents = []
    for seed in range(200):

        def small(width, seed=seed):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 4))

        row = audit(small, (8, 16, 32)).parameters.set_index("parameter").loc["1.weight"]
        exponents.append(row["std_low"] <= -0.5 <= row["std_high"])
    assert 0.90 <= np.mean(exponents) <= 0.99


def initialized_again(width):
    model = build(width)
    return model.init()


def initialized_by_another(width):
    model = build(width)
    model.fc.apply(lambda layer: nn.init.normal_(layer.weight, std=layer.in_features**-0.5))
    return model


def reset_afterwards(width):
    model = build(width)
    model.fc.reset_parameters()
    return model


def uninitialized(width):
    model = build(width)
    model.fc = skip_init(nn.Linear, width, width)
    nn.init.zeros_(model.fc.bias)
    return model


def partly_initialized(width):
    model = uninitialized(width)
    nn.init.normal_(model.fc.weight[: width // 2].detach(), std=width**-0.5)
    return model


@pytest.mark.parametrize(
    ("faulty", "parameter", "verdict", "outcome", "cause"),
    [
        (initialized_again, "fc.weight", "repeated", "pass", r"initialized 2 times: .*Model\.init test_parameters\.py"),
        (
            initialized_by_another,
            "fc.weight",
            "conflict",
            "pass",
            r"the last, initialized_by_another.<locals>.<lambda>",
        ),
        (reset_afterwards, "fc.weight", "conflict", "pass", r"the last, Linear\.reset_parameters linear\.py.*won"),
        (uninitialized, "fc.weight", "uninitialized", "fail", "nothing wrote 16384 of its 16384 entries"),
        (partly_initialized, "fc.weight", "uninitialized", "fail", "nothing wrote 8192 of its 16384 entries"),
        (
            lambda w: Model(w).init(hidden_exponent=0.0),
            "proj.weight",
            "init",
            "fail",
            r"width\^[+-]0.0.*expected -0.50",
        ),
        (lambda w: Model(w).init(head_exponent=0.5), "head.weight", "init", "fail", r"width\^\+0.5.*expected \+0.00"),
    ],
)
def test_a_fault_of_the_initialization_is_reported(faulty, parameter, verdict, outcome, cause):
    report = audit(faulty, WIDTHS, adam)
    assert (parameter, verdict) in found(report)
    assert report.verdict == outcome
    (finding,) = (f for f in report.findings if f.parameter == parameter and f.verdict == verdict)
    assert re.search(cause, finding.cause)


def tied(width):
    return Model(width, tied=True).init()


def tied_rescaled(width):
    model = tied(width)
    shapes = mup.make_base_shapes(Model(BASE, tied=True), Model(2 * BASE, tied=True))
    mup.set_base_shapes(model, shapes)
    return model


def test_a_tied_weight_that_mup_rescales_is_reported_with_who_did_it():
    assert audit(tied, WIDTHS, adam).verdict == "pass"
    report = audit(tied_rescaled, WIDTHS, adam)
    (finding,) = (f for f in report.findings if f.verdict == "init" and f.parameter == "embed.weight")
    assert finding.quantity.exponent == pytest.approx(0.5, abs=0.03)
    assert "MuReadout._rescale_parameters layer.py" in finding.cause
    row = report.parameters.set_index("parameter").loc["embed.weight"]
    assert row["tied_to"] == "head.weight"


@pytest.mark.parametrize(
    ("optimizer", "parameter", "verdict"),
    [
        (lambda m: torch.optim.Adam(groups(m, {"fc.weight": 0.0})), "fc.weight", "learning_rate"),
        (lambda m: torch.optim.Adam(groups(m, {"fc.weight": -0.5})), "fc.weight", "learning_rate"),
        (lambda m: torch.optim.Adam(groups(m, {"embed.weight": -1.0})), "embed.weight", "learning_rate"),
        (lambda m: torch.optim.Adam(groups(m, {"head.weight": -1.0})), "head.weight", "learning_rate"),
        (lambda m: torch.optim.AdamW(groups(m), weight_decay=0.1), "fc.weight", "decay"),
        (lambda m: torch.optim.Adam(groups(m)[1:]), "embed.weight", "ungrouped"),
        (
            lambda m: torch.optim.Adam([{**g, "eps": 1e-8 * m.fc.in_features} for g in groups(m)]),
            "fc.weight",
            "epsilon",
        ),
    ],
    ids=["unscaled", "half scaled", "input scaled", "multiplier and lr", "coupled decay", "missing", "growing epsilon"],
)
def test_a_fault_of_the_optimizer_is_reported(optimizer, parameter, verdict):
    report = audit(build, WIDTHS, optimizer, decay="independent")
    assert (parameter, verdict) in found(report)
    assert report.verdict == "fail"
    wrong = report.parameters.query("verdict != 'pass'")["parameter"].tolist()
    assert wrong == [parameter] or verdict in ("decay", "epsilon")


def test_coupled_decay_is_reported_where_the_learning_rate_is_scaled_and_nowhere_else():
    report = audit(build, WIDTHS, lambda m: torch.optim.AdamW(groups(m), weight_decay=0.1), decay="independent")
    assert found(report) == {("fc.weight", "decay"), ("proj.weight", "decay")}
    (first, *_) = report.findings
    assert first.quantity.exponent == pytest.approx(-1.0)
    assert "/ width_mult" not in first.advice and "* width_mult" in first.advice


def test_a_parameter_in_two_groups_is_reported():
    def twice(model):
        optimizer = adam(model)
        optimizer.param_groups.append({**optimizer.param_groups[0]})
        return optimizer

    assert ("embed.weight", "regrouped") in found(audit(build, WIDTHS, twice))


def test_a_module_that_the_width_never_reaches_is_reported():
    def with_adapter(width):
        model = build(width)
        model.adapter = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        return model

    report = audit(with_adapter, WIDTHS, adam)
    (finding,) = (f for f in report.findings if f.verdict == "fixed")
    assert "nothing in adapter grows with width: 4 parameters" in finding.cause


def test_an_inner_size_that_forgets_the_width_changes_the_roles():
    def forgetful(width):
        return Model(width, inner=64).init()

    report = audit(forgetful, WIDTHS, adam).parameters.set_index("parameter")
    assert report.loc[["fc.weight", "proj.weight"], "role"].tolist() == ["readout", "input"]
    assert report.loc["proj.weight", "verdict"] == "learning_rate"


class Transposed(nn.Module):
    """A projection that stores its fan-in first, as Hugging Face's Conv1D does."""

    def __init__(self, fan_in, fan_out):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(fan_in, fan_out))


@pytest.mark.parametrize("dimension", [0, 1])
def test_a_transposed_weight_is_judged_by_its_first_dimension(dimension):
    def transposed(width):
        model = build(width)
        model.stem = Transposed(16, width)
        nn.init.normal_(model.stem.weight, std=model.stem.weight.shape[dimension] ** -0.5)
        return model

    report = audit(transposed, WIDTHS, adam)
    row = report.parameters.set_index("parameter").loc["stem.weight"]
    assert (row["role"], row["fan_in"]) == ("input", 16)
    assert row["verdict"] == ("pass" if dimension == 0 else "init")


def test_sgd_and_adam_want_different_learning_rates():
    def sgd(model):
        by_role = {"fc.weight": 0.0, "proj.weight": 0.0}
        others = {name: 1.0 for name, _ in model.named_parameters() if name not in by_role}
        return torch.optim.SGD(groups(model, others | by_role), momentum=0.9)

    assert audit(build, WIDTHS, sgd).verdict == "pass"
    with_adams_rates = audit(build, WIDTHS, lambda m: torch.optim.SGD(groups(m)))
    assert ("fc.weight", "learning_rate") in found(with_adams_rates)


def test_mups_own_optimizers_pass():
    def in_mup(width):
        model = build(width)
        mup.set_base_shapes(model, mup.make_base_shapes(Model(BASE), Model(2 * BASE)), rescale_params=False)
        return model

    for optimizer in (mup.MuAdam, mup.MuAdamW, mup.MuSGD):
        report = audit(in_mup, WIDTHS, lambda m, make=optimizer: make(m.parameters(), lr=0.1, weight_decay=0.1))
        assert report.verdict == "pass", report.findings


def test_an_optimizer_of_unknown_scaling_is_not_judged():
    class Orthogonal(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(
                        group["lr"]
                        * (
                            p.grad
                            if p.dim() < 2
                            else torch.linalg.qr(p.grad.T if p.shape[0] < p.shape[1] else p.grad).Q.T.reshape(p.shape)
                        )
                    )

    report = audit(build, WIDTHS, lambda m: Orthogonal(m.parameters()))
    assert report.verdict == "inconclusive"
    assert report.sentence().startswith("INCONCLUSIVE: the learning rates of")


def test_without_an_optimizer_only_the_init_is_judged():
    report = audit(build, WIDTHS)
    assert report.verdict == "pass"
    assert report.parameters["lr_exponent"].isna().all()


def test_a_frozen_parameter_needs_no_group():
    def frozen(width):
        model = build(width)
        model.embed.weight.requires_grad = False
        return model

    report = audit(frozen, WIDTHS, lambda m: torch.optim.Adam(groups(m)[1:]))
    assert report.verdict == "pass"


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        (lambda layer, d: nn.init.normal_(layer.in_proj_weight, std=d**-0.5), 1.0),
        (lambda layer, d: None, 0.707),  # torch's own xavier_uniform on the packed kernel
    ],
    ids=["lecun", "packed xavier"],
)
def test_std_times_root_fan_in_of_packed_attention(init, expected):
    def attention(width):
        layer = nn.MultiheadAttention(width, 4)
        init(layer, width)
        return layer

    report = audit(attention, (64, 128, 256)).parameters.set_index("parameter")
    assert report.loc["in_proj_weight", "std_fan_in"] == pytest.approx(expected, abs=0.01)
    assert report.loc["out_proj.weight", "std_fan_in"] == pytest.approx(3**-0.5, abs=0.01)


def test_torchs_own_defaults_are_one_initialization():
    """Torch's attention and transformer write their layers' weights again; that is their default, not a fault."""
    report = audit(lambda width: nn.Transformer(width, 4, 1, 1, batch_first=True), (16, 32, 64), expect="sp")
    assert not {"repeated", "conflict"} & {verdict for _, verdict in found(report)}


def test_standard_parametrization_has_its_own_expectation():
    def plain(width):
        return nn.Sequential(nn.Linear(16, width), nn.Linear(width, width), nn.Linear(width, 8))

    adam = lambda model: torch.optim.Adam(model.parameters())  # noqa: E731
    assert audit(plain, WIDTHS, adam, expect="sp").verdict == "pass"
    report = audit(plain, WIDTHS, adam)
    assert found(report) >= {("1.weight", "learning_rate"), ("2.weight", "multiplier")}
    assert ("0.weight", "learning_rate") not in found(report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (64, 128)}, r"`widths` needs at least 3 distinct.*got \[64, 128\]"),
        ({"expect": "xp"}, r"`expect` is one of \['mup', 'sp', .*; got 'xp'"),
        ({"build": lambda width: nn.Linear(4, 4)}, "no parameter's shape changes with width"),
        ({"build": lambda width: nn.ReLU()}, "no parameter's shape changes with width"),
        ({"build": lambda width: torch.ones(width)}, "`build` must return a torch.nn.Module; got Tensor"),
        (
            {"build": lambda width: nn.Sequential(*[nn.Linear(8, width)] * (width // 32))},
            r"same parameter names.*'2\.bias'",
        ),
        ({"build": lambda width: nn.Linear(8, width, device="meta")}, r"in memory.*\['weight', 'bias'\].*to_empty"),
        (
            {"optimizer": lambda model: None},
            "`optimizer` must return a torch.optim.Optimizer, or a list of them; got NoneType",
        ),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        audit(**{"build": build, **arguments})


def test_threads_are_as_before_also_after_an_error():
    torch.set_num_threads(2)
    audit(build, WIDTHS)
    with pytest.raises(ValueError, match="no parameter's shape changes"):
        audit(lambda width: nn.Linear(4, 4), WIDTHS)
    assert torch.get_num_threads() == 2


def test_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    audit(build, WIDTHS, adam)
    assert torch.equal(torch.rand(1), expected)


def test_a_stored_audit_is_read_back_and_judged_anew(tmp_path, gate):
    report = audit(tied_rescaled, WIDTHS, lambda m: torch.optim.AdamW(groups(m), weight_decay=0.1))
    report.save(tmp_path)
    again = read_audit(tmp_path / "audit.csv", report.facts(), gate)
    assert again.facts() == report.facts()
    gate.tolerance.exponent = 2.0
    assert read_audit(tmp_path / "audit.csv", report.facts(), gate).verdict == "pass"


@pytest.mark.parametrize("optimizer", [None, adam])
def test_an_audit_without_ties_or_without_a_known_rule_is_read_back(tmp_path, gate, optimizer):
    report = audit(build, WIDTHS, optimizer)
    report.save(tmp_path)
    assert read_audit(tmp_path / "audit.csv", report.facts(), gate).facts() == report.facts()


def test_our_own_models_have_one_write_each():
    config = tiny_config("embedding=tied", "readout=constant")
    report = audit_cell(tiny_cell("embedding=tied", "readout=constant"), config.widths, config.gate)
    assert (report.parameters["writes"] == 1).all()
    assert report.parameters["rules"].str.startswith("Rule.write initialize.py").all()
    assert report.verdict == "pass" and not report.findings


class Odd(nn.Module):
    """A correct model beside a parameter of an unusual kind."""

    def __init__(self, width: int, odd: nn.Parameter):
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.odd = odd


@pytest.mark.parametrize(
    "odd",
    [
        lambda d: nn.Parameter(torch.empty(0, d)),
        lambda d: nn.Parameter(torch.tensor(1.0)),
        lambda d: nn.Parameter(torch.randn(d, d, dtype=torch.complex64) / d**0.5),
        lambda d: nn.Parameter(torch.randn(d, d, dtype=torch.float64) / d**0.5),
        lambda d: nn.Parameter(torch.randn(d, d).div(d**0.5).bfloat16()),
        lambda d: nn.Parameter(torch.randint(-5, 5, (d, d), dtype=torch.int8), requires_grad=False),
        lambda d: nn.Parameter(torch.zeros(1, d).expand(4, d), requires_grad=False),
        lambda d: nn.Parameter(torch.zeros(d, d).to(torch.float8_e4m3fn), requires_grad=False),
    ],
    ids=["empty", "scalar", "complex", "double", "bfloat16", "whole numbers", "expanded", "float8"],
)
def test_unusual_parameters_are_audited_like_others(odd):
    report = audit(lambda width: Odd(width, odd(width)), WIDTHS, lambda m: torch.optim.Adam(m.parameters()), "sp")
    assert report.verdict == "pass" and not report.findings


def test_weights_tied_by_their_memory_alone_appear_once():
    def build(width):
        embedding, readout = nn.Embedding(16, width), nn.Linear(width, 16, bias=False)
        readout.weight = nn.Parameter(embedding.weight.data)
        return nn.Sequential(embedding, readout)

    report = audit(build, WIDTHS, lambda m: torch.optim.Adam(m.parameters()), "sp")
    assert report.parameters[["parameter", "tied_to"]].values.tolist() == [["0.weight", "1.weight"]]
    assert found(report) == {("0.weight", "regrouped")}
    assert "hold it 2 times" in report.findings[0].cause


class Bottled(nn.Module):
    """Blocks, some with a size that was typed in, and a head or a decoder behind a code of fixed size.

    Args:
        width: D.
        inner: Of each block's hidden layer.
        code: Of what the last layer before the end makes.
    """

    def __init__(self, width, inner, code=None):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(width, size), "down": nn.Linear(size, width)}) for size in inner
        )
        last = width if code is None else code
        self.code = nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(width, size)}) for size in (width, last))
        self.head = nn.Sequential(nn.Linear(last, width), nn.Tanh(), nn.Linear(width, 4))

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block["down"](torch.tanh(block["up"](x)))
        for layer in self.code:
            x = torch.tanh(layer["fc"](x))
        return self.head(x)


@pytest.mark.parametrize(
    ("inner", "code", "named"),
    [
        (lambda w: (w, 48), None, {"blocks.1.up.weight"}),
        (lambda w: (24, 2 * w, 2 * w), None, {"blocks.0.up.weight"}),
        (lambda w: (w, 2 * w), None, set()),
        (lambda w: (48, 24), None, set()),
        (lambda w: (w, w), 6, set()),
    ],
    ids=["one typed in", "the first typed in", "sizes of their own", "adapters of fixed rank", "a code of fixed size"],
)
def test_a_size_that_was_typed_in_is_seen_where_its_own_block_reads_it(inner, code, named):
    batch = torch.randn(4, 8), torch.zeros(4, dtype=torch.int64)
    report = audit(lambda width: Bottled(width, inner(width), code), WIDTHS, batch=batch, expect="sp")
    assert {parameter for parameter, verdict in found(report) if verdict == "width"} == named


class Twice(nn.Module):
    """Writes its own parameter in its constructor, after what stood in for it, and then again."""

    def __init__(self, width: int, times: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, width))
        for _ in range(times):
            nn.init.normal_(self.weight)


@pytest.mark.parametrize(("times", "expected"), [(1, set()), (2, {("weight", "repeated")})])
def test_what_a_module_does_by_default_is_one_initialization_unless_it_repeats(times, expected):
    assert found(audit(lambda width: Twice(width, times), WIDTHS)) == expected


def test_a_schedule_that_begins_at_zero_leaves_the_learning_rate_open():
    def warmup(model):
        optimizer = adam(model)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 10) / 10)
        return optimizer

    report = audit(build, WIDTHS, warmup)
    assert report.verdict == "inconclusive"
    assert "its learning rate is zero" in report.findings[0].cause


def by_closure(model):
    return torch.optim.LBFGS(model.parameters())


TOKENS = (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("batch", [None, TOKENS], ids=["shapes", "uses"])
def test_an_optimizer_that_needs_a_closure_leaves_rates_open_and_inits_audited(batch):
    report = audit(build, WIDTHS, by_closure, batch=batch)
    assert report.verdict == "inconclusive" and {f.verdict for f in report.findings} == {"unknown"}
    assert "could not be tried" in report.findings[0].cause

    def wrong(width):
        model = build(width)
        model.get_parameter("fc.weight").data.fill_(0.1)
        return model

    assert ("fc.weight", "init") in found(audit(wrong, WIDTHS, by_closure, batch=batch))


class Spectral(nn.Module):
    """A Fourier layer: complex weights between as many channels as the width, on the lowest frequencies."""

    def __init__(self, width: int, exponent: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, 4, dtype=torch.complex64) * width**exponent)

    def forward(self, x):
        low = torch.einsum("bif,iof->bof", torch.fft.rfft(x)[..., :4], self.weight)
        return torch.fft.irfft(low, n=x.shape[-1])


@pytest.mark.parametrize(("exponent", "verdict"), [(-0.5, "pass"), (0.0, "init")])
def test_complex_weights_are_audited_where_they_are_used(exponent, verdict):
    def fourier(width):
        return nn.Sequential(nn.Conv1d(1, width, 1), Spectral(width, exponent), nn.Conv1d(width, 1, 1))

    x = torch.randn(2, 1, 16)
    report = audit(fourier, WIDTHS, batch=(x, x), loss=lambda model, b: nn.functional.mse_loss(model(b[0]), b[1]))
    row = report.parameters.set_index("parameter").loc["1.weight"]
    assert (row["role"], row["used_in"], row["verdict"]) == ("hidden", "einsum in 1", verdict)
    assert row["std_exponent"] == pytest.approx(exponent, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_steps_are_seen_in_every_precision(dtype):
    report = audit(lambda width: build(width).to(dtype), WIDTHS, lambda m: torch.optim.Adam(groups(m, lr=1e-7)))
    assert report.verdict == "pass" and report.parameters["update"].eq("adam").all()


def test_modules_with_numbers_for_names_are_read_back(tmp_path, gate):
    report = audit(lambda width: nn.Sequential(nn.Linear(8, width), nn.Linear(width, 4)), WIDTHS, adam_of_all)
    report.save(tmp_path)
    again = read_audit(tmp_path / "audit.csv", report.facts(), gate)
    assert again.parameters["module"].tolist() == ["0", "0", "1", "1"]
    assert again.facts() == report.facts()


@pytest.mark.parametrize("draw", [torch.randn, lambda n: torch.rand(n) - 0.5], ids=["normal", "uniform"])
@pytest.mark.parametrize("entries", [1, 2, 3, 5, 10, 30, 100, 10_000, 1_000_000])
def test_the_interval_of_few_entries_covers_too(draw, entries):
    """Whatever their number, an exponent of 0 lies in at least 93 of 100 intervals; that of one entry is infinite."""
    repeats = 400 if entries < 1000 else 60 if entries < 100_000 else 12
    covered = []
    for seed in range(repeats):
        torch.manual_seed(seed)
        at_width = [
            pd.DataFrame({"error": _error(x, root_mean_square(x)), "init_std": root_mean_square(x)}, index=["few"])
            for x in (draw(entries) for _ in range(3))
        ]
        for facts in at_width:
            facts[["lr", "decay", "eps"]] = np.nan
        row = _exponents([64, 128, 256], at_width).loc["few"]
        covered.append(row["std_low"] <= 0 <= row["std_high"])
        assert entries > 1 or (row["std_low"], row["std_high"]) == (-np.inf, np.inf)
    assert np.mean(covered) >= (0.93 if repeats > 100 else 0.83)


def test_equal_entries_were_not_drawn():
    assert _error(torch.full((5,), 0.3), 0.3) == 0.0
