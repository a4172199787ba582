"""The check as a test; coord_check is a fixture that comes with coordcheck."""

import torch
from lm.model import VOCABULARY, build, optimizer


def batch(seed):
    """Tokens and the tokens after them."""
    tokens = torch.randint(VOCABULARY, (8, 65), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def test_the_model_keeps_its_sizes(coord_check):
    """Every activation and every update, at every width."""
    coord_check(build, batch, widths=(64, 128, 256, 512), optimizer=optimizer).assert_passes()
