"""The batches of a corpus as torch's tensors."""

from typing import Any

import torch

from coordcheck.config.schema import DataConfig
from coordcheck.models import corpus


class Corpus(corpus.Corpus):
    """A sequence of token ids, see :class:`coordcheck.models.corpus.Corpus`."""

    def batch(self, seed: int, sequences: int, context: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random windows of the corpus.

        Args:
            seed: Which windows.
            sequences: B.
            context: L.

        Returns:
            Inputs and targets, int64 (B, L) each, the targets one token ahead.

        Raises:
            ValueError: if a token is outside the vocabulary.
        """
        tokens = torch.from_numpy(self.windows(seed, sequences, context))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def load_corpus(config: DataConfig) -> Corpus:
    """The corpus that `config` names.

    Raises:
        ValueError: if a file is missing, empty or shorter than one batch.
    """
    found: Any = vars(corpus.load_corpus(config))
    return Corpus(**found)
