"""Faults that people reported in public, as small models with their correct twins: place, cause, and no false alarm."""

import math

import mup
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from coordcheck import audit, coord_check

BASE, VOCABULARY, LENGTH, HEAD = 32, 32, 8, 8
WIDTHS = (32, 64, 128)


def batch(seed):
    tokens = torch.randint(VOCABULARY, (8, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x):
        heads = (f(x).view(*x.shape[:2], -1, HEAD).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Head(nn.Linear):
    """A readout that divides its input by width_mult."""

    def __init__(self, width):
        super().__init__(width, VOCABULARY, bias=False)
        self.mult = width / BASE

    def forward(self, x):
        return super().forward(x / self.mult)


class Block(nn.Module):
    def __init__(self, width, mlp):
        super().__init__()
        self.n1, self.n2, self.attn, self.mlp = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width), mlp(width)

    def forward(self, x):
        x = x + self.attn(self.n1(x))
        return x + self.mlp(self.n2(x))


class GPT(nn.Module):
    def __init__(self, width, head=Head, mlp=MLP):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList([Block(width, mlp)])
        self.norm, self.head = nn.LayerNorm(width), head(width)

    def stream(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, tokens):
        return self.head(self.stream(tokens))


def initialized(model, skip=()):
    """Fan-in for matrices that grow twice, constants for embeddings and the readout."""
    for name, p in model.named_parameters():
        if p.dim() >= 2 and not name.endswith(skip):
            std = 0.5 if name.startswith("w") else BASE**-0.5 if name.startswith("head") else p.shape[-1] ** -0.5
            nn.init.normal_(p, std=std)
    return model


def right(width):
    return initialized(GPT(width))


def mult_of(model):
    return model.wte.weight.shape[1] / BASE


def is_hidden(name, p):
    return name.startswith("blocks") and p.dim() >= 2


def groups(model, scaled=is_hidden, lr=4e-3, **more):
    mult = mult_of(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [{"params": [p], "lr": lr / mult if scaled(name, p) else lr, **more} for name, p in named]


def adam(model):
    return torch.optim.Adam(groups(model), eps=1e-12)


def check(build, optimizer=adam, expect="mup", **more):
    return coord_check(build, batch, WIDTHS, 3, optimizer=optimizer, expect=expect, device="cpu", workers=1, **more)


def first(checked):
    """Class of the first fault, its parameter and its module."""
    assert checked.verdict == "fail", checked
    return checked.findings[0].fault, checked.findings[0].parameter


# mixtures, adapters, bypasses


class Router(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, width))

    def forward(self, x):
        return F.linear(x, self.weight)


class MoE(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.router = Router(width)
        self.w1, self.w2 = nn.Parameter(torch.empty(4, width, width)), nn.Parameter(torch.empty(4, width, width))

    def forward(self, x):
        experts = x.flatten(0, 1).expand(4, -1, -1)
        y = torch.bmm(F.silu(torch.bmm(experts, self.w1.mT)), self.w2.mT)
        return (y * self.router(x).softmax(-1).flatten(0, 1).T[..., None]).sum(0).view_as(x)


def mixture(w1_exponent, router_exponent):
    def build(width):
        model = initialized(GPT(width, mlp=MoE), skip=("w1", "router.weight"))
        layer = model.blocks[0].mlp
        nn.init.normal_(layer.w1, std=BASE**-0.5 * (width / BASE) ** w1_exponent)
        nn.init.normal_(layer.router.weight, std=BASE**-0.5 * (width / BASE) ** router_exponent)
        return model

    return build


class LoRA(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.A, self.B = nn.Linear(base.in_features, 4, bias=False), nn.Linear(4, base.out_features, bias=False)
        nn.init.normal_(self.A.weight, std=base.in_features**-0.5)
        nn.init.zeros_(self.B.weight)

    def forward(self, x):
        return self.base(x) + self.B(self.A(x))


def adapted(zero_a=False):
    def build(width):
        model = right(width).requires_grad_(False)
        for parent, name in [(model.blocks[0].attn, n) for n in "qkvo"] + [(model.blocks[0].mlp, "up")]:
            lora = LoRA(getattr(parent, name))
            setattr(parent, name, lora)
            if zero_a:
                nn.init.zeros_(lora.A.weight)
        return model

    return build


def lora_rates(scaled):
    def optimizer(model):
        rates = groups(model, lambda name, p: scaled and ".A." in name, lr=2e-2)
        return torch.optim.Adam(rates, eps=1e-12)

    return optimizer


def in_mup(bypass):
    class Model(GPT):
        def __init__(self, width):
            super().__init__(width, lambda width: mup.MuReadout(width, VOCABULARY, bias=False, readout_zero_init=True))

        def forward(self, tokens):
            x = self.stream(tokens)
            return F.linear(x, self.head.weight) if bypass else self.head(x)

    def build(width):
        model = Model(width)
        mup.set_base_shapes(model, Model(BASE), delta=Model(2 * BASE), rescale_params=False)
        for name, p in model.named_parameters():
            if p.dim() >= 2 and not name.startswith("head"):
                nn.init.normal_(p, std=0.5 if name.startswith("w") else p.shape[-1] ** -0.5)
        return model

    return build


def muon(adjust):
    def optimizer(model):
        named = list(model.named_parameters())
        hidden = [p for name, p in named if is_hidden(name, p)]
        rest = [p for name, p in named if not is_hidden(name, p)]
        return [
            torch.optim.Muon(hidden, lr=2e-2, weight_decay=0.0, adjust_lr_fn=adjust),
            torch.optim.AdamW(rest, lr=4e-3, weight_decay=0.0),
        ]

    return optimizer


def tied(std, before=0.0):
    class Plain(nn.Linear):
        def __init__(self, width):
            super().__init__(width, VOCABULARY, bias=False)

        def forward(self, x):
            return super().forward(x * x.shape[-1] ** before)

    def build(width):
        model = GPT(width, head=Plain)
        model.head.weight = model.wte.weight
        initialized(model, skip="wte.weight")
        nn.init.normal_(model.wte.weight, std=std(width))
        return model

    return build


def lost_tie(width):
    model = right(width)
    model.head.weight = nn.Parameter(torch.empty(VOCABULARY, width))
    return model


def frozen(width):
    model = right(width)
    model.wte.weight.requires_grad_(False)
    model.wpe.weight.requires_grad_(False)
    return model


def plain(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)


def epsilon(eps, scaled):
    return lambda model: torch.optim.Adam(groups(model, eps=eps / mult_of(model) if scaled else eps))


def readout_rate(model):
    return torch.optim.Adam(groups(model, lambda name, p: is_hidden(name, p) or name.startswith("head")), eps=1e-12)


MLP_W1 = "blocks.0.mlp.w1"
LORA_A = "blocks.0.attn.q.A.weight"


@pytest.mark.parametrize(
    ("build", "optimizer", "expect", "fault", "parameter"),
    [
        pytest.param(mixture(0.0, -1.0), adam, "mup", "init", MLP_W1, id="an expert's init (pytorch/torchtitan#1257)"),
        pytest.param(adapted(), lora_rates(False), "mup", "learning_rate", LORA_A, id="LoRA with one rate"),
        pytest.param(
            in_mup(True),
            lambda m: mup.MuAdam(m.parameters(), lr=4e-3),
            "mup",
            "multiplier",
            "head.weight",
            id="MuReadout bypassed (microsoft/mup#71)",
        ),
        pytest.param(
            right,
            muon("match_rms_adamw"),
            "mup",
            "learning_rate",
            "blocks.0.attn.q.weight",
            id="Muon that matches AdamW (google-deepmind/optax#1435)",
        ),
        pytest.param(
            tied(lambda w: 1.0), plain, "sp", "init", "wte.weight", id="tied, std 1 (pytorch/torchtitan#2342)"
        ),
        pytest.param(lost_tie, adam, "mup", "init", "head.weight", id="a lost tie (allenai/OLMo-core#686)"),
        pytest.param(right, epsilon(1e-2, False), "mup", "epsilon", None, id="epsilon (NVIDIA/Megatron-LM#3058)"),
        pytest.param(right, readout_rate, "mup", "learning_rate", "head.weight", id="a readout's rate divided as well"),
    ],
)
def test_the_fault_is_named_first_with_its_cause(build, optimizer, expect, fault, parameter):
    found = first(check(build, optimizer, expect))
    assert found[0] == fault and parameter in (None, found[1]), found


@pytest.mark.parametrize(
    ("build", "optimizer", "expect"),
    [
        pytest.param(mixture(-0.5, -1.0), adam, "mup", id="a router of std 1/width"),
        pytest.param(mixture(-0.5, -0.5), adam, "mup", id="a router of std width^-1/2"),
        pytest.param(adapted(), lora_rates(True), "mup", id="LoRA"),
        pytest.param(in_mup(False), lambda m: mup.MuAdam(m.parameters(), lr=4e-3), "mup", id="MuReadout"),
        pytest.param(right, muon("original"), "mup", id="Muon of unit operator norm"),
        pytest.param(tied(lambda w: w**-0.5), plain, "sp", id="tied, std width^-1/2"),
        pytest.param(tied(lambda w: 1.0, -0.5), plain, "sp", id="tied, T5's factor"),
        pytest.param(frozen, adam, "mup", id="frozen embeddings"),
        pytest.param(right, epsilon(1e-6, True), "mup", id="epsilon that shrinks with the gradient"),
        pytest.param(right, adam, "mup", id="the decoder itself"),
    ],
)
def test_a_correct_twin_has_no_fault(build, optimizer, expect):
    checked = check(build, optimizer, expect)
    assert checked.verdict != "fail" and not any(finding.fault for finding in checked.findings), checked.findings[:2]
    assert checked.audit.verdict == "pass", checked.audit


class Filter(nn.Module):
    """A conv net on sequences whose last layer, with a bias of one entry, divides its input by width_mult or not."""

    def __init__(self, width, kernel, divided):
        super().__init__()
        self.mult = width / BASE if divided else 1.0
        self.conv1, self.conv2 = (nn.Conv1d(c, width, 3, padding=1, bias=False) for c in (1, width))
        self.head = nn.Conv1d(width, 1, kernel, padding=kernel // 2)
        nn.init.normal_(self.conv1.weight, std=3**-0.5)
        nn.init.normal_(self.conv2.weight, std=(3 * width) ** -0.5)
        nn.init.normal_(self.head.weight, std=BASE**-0.5)

    def forward(self, x):
        return self.head(torch.tanh(self.conv2(torch.tanh(self.conv1(x)))) / self.mult)


def check_filter(kernel, divided):
    x = torch.randn(16, 1, 16, generator=torch.Generator().manual_seed(0))

    def rates(model):
        mult = model.conv1.weight.shape[0] / BASE
        rates = [(p, 1e-3 / mult if name.startswith("conv2") else 1e-3) for name, p in model.named_parameters()]
        return torch.optim.Adam([{"params": [p], "lr": lr} for p, lr in rates], eps=1e-12)

    return coord_check(
        lambda width: Filter(width, kernel, divided),
        (x, x.roll(1, -1)),
        WIDTHS,
        3,
        optimizer=rates,
        loss=lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
        device="cpu",
        workers=1,
    )


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_as_readout_needs_its_multiplier_whatever_its_bias_of_one_entry(kernel):
    assert first(check_filter(kernel, divided=False)) == ("multiplier", "head.weight")
    checked = check_filter(kernel, divided=True)
    assert checked.verdict != "fail" and not any(finding.fault for finding in checked.findings), checked.findings[:2]


def test_muon_that_matches_adamw_is_told_what_its_step_does_and_nothing_of_a_scheduler():
    finding = check(right, muon("match_rms_adamw"), control=False).findings[0]
    assert "operator norm that grows like width^+0.5" in finding.cause and "schedul" not in str(finding)
    assert "lr / sqrt(width_mult)" in finding.advice and finding.change.exponent == pytest.approx(-0.5, abs=0.05)


def test_a_readout_whose_rate_alone_is_wrong_is_not_told_that_its_init_is():
    checked = check(right, readout_rate, control=False)
    assert {(f.parameter, f.verdict) for f in checked.audit.findings} == {("head.weight", "learning_rate")}
    assert "lr * width_mult" in checked.findings[0].advice or "same learning rate" in checked.findings[0].advice


def test_a_bypassed_readout_is_told_that_its_multiplier_never_runs():
    finding = check(in_mup(True), lambda m: mup.MuAdam(m.parameters(), lr=4e-3), control=False).findings[0]
    assert "never runs" in finding.cause and "used past it" in finding.cause


def test_a_tied_weight_in_standard_parametrization_fails_where_logits_are_too_large_at_the_start():
    finding = check(tied(lambda w: 1.0), plain, "sp", control=False).findings[0]
    assert (finding.module, finding.step, finding.verdict) == ("head", 0, "explodes")
    assert finding.change.exponent == pytest.approx(-0.5, abs=0.05)  # which is the twin that has no fault


def test_gates_that_nothing_wrote_come_first_and_alone():
    class Gated(MLP):
        def __init__(self, width):
            super().__init__(width)
            self.gate = nn.Parameter(torch.empty(2 * width))

        def forward(self, x):
            return self.down(F.gelu(self.up(x)) * self.gate.nan_to_num(1.0, 1.0, 1.0).clamp(-2, 2))

    checked = check(lambda width: initialized(GPT(width, mlp=Gated)), control=False)
    assert [f.parameter for f in checked.findings if f.fault] == ["blocks.0.mlp.gate"]
    assert "Nothing wrote" in checked.findings[0].cause and "width^" not in checked.findings[0].cause


def test_epsilon_is_named_without_effective_updates_too():
    checked = check(right, epsilon(1e-2, False), kinds=("activation", "delta"))
    assert first(checked)[0] == "epsilon"


def test_adams_default_epsilon_is_no_fault_or_named_as_what_shrinks_an_update():
    checked = check(right, epsilon(1e-8, False), control=False)
    assert {finding.fault for finding in checked.findings if finding.fault} <= {"epsilon"}


def test_nothing_that_trains_is_dead_and_no_larger_rate_is_advised():
    checked = check(adapted(zero_a=True), lora_rates(True))
    assert first(checked)[0] == "dead"
    assert "nothing trains" in checked.findings[0].cause and "cannot help" in checked.findings[0].advice


def test_memory_that_nothing_wrote_silences_what_follows_from_it():
    checked = check(lost_tie)
    (finding,) = (finding for finding in checked.findings if finding.fault)
    assert "Nothing wrote" in finding.cause and "the tie was lost" in finding.advice
    assert "width^" not in finding.cause and math.isnan(finding.quantity.exponent)
    assert [f.verdict for f in checked.audit.findings if f.parameter == "head.weight"] == ["uninitialized"]


def test_memory_that_nothing_wrote_comes_before_what_it_makes_of_curves():
    """Memory may hold anything: such that no gradient passes it in one run, and a layer before it seems untrained."""
    checked, garbage = check(right, control=False), audit(lost_tie, WIDTHS, adam, batch=batch(0))
    records, first_run = checked.records.copy(), checked.records["seed"] == 0
    mine = (records["module"] == "wte") & (records["kind"] == "effective_update") & first_run
    records.loc[mine, ["l1", "rms", "max"]] = 0.0
    again = type(checked).from_records(records, checked.gate, audit=garbage)
    assert "dead" in set(again.slopes["verdict"])
    assert [finding.parameter for finding in again.findings if finding.fault] == ["head.weight"]


def test_one_cause_of_all_hidden_matrices_is_told_once():
    checked = check(right, lambda model: torch.optim.Adam(model.parameters(), lr=4e-3, eps=1e-12))
    finding = checked.findings[0]
    assert (finding.fault, len(finding.parameters)) == ("learning_rate", 6)
    assert "This is standard parametrization." in finding.advice
    assert (finding.change.quantity, finding.change.exponent) == ("learning_rate", -1.0)
