"""Odd calls, as data: each works, or ends in a ValueError of one line that says what is wrong and what to write."""

import itertools
import re
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coordcheck import Recorder, audit, coord_check

X, Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4
TOKENS = torch.arange(32).reshape(2, 16) % 10
WIDTHS = (8, 16, 32)


def build(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


def embedding(width, sparse=False, size=10):
    return nn.Sequential(nn.Embedding(size, width, sparse=sparse), nn.Linear(width, 10))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def frozen(width):
    return build(width).requires_grad_(False)


def on_meta(width):
    with torch.device("meta"):
        return build(width)


def scripted(width):
    return torch.jit.script(build(width))


def with_a_scripted_part(width):
    return nn.Sequential(torch.jit.script(nn.Linear(8, width)), nn.Linear(width, 4))


def cast(dtype):
    def make(width):
        model = build(width)
        model[0].weight = nn.Parameter(
            model[0].weight.detach().to(dtype), requires_grad=dtype.is_floating_point or dtype.is_complex
        )
        return model

    return make


def shared_first_layer():
    first: dict[int, nn.Module] = {}

    def make(width):
        layer = first.setdefault(width, nn.Linear(8, width))
        return nn.Sequential(layer, nn.Linear(width, 4))

    return make


def one_for_all():
    models = {width: build(width) for width in WIDTHS}
    return lambda width: models[width]


def cached_pair():
    @cache
    def make(width):
        model = build(width)
        return model, sgd(model)

    return make


def raising(error):
    def make(*_):
        raise error

    return make


OTHER = build(8)
MODELS: list[nn.Module] = []


def of_the_first(model):
    MODELS.append(model)
    return sgd(MODELS[0])


def mean_of(function):
    return lambda model, batch: function(model(batch[0]))


# kind, arguments over the defaults, and a pattern of the message; None where it simply works
CALLS: dict[str, list[tuple[Callable[[], dict[str, object]], str | None]]] = {
    "widths": [
        (lambda: {"widths": (w for w in WIDTHS)}, None),
        (lambda: {"widths": np.array(WIDTHS)}, None),
        (lambda: {"widths": torch.tensor(WIDTHS)}, None),
        (lambda: {"widths": range(8, 33, 8)}, None),
        (lambda: {"widths": {8: 0, 16: 0, 32: 0}}, None),
        (lambda: {"widths": 64}, r"`widths`.*got 64"),
        (lambda: {"widths": 64.5}, r"`widths`.*got 64.5"),
        (lambda: {"widths": None}, r"`widths`.*got None"),
        (lambda: {"widths": "64"}, r"`widths`.*got '64'"),
        (lambda: {"widths": ["8", "16", "32"]}, r"`widths`.*'16'"),
        (lambda: {"widths": [8.0, 16.0, 32.0]}, r"`widths`.*8.0"),
        (lambda: {"widths": [True, 16, 32]}, r"`widths`.*True"),
        (lambda: {"widths": np.array([True, False, True])}, r"`widths`.*True"),
        (lambda: {"widths": [8, None, 32]}, r"`widths`.*None"),
        (lambda: {"widths": []}, r"`widths`.*\[\]"),
        (lambda: {"widths": itertools.count(8)}, r"`widths`"),
        (lambda: {"widths": [[8, 16, 32]]}, r"`widths`"),
        (lambda: {"widths": [8, 16, 2**63]}, r"`widths`"),
        (lambda: {"widths": [8, 16, -32]}, r"`widths`"),
        (lambda: {"widths": np.array(64)}, r"`widths`"),
        (lambda: {"widths": [np.nan, 16, 32]}, r"`widths`.*nan"),
        (lambda: {"widths": [10**9, 2 * 10**9, 10**9 + 1]}, r"`widths`.*memory"),
    ],
    "seeds": [
        (lambda: {"seeds": (s for s in (0, 1))}, None),
        (lambda: {"seeds": np.arange(2)}, None),
        (lambda: {"seeds": np.int64(2)}, None),
        (lambda: {"seeds": {0, 1}}, None),
        (lambda: {"seeds": None}, r"`seeds`.*None"),
        (lambda: {"seeds": 2.0}, r"`seeds`.*2.0"),
        (lambda: {"seeds": True}, r"`seeds`.*True"),
        (lambda: {"seeds": "2"}, r"`seeds`.*'2'"),
        (lambda: {"seeds": "auto!"}, r"`seeds`.*'auto!'"),
        (lambda: {"seeds": [0.5, 1]}, r"`seeds`.*0.5"),
        (lambda: {"seeds": [0, 0]}, r"`seeds`.*distinct"),
        (lambda: {"seeds": []}, r"`seeds`.*\[\]"),
        (lambda: {"seeds": -2}, r"`seeds`.*-2"),
        (lambda: {"seeds": 10**12}, r"`seeds`"),
        (lambda: {"seeds": [-1, 0]}, r"`seeds`.*-1"),
        (lambda: {"seeds": [2**63, 0]}, r"`seeds`.*9223372036854775808"),
        (lambda: {"seeds": [True, False]}, r"`seeds`"),
        (lambda: {"seeds": itertools.count()}, r"`seeds`"),
        (lambda: {"seeds": [None]}, r"`seeds`"),
    ],
    "steps": [
        (lambda: {"steps": np.int32(2)}, None),
        (lambda: {"steps": 0}, r"`steps`.*got 0"),
        (lambda: {"steps": None}, r"`steps`.*None"),
        (lambda: {"steps": 2.0}, r"`steps`.*2.0"),
        (lambda: {"steps": "2"}, r"`steps`.*'2'"),
        (lambda: {"steps": True}, r"`steps`.*True"),
        (lambda: {"steps": [2]}, r"`steps`.*\[2\]"),
        (lambda: {"steps": np.nan}, r"`steps`.*nan"),
        (lambda: {"steps": 10**12}, r"`steps`"),
    ],
    "kinds and modules": [
        (lambda: {"kinds": (k for k in ("activation", "delta"))}, None),
        (lambda: {"modules": (m for m in ("0", "2"))}, None),
        (lambda: {"modules": ["*"]}, None),
        (lambda: {"kinds": {"activation"}}, None),
        (lambda: {"kinds": "activation"}, r"`kinds`.*'activation'.*kinds=\['activation'"),
        (lambda: {"kinds": None}, r"`kinds`.*None"),
        (lambda: {"kinds": 3}, r"`kinds`.*3"),
        (lambda: {"kinds": [3]}, r"`kinds`.*3"),
        (lambda: {"kinds": [["activation"]]}, r"`kinds`"),
        (lambda: {"kinds": []}, r"`kinds`.*\[\]"),
        (lambda: {"kinds": ["delta", "delta"]}, r"`kinds`.*distinct"),
        (lambda: {"kinds": ["deltas"]}, r"`kinds`.*'deltas'"),
        (lambda: {"modules": "0"}, r"`modules`.*'0'.*modules=\["),
        (lambda: {"modules": 0}, r"`modules`.*got 0"),
        (lambda: {"modules": [0]}, r"`modules`.*\[0\]"),
        (lambda: {"modules": [None]}, r"`modules`"),
        (lambda: {"modules": []}, r"`modules` needs at least one"),
        (lambda: {"modules": ["head*"]}, r"`modules` pattern 'head\*' matches no module"),
        (lambda: {"modules": (m for m in ())}, r"`modules` needs at least one"),
    ],
    "options": [
        (lambda: {"device": torch.device("cpu")}, None),
        (lambda: {"control": np.False_}, None),
        (lambda: {"device": None}, r"`device`.*None"),
        (lambda: {"device": 0}, r"`device`.*got 0"),
        (lambda: {"device": ["cpu"]}, r"`device`.*\['cpu'\]"),
        (lambda: {"device": "meta"}, r"`device`.*'meta'"),
        (lambda: {"device": torch.device("meta")}, r"`device`.*meta"),
        (lambda: {"device": "cuda:99"}, r"`device`.*'cuda:99'"),
        (lambda: {"device": ""}, r"`device`.*''"),
        (lambda: {"precision": None}, r"`precision`.*None"),
        (lambda: {"precision": 16}, r"`precision`.*16"),
        (lambda: {"precision": torch.bfloat16}, r"`precision`.*bfloat16"),
        (lambda: {"precision": ["fp32"]}, r"`precision`.*\['fp32'\]"),
        (lambda: {"expect": "xp"}, r"`expect`.*'xp'"),
        (lambda: {"expect": None}, r"`expect`.*None"),
        (lambda: {"expect": np.array(["mup", "sp"])}, r"`expect`"),
        (lambda: {"control": 3}, r"`control`.*got 3"),
        (lambda: {"control": "sp"}, r"`control`.*'sp'"),
        (lambda: {"control": (build,)}, r"`control`"),
        (lambda: {"control": (build, 3)}, r"`control`.*optimizer|`optimizer`"),
        (lambda: {"control": (1, sgd)}, r"`control`.*build|`build`"),
        (lambda: {"control": build}, r"`control`"),
        (lambda: {"control": (b for b in (build, sgd))}, r"`control`"),
        (lambda: {"audit": "yes"}, r"`audit`.*'yes'"),
        (lambda: {"audit": None}, r"`audit`.*None"),
        (lambda: {"workers": 0}, r"`workers`.*got 0"),
        (lambda: {"workers": 2.0}, r"`workers`.*2.0"),
        (lambda: {"workers": "2"}, r"`workers`.*'2'"),
        (lambda: {"workers": True}, r"`workers`.*True"),
        (lambda: {"workers": -1}, r"`workers`.*-1"),
        (lambda: {"store": 3}, r"`store`.*got 3"),
        (lambda: {"store": ""}, r"`store`.*''"),
        (lambda: {"store": __file__}, r"`store`.*test_odd_calls.py"),
        (lambda: {"store": "/dev/null/x"}, r"`store`.*/dev/null/x"),
        (lambda: {"store": "a\0b"}, r"`store`"),
        (lambda: {"name": 3}, r"`name`.*got 3"),
        (lambda: {"name": ""}, r"`name`.*''"),
        (lambda: {"name": ["a"]}, r"`name`.*\['a'\]"),
    ],
    "build": [
        (lambda: {"build": None}, r"`build` is a function.*NoneType"),
        (lambda: {"build": build(8)}, r"`build` is a function from width"),
        (lambda: {"build": lambda: build(8)}, r"`build` .*one argument"),
        (lambda: {"build": lambda width, depth: build(8)}, r"`build` .*one argument"),
        (lambda: {"build": lambda width: None}, r"`build` must return a torch.nn.Module; got NoneType"),
        (lambda: {"build": lambda width: (build(width), 1)}, r"`optimizer`"),
        (lambda: {"build": lambda width: [build(width)]}, r"`build` must return a torch.nn.Module; got list"),
        (lambda: {"build": lambda width: nn.ReLU()}, r"`build`.*nothing to train|no parameter"),
        (lambda: {"build": frozen}, r"`build`.*nothing to train"),
        (lambda: {"build": on_meta}, r"`build`.*meta"),
        (lambda: {"build": scripted}, r"`build`.*script"),
        (lambda: {"build": with_a_scripted_part}, r"`build`.*script"),
        (lambda: {"build": cast(torch.complex64)}, r"the model, called with `batch`, raises .*ComplexFloat"),
        (lambda: {"build": cast(torch.float8_e4m3fn)}, r"`build`.*float8"),
        (lambda: {"build": lru_cache(build)}, r"`build`.*twice"),
        (lambda: {"build": one_for_all()}, r"`build`.*twice"),
        (lambda: {"build": shared_first_layer()}, r"`build`.*twice"),
        (lambda: {"build": cached_pair()}, r"`build`.*twice"),
        (lambda: {"build": raising(KeyError("x"))}, r"`build` raises.*KeyError: 'x'"),
        (lambda: {"build": raising(TypeError("many\nlines"))}, r"`build` raises.*TypeError: many lines"),
        (lambda: {"build": lambda width: nn.Linear(8, 3 * width // 2 if width == 8 else 1 / 0)}, "ZeroDivisionError"),
        (lambda: {"build": lambda width: build(8)}, r"no parameter's shape changes"),
        (lambda: {"build": lambda width: build(width).half()}, r"half|dtype|Half"),
        (lambda: {"build": lambda width: nn.DataParallel(build(width)) if False else build(width)}, None),
    ],
    "batch": [
        (lambda: {"batch": lambda: (X, Y)}, r"`batch`.*seed"),
        (lambda: {"batch": lambda seed, more: (X, Y)}, r"`batch`.*seed"),
        (lambda: {"batch": None}, r"`batch` is"),
        (lambda: {"batch": X}, r"`batch` is \(inputs, targets\)"),
        (lambda: {"batch": (X,)}, r"`batch` is \(inputs, targets\)"),
        (lambda: {"batch": (X, Y, Y)}, r"`batch` is \(inputs, targets\)"),
        (lambda: {"batch": "text"}, r"`batch` is"),
        (lambda: {"batch": iter([(X, Y)])}, r"`batch`.*list_iterator"),
        (lambda: {"batch": (b for b in [(X, Y)])}, r"`batch`.*generator"),
        (lambda: {"batch": (X.numpy(), Y)}, r"`loss` raises|`batch`"),
        (lambda: {"batch": (X.double(), Y)}, r"dtype|Double"),
        (lambda: {"batch": (X, Y.float())}, r"integer targets"),
        (lambda: {"batch": (X, Y + 3)}, r"targets.*6|Target"),
        (lambda: {"batch": (X, Y - 5)}, r"targets.*-5|Target"),
        (lambda: {"batch": (X[:, :3], Y)}, r"shapes"),
        (lambda: {"batch": (X[:0], Y[:0])}, r"`batch`.*empty|no entries"),
        (lambda: {"batch": {"input": X, "labels": Y}}, r"output has no loss|labels"),
        (lambda: {"batch": raising(OSError("disk"))}, r"`batch` raises.*OSError: disk"),
        (lambda: {"build": embedding, "batch": (TOKENS + 5, TOKENS)}, r"14|index out of range"),
        (lambda: {"build": embedding, "batch": (TOKENS - 1, TOKENS)}, r"-1|index out of range"),
        (lambda: {"build": embedding, "batch": (TOKENS.float(), TOKENS)}, r"(?i)float"),
        (lambda: {"build": embedding, "batch": (TOKENS, TOKENS)}, None),
    ],
    "loss": [
        (lambda: {"loss": 3}, r"`loss` is a function"),
        (lambda: {"loss": lambda model: model(X).mean()}, r"`loss`.*model and batch"),
        (lambda: {"loss": lambda: 3}, r"`loss`.*model and batch"),
        (lambda: {"loss": lambda model, batch: (model(batch[0]).mean(), 1)}, r"a loss is a tensor.*got tuple"),
        (lambda: {"loss": lambda model, batch: None}, r"a loss is a tensor.*got NoneType"),
        (lambda: {"loss": mean_of(lambda out: out.mean().item())}, r"a loss is a tensor.*got float"),
        (lambda: {"loss": mean_of(lambda out: out.argmax())}, r"a loss is .*int64"),
        (lambda: {"loss": mean_of(lambda out: out.mean() > 0)}, r"a loss is .*bool"),
        (lambda: {"loss": mean_of(lambda out: out.mean() * 1j)}, r"a loss is .*complex64"),
        (lambda: {"loss": mean_of(lambda out: out.detach().mean())}, r"depends? on .*parameter"),
        (lambda: {"loss": lambda model, batch: torch.zeros(())}, r"depends? on .*parameter"),
        (
            lambda: {"loss": lambda model, batch: torch.zeros((), requires_grad=True)},
            r"depends? on .*parameter|forward",
        ),
        (lambda: {"loss": lambda model, batch: OTHER(batch[0]).mean()}, r"depends? on .*parameter|no forward pass"),
        (lambda: {"loss": mean_of(lambda out: out[:0].sum(0))}, r"a loss is a tensor with one entry; got shape \(4,\)"),
        (lambda: {"loss": raising(KeyError("labels"))}, r"`loss` raises.*KeyError: 'labels'"),
        (lambda: {"loss": mean_of(lambda out: out.mean().reshape(1, 1))}, None),
    ],
    "optimizer": [
        (lambda: {"optimizer": lambda: sgd(OTHER)}, r"`optimizer`.*one argument"),
        (lambda: {"optimizer": lambda model: None}, r"`optimizer` must return"),
        (lambda: {"optimizer": sgd(OTHER)}, r"`optimizer` is a function"),
        (lambda: {"optimizer": "adam"}, r"`optimizer` is a function"),
        (lambda: {"optimizer": lambda model: sgd(OTHER)}, r"`optimizer`.*another model"),
        (lambda: {"optimizer": of_the_first}, r"`optimizer`.*another model"),
        (lambda: {"optimizer": lambda model: torch.optim.LBFGS(model.parameters())}, r"`optimizer`.*LBFGS.*closure"),
        (lambda: {"optimizer": lambda model: torch.optim.SparseAdam(model.parameters())}, r"SparseAdam"),
        (lambda: {"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=-1)}, r"`optimizer` raises.*-1"),
        (lambda: {"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=float("nan"))}, r"(?i)lr|learning"),
        (lambda: {"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=float("inf"))}, r"lr"),
        (lambda: {"optimizer": lambda model: torch.optim.SGD([], lr=0.1)}, r"`optimizer` raises.*empty"),
        (lambda: {"optimizer": raising(RuntimeError("no"))}, r"`optimizer` raises.*RuntimeError: no"),
        (
            lambda: {
                "build": lambda width: embedding(width, sparse=True),
                "batch": (TOKENS, TOKENS),
                "optimizer": lambda model: torch.optim.Adam(model.parameters()),
            },
            r"Adam.*sparse",
        ),
        (
            lambda: {
                "build": lambda width: embedding(width, sparse=True),
                "batch": (TOKENS, TOKENS),
                "kinds": ["activation", "gradient"],
            },
            None,
        ),
    ],
}


def call(arguments):
    """A check, with a store whose emptiness shows that nothing was trained to its end."""
    given = {"build": build, "batch": (X, Y), "widths": WIDTHS, "seeds": 2, "steps": 2, "optimizer": sgd}
    given |= {"device": "cpu", "audit": False, "control": False, **arguments}
    return coord_check(given.pop("build"), given.pop("batch"), **given)


def check_form(error):
    said = str(error)
    assert "\n" not in said
    assert "or example" in said


def every(kinds):
    return [
        pytest.param(case, pattern, id=f"{kind}-{i}") for kind in kinds for i, (case, pattern) in enumerate(kinds[kind])
    ]


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated in one or the other category
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("case", "pattern"), every(CALLS))
def test_an_odd_check_works_or_says_why(case, pattern, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    MODELS.clear()
    arguments = case()
    if pattern is None:
        assert len(call(arguments).records)
        return
    with pytest.raises(ValueError) as caught:
        call({"store": tmp_path / "runs", **arguments})
    check_form(caught.value)
    assert re.search(pattern, str(caught.value)), str(caught.value)
    assert not list(Path(tmp_path).rglob("*.parquet"))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_check_trains_whatever_mode_it_is_called_in(mode, workers):
    expected = call({"workers": workers}).records
    with mode():
        inside = call({"workers": workers, "batch": (X.clone(), Y.clone())}).records
        assert not torch.is_grad_enabled()
    assert inside.equals(expected)


def test_generators_of_modules_and_kinds_are_all_used():
    lists = call({"modules": ["0", "2"], "kinds": ["activation", "delta"]})
    once = call({"modules": (m for m in ("0", "2")), "kinds": (k for k in ("activation", "delta"))})
    assert once.records.equals(lists.records)
    assert once.config["modules"] == ["0", "2"] and once.config["kinds"] == ["activation", "delta"]
    assert set(once.records["module"]) == {"0", "2", "(loss)"}


AUDITS: list[tuple[Callable[[], dict[str, object]], str | None]] = [
    (lambda: {}, None),
    (lambda: {"widths": (w for w in WIDTHS)}, None),
    (lambda: {"widths": None}, r"`widths`.*None"),
    (lambda: {"widths": [8.0, 16, 32]}, r"`widths`.*8.0"),
    (lambda: {"widths": [10**9, 2 * 10**9, 10**9 + 1]}, r"`widths`.*memory"),
    (lambda: {"expect": 3}, r"`expect`.*3"),
    (lambda: {"build": build(8)}, r"`build` is a function"),
    (lambda: {"build": lambda a, b: build(a)}, r"`build`.*one argument"),
    (lambda: {"build": one_for_all()}, None),  # each once: nothing is trained
    (lambda: {"build": lambda width: [build(width)]}, r"`build` must return .*list"),
    (lambda: {"build": on_meta}, r"`build`.*meta"),
    (lambda: {"build": scripted}, r"`build`.*script"),
    (lambda: {"build": raising(KeyError("x"))}, r"`build` raises.*KeyError: 'x'"),
    (lambda: {"build": lambda width: 3}, r"`build` must return"),
    (lambda: {"build": lambda width: nn.ReLU()}, r"no parameter|nothing to train"),
    (lambda: {"build": cast(torch.float8_e4m3fn)}, r"float8"),
    (lambda: {"build": frozen}, None),
    (lambda: {"optimizer": torch.optim.Adam}, r"`optimizer` is a function"),
    (lambda: {"optimizer": lambda model: 3}, r"`optimizer` must return"),
    (lambda: {"optimizer": lambda model: sgd(OTHER)}, r"`optimizer`.*another model"),
    (lambda: {"optimizer": raising(KeyError("x"))}, r"`optimizer` raises.*KeyError"),
    (lambda: {"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=-1)}, r"`optimizer` raises"),
]


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated in one or the other category
@pytest.mark.parametrize(("case", "pattern"), every({"audit": AUDITS}))
def test_an_odd_audit_works_or_says_why(case, pattern):
    given = {"build": build, "widths": WIDTHS, **case()}
    if pattern is None:
        assert len(audit(given.pop("build"), **given).parameters)
        return
    with pytest.raises(ValueError) as caught:
        audit(given.pop("build"), **given)
    check_form(caught.value)
    assert re.search(pattern, str(caught.value)), str(caught.value)


RECORDERS: list[tuple[Callable[[], dict[str, object]], str | None]] = [
    (lambda: {"width": np.int64(8)}, None),
    (lambda: {"kinds": (k for k in ("activation",))}, None),
    (lambda: {"modules": (m for m in ("0", "2"))}, None),
    (lambda: {"width": None}, r"`width`.*None"),
    (lambda: {"width": 8.0}, r"`width`.*8.0"),
    (lambda: {"width": 0}, r"`width`.*0"),
    (lambda: {"width": True}, r"`width`.*True"),
    (lambda: {"width": "8"}, r"`width`.*'8'"),
    (lambda: {"seed": None}, r"`seed`.*None"),
    (lambda: {"seed": 2**63}, r"`seed`"),
    (lambda: {"seed": "a"}, r"`seed`.*'a'"),
    (lambda: {"kinds": "activation"}, r"`kinds`.*'activation'"),
    (lambda: {"kinds": None}, r"`kinds`.*None"),
    (lambda: {"kinds": []}, r"`kinds`.*\[\]"),
    (lambda: {"modules": "0"}, r"`modules`.*'0'"),
    (lambda: {"modules": [3]}, r"`modules`.*3"),
    (lambda: {"model": 3}, r"`model`.*int"),
    (lambda: {"model": build}, r"`model`.*function"),
    (lambda: {"model": scripted(8)}, r"`model`.*script"),
    (lambda: {"roles": ["hidden"]}, r"`roles` is a dict.*\['hidden'\]"),
    (lambda: {"roles": {"0.weight": 3}}, r"`roles`.*3"),
    (lambda: {"roles": {"0.weight": "hiden"}}, r"`roles`.*'hiden'"),
]


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated in one or the other category
@pytest.mark.parametrize(("case", "pattern"), every({"recorder": RECORDERS}))
def test_an_odd_recorder_works_or_says_why(case, pattern):
    given = {"model": build(8), "width": 8, **case()}
    if pattern is None:
        with Recorder(given.pop("model"), **given) as recorder:
            recorder.model(X)
            recorder.step()
        assert len(recorder.records())
        return
    with pytest.raises(ValueError) as caught:
        Recorder(given.pop("model"), **given)
    check_form(caught.value)
    assert re.search(pattern, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("loss", [1.0, None, torch.ones(3), "x"])
def test_a_recorded_loss_is_a_scalar(loss):
    with Recorder(build(8), width=8) as recorder, pytest.raises(ValueError, match="a loss is a tensor") as caught:
        recorder.record_loss(loss)
    check_form(caught.value)
