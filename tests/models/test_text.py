"""Batches: where they come from, that they depend on the seed alone, and what bad files say."""

import hashlib

import numpy as np
import pytest

from conftest import tiny_config
from coordcheck.models.text import load_corpus


def corpus(*overrides):
    return load_corpus(tiny_config(*overrides).data)


def test_the_default_is_english_that_python_carries():
    from pydoc_data import topics

    found = corpus()
    text = bytes(found.tokens)
    assert all(topic.encode() in text for topic in list(topics.topics.values())[:5])
    assert found.sha256 == hashlib.sha256(text).hexdigest()
    assert len(text) > 400_000


def test_a_batch_is_a_function_of_the_seed():
    first, again, other = (corpus().batch(seed, 4, 16)[0] for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_targets_are_one_token_ahead():
    inputs, targets = corpus().batch(0, 4, 16)
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs[:, 1:].equal(targets[:, :-1])


def test_windows_reach_the_last_token(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(bytes(range(17)))
    seen = corpus("data=file", f"data.path={path}", "data.batch=1", "data.context=16").batch(0, 50, 16)[1]
    assert seen.max() == 16


def test_token_files_are_memory_mapped(tmp_path):
    path = tmp_path / "train.bin"
    np.arange(1000, dtype=np.uint16).tofile(path)
    found = corpus("data=tokens", f"data.path={path}", "data.vocab_size=1000")
    assert isinstance(found.tokens, np.memmap)
    inputs, _ = found.batch(0, 2, 16)
    assert (inputs.diff(dim=1) == 1).all()


def test_zipf_noise_has_zipfs_frequencies():
    found = corpus("data=zipf", "data.vocab_size=100")
    counts = np.bincount(found.tokens, minlength=100)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.1)


def test_a_token_outside_the_vocabulary_is_named(tmp_path):
    path = tmp_path / "train.bin"
    np.full(1000, 300, dtype=np.uint16).tofile(path)
    with pytest.raises(ValueError, match=r"`data.vocab_size`.*300.*data.vocab_size=301"):
        corpus("data=tokens", f"data.path={path}", "data.vocab_size=256").batch(0, 2, 16)


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (None, ["data=file"], r"`data.path` must be a file that exists.*For example"),
        (b"", ["data=file"], r"at least one batch.*holds 0"),
        (b"short", ["data=file"], r"data.batch x data.context \+ 1 = 33 tokens.*holds 5"),
        (b"odd", ["data=tokens"], r"`data.dtype`.*3 bytes; got uint16"),
        (b"even", ["data=tokens", "data.dtype=float32"], r"`data.dtype` must be an integer type.*float32"),
        (b"even", ["data=tokens", "data.dtype=words"], r"`data.dtype`.*words"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, content, overrides, message):
    path = tmp_path / "corpus"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        corpus(*overrides, "data.batch=2", "data.context=16", f"data.path={path}")


def test_a_path_must_be_given():
    with pytest.raises(ValueError, match="got None"):
        corpus("data=file")
