"""microsoft/mup#55 where it began: layers split over ranks by hand, and an embedding shared with the readout."""

import megatron
import pytest
from harness import differences

from coordcheck.judge.slopes import fit


@pytest.mark.parametrize("case", megatron.CASES)
def test_layers_split_by_hand_equal_one_process(two, case):
    assert differences(two(megatron.on_all, case)[0], two(megatron.on_one, case)[0]) == []


@pytest.fixture(scope="module")
def slopes(two):
    """Of activations, by case, module and step."""
    fits = {case: fit(two(megatron.over_widths, case)[0]).set_index(["module", "step"]) for case in megatron.CASES}
    return {case: table["slope"] for case, table in fits.items()}


def test_only_an_embedding_that_is_rescaled_twice_grows_with_width(slopes):
    for step in range(4):
        assert abs(slopes["untied"]["wte", step]) < 0.05
        assert abs(slopes["tied"]["wte", step]) < 0.05
        assert 0.45 < slopes["tied_rescaled"]["wte", step] < 0.55


def test_the_last_norm_hides_it_and_block_and_logits_show_it(slopes):
    for case in megatron.CASES:
        assert abs(slopes[case]["norm", 3]) < 0.03
    assert slopes["tied_rescaled"]["blocks.1", 3] > 0.3
    assert slopes["tied_rescaled"]["head", 3] > 0.1
    for case in ("untied", "tied"):
        assert abs(slopes[case]["blocks.1", 3]) < 0.15
        assert -0.6 < slopes[case]["head", 0] < -0.35
        assert slopes[case]["head", 3] < -0.1


def test_how_many_classes_there_are_is_not_guessed_where_they_are_split_by_hand(two):
    assert "classes" not in two(megatron.on_all, "untied")[0].attrs
