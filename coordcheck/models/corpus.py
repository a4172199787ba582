"""Seeded token batches: real text from the standard library, any file, a file of token ids, or Zipf noise.

Nothing is downloaded. A batch depends on the corpus and the seed alone, so all widths of a seed share it. Imports no
torch.
"""

import hashlib
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordcheck.config.rules import LARGEST_VOCABULARY
from coordcheck.config.schema import DataConfig, Source

ZIPF_TOKENS = 1 << 20


@dataclass(frozen=True, eq=False)
class Corpus:
    """A sequence of token ids.

    Attributes:
        tokens: One-dimensional array of ids, possibly memory-mapped.
        vocab_size: Ids are below this.
        sha256: Hash of the tokens' bytes.
        name: What it is, for messages and reports.
    """

    tokens: NDArray[Any]
    vocab_size: int
    sha256: str
    name: str

    def windows(self, seed: int, sequences: int, context: int) -> NDArray[np.int64]:
        """Random windows of the corpus.

        Args:
            seed: Which windows.
            sequences: B.
            context: L.

        Returns:
            (B, L + 1): inputs, and from the second token on targets.

        Raises:
            ValueError: if a token is outside the vocabulary.
        """
        starts = np.random.default_rng(seed).integers(0, len(self.tokens) - context, sequences)
        windows = np.stack([self.tokens[start : start + context + 1] for start in starts]).astype(np.int64)
        if windows.max() >= self.vocab_size or windows.min() < 0:
            odd = windows.min() if windows.min() < 0 else windows.max()
            wider = min(max(256, int(odd) + 1), LARGEST_VOCABULARY)
            raise ValueError(
                f"`data.vocab_size` must exceed every token id, and none is negative; {self.name} holds {odd}, "
                f"vocab_size is {self.vocab_size}. For example data.vocab_size={wider}, or data.dtype=uint16."
            )
        return windows


def load_corpus(config: DataConfig) -> Corpus:
    """The corpus that `config` names.

    Raises:
        ValueError: if a file is missing, empty or shorter than one batch.
    """
    tokens, name = _read(config.name, config.path, config.dtype, config.vocab_size)
    need = config.batch * config.context + 1
    if len(tokens) < need:
        raise ValueError(
            f"`data` must hold at least one batch, data.batch x data.context + 1 = {need} tokens; {name} holds "
            f"{len(tokens)}. For example data.batch=1 data.context=32, or data=stdlib."
        )
    return Corpus(tokens, config.vocab_size, _sha256(tokens), name)


@lru_cache(maxsize=1)
def _stdlib_text() -> NDArray[np.uint8]:
    from pydoc_data import topics

    return np.frombuffer("\n".join(topics.topics.values()).encode(), dtype=np.uint8)


def _read(source: Source, path: str | None, dtype: str, vocab_size: int) -> tuple[NDArray[Any], str]:
    if source == Source.stdlib:
        return (
            _stdlib_text(),
            f"pydoc_data.topics of Python {sys.version_info.major}.{sys.version_info.minor}",
        )
    if source == Source.zipf:
        # p(k) proportional to 1 / (k + 1), by inverting the cumulative sum; one fixed corpus for a vocabulary
        cumulative = np.cumsum(1 / np.arange(1, vocab_size + 1))
        uniform = np.random.default_rng(0).random(ZIPF_TOKENS) * cumulative[-1]
        return np.searchsorted(cumulative, uniform).astype(np.int32), f"Zipf noise over {vocab_size} tokens"
    if path is None or not Path(path).is_file():
        raise ValueError(
            f"`data.path` must be a file that exists; got {path}. For example data={source} data.path="
            f"{'train.bin' if source == Source.tokens else 'book.txt'}."
        )
    size = Path(path).stat().st_size
    if source == Source.file:
        return np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8), path
    try:
        item = np.dtype(dtype)
    except TypeError:
        item = np.dtype(object)
    if item.kind not in "iu" or size % item.itemsize:
        raise ValueError(
            f"`data.dtype` must be an integer type whose size divides the file's {size} bytes; got {dtype}. "
            f"For example data.dtype=uint16."
        )
    return np.memmap(path, item, "r") if size else np.empty(0, item), path


def _sha256(tokens: NDArray[Any]) -> str:
    """Of all of it, though that takes seconds per gigabyte: stored runs are reused by this hash."""
    return hashlib.sha256(np.ascontiguousarray(tokens).data).hexdigest()
