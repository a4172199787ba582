"""microsoft/mup#55 where it began: layers split over ranks by hand, and an embedding shared with the readout."""

import megatron
import pytest
from harness import differences

from coordcheck.judge.slopes import fit


@pytest.mark.parametrize("case", megatron.CASES)
def test_layers_split_by_hand_equal_one_process(two, case):
    assert differences(two(megatron.on_all, case)[0], two(megatron.on_one, case)[0]) == []
