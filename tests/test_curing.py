"""A cure found, applied and tried."""

import dataclasses
import re

import pytest
import torch
from torch import nn

import coordcheck
from coordcheck import CoordCheck, Cure
from coordcheck.config.load import default_gate, load
from coordcheck.config.schema import Expect
from coordcheck.curing import cure_config, find_cure
from coordcheck.judge.trial import trials_of
from coordcheck.models.own import OwnCell
from coordcheck.report.console import make_console, print_check

BASE = 32
TABLE = Cure.from_dict(
    {
        "version": 1,
        "base_width": BASE,
        "entries": [
            {"parameters": ["*.weight"], "role": "hidden", "std": -0.5, "lr": -1, "weight_decay": 1},
            {"parameters": ["head.weight"], "role": "readout", "std": -1, "lr": -1, "eps": -1},
        ],
    }
)
TOKENS = torch.arange(64).view(4, 16) * 7 % 32


def build(width, tied=False):
    model = nn.Sequential()
    model.add_module("embedding", nn.Embedding(32, width))
    for i in range(2):
        model.add_module(str(i), nn.Linear(width, width))
        model.add_module(f"act{i}", nn.GELU())
    model.add_module("head", nn.Linear(width, 32, bias=False))
    if tied:
        model.head.weight = model.embedding.weight
    return model


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-12)


def batch(seed):
    return TOKENS, TOKENS.roll(-1, 1)


def cured(build, optimizer=adam, **options):
    return coordcheck.cure(build, batch, (32, 64, 128), optimizer=optimizer, seeds=3, device="cpu", **options)


@pytest.fixture(scope="module")
def result():
    return cured(build)


def test_a_model_in_standard_parametrization_is_cured(result):
    assert result.before.verdict == "fail"
    assert result.after.verdict != "fail" and not result.after.slopes["verdict"].eq("explodes").any()
    assert {
        entry.parameters: (entry.role, entry.exponents.std, entry.exponents.lr) for entry in result.cure.entries
    } == {
        ("head.weight",): ("readout", pytest.approx(-0.5, abs=0.06), -1.0),
        ("*.weight",): ("hidden", 0.0, -1.0),
    }
    assert repr(result).startswith("before  FAIL: ") and "\nafter   " in repr(result)


def test_what_is_cured_needs_nothing_more(result):
    def again(width):
        model = build(width)
        result.cure.initialize(model, width)
        model.width = width
        return model

    def optimizer(model):
        return torch.optim.Adam(result.cure.param_groups(model, model.width, lr=1e-3), eps=1e-12)

    assert not cured(again, optimizer).cure


def test_a_tied_readout_gets_a_multiplier():
    def tied(width):
        model = build(width, tied=True)
        for i in range(2):  # torch's own shrink with width
            nn.init.zeros_(model.get_submodule(f"{i}").bias)
        return model

    result = cured(tied)
    assert result.cure.multipliers == {"head": -1.0}
    assert result.after.verdict != "fail"
    model = build(128, tied=True)
    before = model(TOKENS)
    result.cure.attach(model, 128)
    assert torch.allclose(model(TOKENS), before / 4 + 0 * before)
    with pytest.raises(ValueError, match="attached to this model already"):
        result.cure.attach(model, 128)


def test_the_files_hold_the_cure(result, tmp_path):
    result.save(tmp_path)
    assert Cure.load(tmp_path / "cure.yaml") == result.cure
    assert {path.name for path in tmp_path.iterdir()} == {"after", "before", "cure.png", "cure.yaml"}
    (tmp_path / "cure.yaml").write_text("[" * 10_000)
    with pytest.raises(ValueError, match="cannot be read as a cure"):
        Cure.load(tmp_path / "cure.yaml")


def test_initial_weights_are_scaled_once():
    torch.manual_seed(0)
    model, plain = build(128), None
    torch.manual_seed(0)
    plain = build(128)
    TABLE.initialize(model, 128)
    for name, parameter in model.named_parameters():
        factor = {"0.weight": 0.5, "1.weight": 0.5, "head.weight": 0.25}.get(name, 1.0)
        assert torch.equal(parameter, plain.get_parameter(name) * factor), name
    with pytest.raises(ValueError, match="a second time"):
        TABLE.initialize(model, 128)
    at_base = build(BASE)
    weights = [parameter.clone() for parameter in at_base.parameters()]
    TABLE.initialize(at_base, BASE)
    assert all(map(torch.equal, at_base.parameters(), weights))


def test_the_table_of_another_model_is_refused():
    with pytest.raises(ValueError, match=re.escape("names '*.weight', which is no parameter")):
        TABLE.initialize(nn.ModuleDict({"head": nn.Linear(4, 4)}), 64)
    with pytest.raises(ValueError, match=re.escape("names '*.weight', which is no parameter")):
        TABLE.param_groups(nn.ModuleDict({"head": nn.Linear(4, 4)}), 64, lr=1.0)


def test_groups_of_the_users_stay_apart():
    model = build(128)
    groups = [
        {"params": [model.embedding.weight, model.head.weight], "lr": 0.1, "betas": (0.5, 0.9)},
        {"params": [*model[1].parameters(), *model[3].parameters()], "weight_decay": 0.2},
    ]
    made = TABLE.param_groups(model, 128, lr=0.4, weight_decay=0.5, eps=1e-8, groups=groups)
    assert [
        (
            len(group["params"]),
            group["lr"],
            group["initial_lr"],
            group["weight_decay"],
            group["eps"],
            group.get("betas"),
        )
        for group in made
    ] == [
        (1, 0.1, 0.1, 0.5, 1e-8, (0.5, 0.9)),
        (1, 0.025, 0.025, 0.5, 2.5e-9, (0.5, 0.9)),
        (2, 0.1, 0.1, 0.8, 1e-8, None),
        (2, 0.4, 0.4, 0.2, 1e-8, None),
    ]
    assert groups[1] == {"params": [*model[1].parameters(), *model[3].parameters()], "weight_decay": 0.2}
    with pytest.raises(ValueError, match="`lr` is the learning rate at the base width"):
        TABLE.param_groups(model, 128)


def trained(model, groups, compiled=False):
    """Weights after clipped steps of AdamW with a schedule."""
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    forward = torch.compile(model, backend="aot_eager") if compiled else model
    for _ in range(4):
        loss = nn.functional.cross_entropy(forward(TOKENS).flatten(0, 1), TOKENS.roll(-1, 1).flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        schedule.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_wrappers_do_not_hide_the_names():
    model = seeded(128)
    plain = TABLE.param_groups(model, 128, lr=1.0)
    compiled = TABLE.param_groups(torch.compile(model, backend="eager"), 128, lr=1.0)
    assert [(group["lr"], list(map(id, group["params"]))) for group in compiled] == [
        (group["lr"], list(map(id, group["params"]))) for group in plain
    ]
    assert len({group["lr"] for group in plain}) == 2


def test_several_optimizers_are_cured_each():
    from coordcheck.models.cured import rescale
    from coordcheck.observe.optimizer import Together

    model = seeded(128)
    parts = [torch.optim.SGD([model.head.weight], lr=1.0), torch.optim.SGD([model.embedding.weight], lr=1.0)]
    both = rescale(TABLE, model, 128, Together(parts))
    before = model.head.weight.detach().clone(), model.embedding.weight.detach().clone()
    for parameter in (model.head.weight, model.embedding.weight):
        parameter.grad = torch.ones_like(parameter)
    both.step()
    assert torch.allclose(before[0] - model.head.weight, torch.tensor(0.25), atol=1e-6)
    assert torch.allclose(before[1] - model.embedding.weight, torch.tensor(1.0), atol=1e-6)


def seeded(width):
    torch.manual_seed(0)
    return build(width)


def test_compiled_scheduled_and_clipped_training_is_the_same():
    results = []
    for compiled in (False, True):
        model = seeded(128)
        TABLE.initialize(model, 128)
        groups = TABLE.param_groups(model, 128, lr=1e-2, weight_decay=0.1)
        results.append(trained(model, groups, compiled))
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(eager, compiled, atol=1e-6)


def test_the_code_of_a_cure_does_the_same():
    names = {}
    exec(TABLE.as_python(), names)
    assert "coordcheck" not in TABLE.as_python()
    model, other = seeded(128), seeded(128)
    TABLE.initialize(model, 128)
    names["initialize"](other, 128)
    ours = trained(model, TABLE.param_groups(model, 128, lr=1e-2, weight_decay=0.1, eps=1e-8))
    theirs = trained(other, names["param_groups"](other, 128, lr=1e-2, weight_decay=0.1))
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("base", [0, -1, 1.5, True, "64"])
def test_an_odd_base_width_is_refused(base):
    with pytest.raises(ValueError, match=re.escape(f"`base_width` is a positive integer; got {base!r}")):
        cured(build, base_width=base)


def slow_but_one(model):
    """Adam in muP, but for the rate of one matrix."""
    width = model[0].weight.shape[1]
    groups = [
        {"params": [model[1].weight, model.head.weight], "lr": 1e-3 * BASE / width},
        {"params": [model[0].weight, model[1].bias, model[3].weight, model[3].bias]},
    ]
    return torch.optim.Adam(groups, lr=1e-3, eps=1e-12)


def in_mup(width):
    model = build(width)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=width**-0.5) if parameter.dim() > 1 else nn.init.zeros_(parameter)
    nn.init.normal_(model[0].weight)
    nn.init.normal_(model.head.weight, std=1 / width)
    return model


def checked(optimizer=slow_but_one, **options):
    widths = (32, 64, 128)
    return coordcheck.coord_check(in_mup, batch, widths, 3, optimizer=optimizer, device="cpu", control=False, **options)


def test_advice_is_tried_and_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("coordcheck.check.trials_of", trials_of)
    check = checked()
    (said,) = [finding.tried for finding in check.findings if finding.fault]
    assert said.startswith("Tried: with this change ") and check.findings[0].parameter == "1.weight"
    assert check.trials[0].helped and check.trials[0].verdict != "fail"
    assert check.findings[0].advice.startswith("Put it in a parameter group with lr / width_mult")
    assert check.sentence().endswith(said)
    check.save_text(tmp_path)
    assert said in (tmp_path / "report.md").read_text() and said in (tmp_path / "verdict.json").read_text()
    loaded = CoordCheck.load(tmp_path)
    assert loaded.trials == check.trials and loaded.sentence() == check.sentence()
    print_check(loaded, make_console(), tmp_path)
    assert re.search(r"^Tried +with this change", capsys.readouterr().out, re.MULTILINE)
    (tmp_path / "verdict.json").write_text(
        (tmp_path / "verdict.json").read_text().replace('"helped": true', '"helped": 2')
    )
    with pytest.raises(ValueError, match="trials"):
        CoordCheck.load(tmp_path)


def test_advice_is_not_tried_where_nobody_wants_it_or_nothing_fails(monkeypatch):
    monkeypatch.setattr("coordcheck.check.trials_of", lambda *_: pytest.fail("tried"))
    assert checked(try_advice=False).verdict == "fail"

    def right(model):
        rate = 1e-3 * BASE / model[0].weight.shape[1]
        groups = [{"params": [model[1].weight, model[3].weight, model.head.weight], "lr": rate}]
        groups += [{"params": [model[0].weight, model[1].bias, model[3].bias]}]
        return torch.optim.Adam(groups, lr=1e-3, eps=1e-12)

    assert checked(right).verdict != "fail"
    with pytest.raises(ValueError, match=re.escape("`try_advice` is True or False; got 'no'. For example")):
        checked(try_advice="no")


class Branch(nn.Module):
    """A stream and a branch that is multiplied by sqrt(width_mult)."""

    def __init__(self, width):
        super().__init__()
        self.embedding, self.head = nn.Embedding(32, width), nn.Linear(width, 32, bias=False)
        self.inner = nn.Sequential(nn.Linear(width, width, bias=False), nn.GELU(), nn.Linear(width, width, bias=False))
        self.factor = (width / BASE) ** 0.5
        for layer in (self.inner[0], self.inner[2]):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(x + self.factor * self.inner(x))


def test_a_branch_that_is_multiplied_as_a_whole_is_cured():
    result = cured(Branch)
    exponents = result.cure.exponents("inner.2.weight")
    assert (exponents.std, exponents.lr) == (-0.5, -1.5)
    assert result.before.verdict == "fail" and result.after.verdict != "fail"


class Routed(nn.Module):
    """Experts of one layer each, mixed by a router whose std is width^power; all else is in muP."""

    def __init__(self, width, power):
        super().__init__()
        self.embedding, self.head = nn.Embedding(32, width), nn.Linear(width, 32, bias=False)
        self.router, self.mix = nn.Linear(width, 4, bias=False), nn.Linear(width, width, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(4))
        for layer in (*self.experts, self.mix):
            nn.init.normal_(layer.weight, std=width**-0.5)
        nn.init.normal_(self.head.weight, std=4 / width)
        nn.init.normal_(self.router.weight, std=BASE**-0.5 * (width / BASE) ** power)

    def forward(self, tokens):
        x = self.mix(self.embedding(tokens)).tanh()
        shares = self.router(x).softmax(-1)
        return self.head(x + sum(shares[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts)))


def in_mup_but_for_routers(model):
    embedding, *others = model.parameters()
    groups = [{"params": [embedding]}, {"params": others, "lr": 2e-2 * BASE / model.head.in_features}]
    return torch.optim.Adam(groups, lr=2e-2, eps=1e-12)


@pytest.mark.parametrize("power", [-0.5, -1.0])
def test_a_router_whose_std_suits_step_0_only_is_cured_by_what_its_curves_ask(power):
    """What goes back through it is of width^-1/2, through the readout of 1/width; its audit finds nothing."""
    widths = (32, 128, 512)
    result = coordcheck.cure(
        lambda width: Routed(width, power), batch, widths, optimizer=in_mup_but_for_routers, device="cpu"
    )
    exponents = result.cure.exponents("router.weight")
    assert (result.audit.verdict, exponents.std, exponents.lr) == ("pass", -1.0 - power, 0.0)
    assert result.after.verdict == "pass"
    assert not result.cure.notes


def test_a_readout_that_is_divided_twice_gets_its_size_back():
    class Twice(Branch):
        def forward(self, tokens):
            x = self.embedding(tokens)
            return self.head((x + self.inner(x)) * (BASE / x.shape[-1]) ** 2)

    exponents = cured(Twice).cure.exponents("head.weight")
    assert (exponents.std, exponents.lr) == (1.0, 1.0)


def test_epsilon_of_a_norm_is_cured_and_that_of_a_keys_bias_is_not():
    """A key's bias moves all scores of a query alike, which softmax does not see: its gradient is rounding."""

    class Attending(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.embedding, self.head = nn.Embedding(32, width), nn.Linear(width, 32, bias=False)
            self.norm, self.key = nn.LayerNorm(width), nn.Linear(width, 16)
            self.query, self.value = nn.Linear(width, 16), nn.Linear(width, width)

        def forward(self, tokens):
            x = self.norm(self.embedding(tokens))
            heads = (layer(x).unsqueeze(1) for layer in (self.query, self.key, self.value))
            return self.head(x + nn.functional.scaled_dot_product_attention(*heads, is_causal=True).squeeze(1))

    found = cured(Attending, lambda model: torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-2)).cure
    assert found.exponents("norm.weight").eps < -0.5
    assert found.exponents("key.bias").eps == 0


ROWS = {  # by hand, from arXiv 2407.05872, table 1, and 2407.17465: std and learning rate with multipliers folded in
    ("sp", "Adam"): {"hidden": (-0.5, 0.0), "readout": (-0.5, 0.0)},
    ("sp_full_align", "Adam"): {"hidden": (-0.5, -1.0), "readout": (-0.5, -1.0)},
    ("ntk", "Adam"): {"hidden": (-0.5, -1.0), "readout": (-0.5, -1.0)},
    ("mean_field", "Adam"): {"hidden": (-0.5, -1.0), "readout": (-1.0, -1.0)},
    ("umup", "Adam"): {"input": (0.0, -0.5), "hidden": (-0.5, -1.0), "readout": (-1.0, -1.0)},
    ("ntk", "SGD"): {"input": (0.0, 0.5), "hidden": (-0.5, -0.5), "readout": (-0.5, -1.0)},
    ("mean_field", "SGD"): {"input": (0.0, 1.0), "hidden": (-0.5, 0.0), "readout": (-1.0, -1.0)},
}


@pytest.mark.parametrize(("target", "optimizer"), ROWS, ids=map("-".join, ROWS))
def test_a_cure_leads_to_its_target(target, optimizer):
    def constant(width):
        model = nn.Sequential(nn.Embedding(32, width), nn.Linear(width, width, bias=False), nn.ReLU())
        model.append(nn.Linear(width, 32, bias=False))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
        return model, getattr(torch.optim, optimizer)(model.parameters(), lr=1e-3)

    gate = dataclasses.replace(default_gate(), expect=Expect(target))
    cell = OwnCell(constant, (TOKENS, TOKENS), adam, None, (32, 64, 128))
    table, _ = find_cure(cell, gate, (32, 64, 128), 32)
    assert {entry.role: (entry.exponents.std, entry.exponents.lr) for entry in table.entries} == ROWS[target, optimizer]
    assert table.target == target and Cure.from_dict(table.to_dict()) == table


@pytest.mark.slow
def test_llama_in_another_parametrization(tmp_path):
    pytest.importorskip("transformers")
    small = ["model=hf", "model.config=llama", "model.depth=1", "widths=[64,128,256]", "data.batch=2", "seeds=5"]
    config = load([*small, "data.context=16", "data.vocab_size=64", "data=zipf", "steps=3", f"runs={tmp_path}"])
    result = cure_config(config, "ntk")
    assert result.before.verdict == "fail" and result.after.gate.expect == "ntk"
    assert not result.after.slopes["verdict"].isin(["explodes", "vanishes", "nonfinite", "dead"]).any(), result
    result.save(tmp_path / "files")
    assert Cure.load(tmp_path / "files" / "cure.yaml").target == "ntk"
    assert result.cure.as_python().startswith('"""The parametrization ntk for this model')


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match=r"`target` is one of \['mup', 'sp'.*got 'mop'\. For example target='mup'"):
        coordcheck.cure(build, (TOKENS, TOKENS), target="mop")
    with pytest.raises(ValueError, match=r"`target` is one of .*got 'mop'"):
        Cure.from_dict({"version": 1, "base_width": 64, "target": "mop"})
