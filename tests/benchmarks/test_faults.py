"""The benchmark of planted faults, on a handful of them end to end."""

from types import SimpleNamespace

import faults
import pytest
import torch
from planted.advice import Applied, changes_of, followed

from coordcheck.judge.diagnose.evidence import FAULT_CLASSES
from coordcheck.judge.finding import Finding


def test_there_are_enough_cases_and_each_has_its_class():
    planted, right = list(faults.faulty(64)), list(faults.correct(64))
    assert len(planted) >= 30 and len(right) >= 15
    assert {cause for case in planted for cause in case.causes} == {*FAULT_CLASSES} - {"unexplained"}
    theirs, right = list(faults.faulty_others(64)), list(faults.correct_others(64))
    assert len(theirs) >= 25 and len(right) >= 15
    assert {cause for case in theirs for cause in case.causes} == {*FAULT_CLASSES} - {"unexplained"}
    assert faults.cases(64).keys() == faults.cases(128).keys()


def test_no_two_cases_have_the_same_name():
    generators = {of for generators in faults.GENERATORS.values() for of in generators}
    assert len(faults.cases(64)) == sum(len(list(of(64))) for of in generators)


def test_the_places_of_a_fault_are_modules_at_every_width():
    for case in faults.faulty_others(64):
        for width in (64, 128):
            with torch.device("meta"):
                modules = dict(case.build(width).named_modules())
            assert {*case.places} <= {*modules, "(model)"}, case.name


@pytest.mark.parametrize(
    "name",
    [
        "one k's init std constant",
        "last layer's rate width^-1/2",
        "scheduler overwrites the rates",
        "1/sqrt(head size) with growing heads",
        "residual stream times sqrt(width)",
        "one layer without gradient",
        "shared readout rescaled",
        "warmup: learning rate 1e-9",
        "batch shrinks with width",
        "LSTM: one matrix's std constant",
        "LoRA: one rate",
        "ViT: plain readout, constant std",
        "OPT: tie lost on meta",
    ],
)
def test_a_planted_fault_is_named_with_its_place_and_cause(name):
    case = faults.cases(64)[name]
    check = faults.check_case(case, range(20, 23))
    assert check.verdict == ("inconclusive" if case.cause in ("gentle", "harness") else "fail")
    assert check.findings[0].fault in case.causes
    assert check.findings[0].module.partition("[")[0] in case.places


@pytest.mark.parametrize(
    "name",
    ["GPT, logits divided by width after the readout", "GPT, activation checkpointing", "ConvNet, SGD", "OPT, tied"],
)
def test_a_correct_model_has_no_fault(name):
    check = faults.check_case(faults.cases(64)[name], range(20, 23))
    assert not [finding for finding in check.findings if finding.fault]
    assert check.verdict != "fail"


def test_a_fault_that_is_made_right_as_advised_is_gone():
    case = faults.cases(64)["LSTM: one matrix's rate constant"]
    advised = [Applied("learning_rate", -1.0, ("lstm.weight_ih_l1",), "lstm")]
    check = faults.check_case(followed(case, advised, 64), range(20, 23))
    assert not [finding for finding in check.findings if finding.fault]


def test_changes_reach_weights_rates_and_products():
    case = faults.cases(64)["LSTM: plain readout"]
    tokens, _ = case.batch(0)

    def built(*changes):
        advised = followed(case, changes, 64)
        torch.manual_seed(0)
        model = advised.build(128)
        return model, advised.optimizer(model)

    plain, _ = built()
    model, optimizer = built(
        Applied("init_std", 2.0, ("embedding.weight",), "embedding"),
        Applied("learning_rate", -1.0, ("lstm.bias_hh_l0",), "lstm"),
        Applied("epsilon", 3.0, ("head.weight",), "head"),
    )
    assert torch.equal(model.embedding.weight, 4 * plain.embedding.weight)
    assert torch.equal(model.head.weight, plain.head.weight)
    group = {
        name: next(g for g in optimizer.param_groups if g["params"][0] is p) for name, p in model.named_parameters()
    }
    assert group["lstm.bias_hh_l0"]["lr"] == pytest.approx(group["lstm.bias_hh_l1"]["lr"] / 2)
    assert group["head.weight"]["eps"] == pytest.approx(8 * group["head.bias"]["eps"])
    expected = plain(tokens)
    for advice in ("Multiply its input by 1 / width_mult.", "Multiply it / width_mult."):
        divided, _ = built(Applied("multiplier", -1.0, ("head.weight",), "head", advice))
        torch.testing.assert_close(divided(tokens), expected / 2)  # the bias of the logits is zero


def test_a_weight_that_is_used_past_its_module_is_multiplied_where_it_is_used():
    case = faults.cases(64)["Llama: readout's weight used past it"]
    advised = Applied("multiplier", -1.0, ("lm_head.weight",), "(model)", "Multiply its input by 1 / width_mult.")
    logits = []
    for changes in ((), (advised,)):
        torch.manual_seed(0)
        logits.append(followed(case, changes, 64).build(128)(case.batch(0)[0]))
    torch.testing.assert_close(logits[1], logits[0] / 2)


def test_changes_for_the_same_parameters_are_made_together_and_once():
    def finding(parameter, quantity, exponent):
        made = Finding("init", "wte", parameter, "", "")
        values = {"parameters": (parameter,), "change": SimpleNamespace(quantity=quantity, exponent=exponent)}
        return SimpleNamespace(**{**vars(made), **values})

    first = finding("wte.weight", "init_std", 0.5)
    others = [
        finding("wte.weight", "learning_rate", 1.0),
        finding("wte.weight", "init_std", 0.4),
        finding("lm_head.weight", "init_std", 1.0),
    ]
    made = changes_of(first, [first, *others])
    assert [(change.quantity, change.exponent) for change in made] == [("init_std", 0.5), ("learning_rate", 1.0)]
    assert changes_of(Finding("dead", "wte", "wte.weight", "", ""), [first]) == []
