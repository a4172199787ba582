"""Any configuration of Hugging Face transformers as a model that grows with width, in its own initialization.

Weights come from transformers' own ``_init_weights``, sizes from :mod:`coordcheck.models.hf_sizes`. Three kinds of
models learn from tokens: causal models the next token, masked ones the tokens behind a mask, and encoder-decoders to
write on. Nothing is read from the hub.
"""

from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from coordcheck.config.schema import Embedding
from coordcheck.models.configured import ConfiguredCell
from coordcheck.models.hf_sizes import scaled_config
from coordcheck.models.hf_types import config_class, import_transformers, in_line, kind_of_model, refusal
from coordcheck.run.device import to_device

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["build", "config_class", "kind_of_model", "make_batch", "scaled_config"]

_IGNORED = -100  # a label that transformers' losses leave out
_MASKED_EVERY = 7  # one token of seven is masked, 14 %; BERT (arXiv 1810.04805) masks 15 %
_generator_in_use = Lock()  # torch's global generator belongs to all threads, and several runs may be built at a time


def build(config: "PretrainedConfig", seed: int | None = None, *, tied: bool | None = None) -> "PreTrainedModel":
    """The causal, masked or encoder-decoder language model of a configuration.

    Args:
        config: For example from :func:`scaled_config`.
        seed: Of torch's global generator, or None to draw on from its present state.
        tied: Whether the readout's weight must be the embedding's; None to take it as it is.

    Returns:
        The model, its weights drawn by transformers from torch's global generator; within
        ``torch.device("meta")`` its structure only.

    Raises:
        ValueError: if transformers has no language model for it or cannot build it, or it ties where it should not,
            or the reverse.
    """
    transformers = import_transformers()
    auto = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "seq2seq": "AutoModelForSeq2SeqLM"}
    kind = kind_of_model(config)
    with _generator_in_use:
        if seed is not None:
            torch.manual_seed(seed)
        try:
            model: PreTrainedModel = getattr(transformers, auto[kind]).from_config(config)
        except Exception as error:  # of any model class of transformers, KeyError to AssertionError
            raise refusal(type(config), f"transformers cannot build its model, {in_line(error)}") from error
    if tied is not None and tied != is_tied(model):
        raise ValueError(
            f"the embeddings of {type(model).__name__} in transformers {transformers.__version__} are "
            f"{'untied' if tied else 'tied'} whatever its configuration says; got tied={tied}. For example "
            f"embedding={'untied' if tied else 'tied'}."
        )
    return model


def is_tied(model: "PreTrainedModel") -> bool:
    """Whether the readout's weight is the token embedding's."""
    readout = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return readout is not None and readout.weight is model.get_input_embeddings().weight


def make_batch(config: "PretrainedConfig", inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Token ids as the arguments of ``model(**batch)``, with which the model computes a loss.

    Args:
        config: Of the model.
        inputs: (B, L), what a causal model or an encoder reads.
        targets: (B, L), what a causal model predicts at the same positions, or a decoder writes. A masked model has no
            use for them: it predicts its inputs.

    Returns:
        For a causal model, the targets one position later, because it shifts its labels back; the last target is
        lost. For a masked model, inputs of which every seventh is the mask, and those as labels. For an
        encoder-decoder, a decoder's input too: the targets behind a start token.
    """
    kind = kind_of_model(config)
    if kind == "causal":
        # The decoders of encoder-decoders, as TrOCR's, take labels as they are; all others shift them back.
        as_they_are = getattr(config, "decoder_start_token_id", None) is not None
        return {
            "input_ids": inputs,
            "labels": targets.contiguous() if as_they_are else _shifted(targets, inputs[:, :1]),
        }
    if kind == "masked":
        masked = torch.zeros_like(inputs, dtype=torch.bool)
        masked[:, ::_MASKED_EVERY] = True
        return {
            "input_ids": inputs.masked_fill(masked, _mask_token(config)),
            "labels": inputs.masked_fill(~masked, _IGNORED),
        }
    ids = (getattr(config, f"{token}_token_id", None) for token in ("decoder_start", "pad", "bos"))
    start = torch.full_like(targets[:, :1], next((i for i in ids if i is not None), 0))
    return {"input_ids": inputs, "decoder_input_ids": _shifted(targets, start), "labels": targets.contiguous()}


def _mask_token(config: "PretrainedConfig") -> int:
    """The mask of the configuration, or the last token of its vocabulary, which no byte of a text in UTF-8 is."""
    token: int | None = getattr(config, "mask_token_id", None)
    return int(config.vocab_size) - 1 if token is None else token


def _shifted(tokens: Tensor, first: Tensor) -> Tensor:
    """Tokens, (B, L), one position later, behind `first`, (B, 1)."""
    return torch.cat([first, tokens[:, :-1]], dim=1)


class HFCell(ConfiguredCell):
    """A model of Hugging Face transformers, initialized by transformers."""

    @property
    def asked_tie(self) -> bool | None:
        """Whether the readout's weight is to be the embedding's; None for what the configuration class says."""
        return None if self.config.embedding.name == Embedding.own else self.tied

    @property
    def determinants(self) -> dict[str, Any]:  # type: ignore[override]
        """Those of every configured cell, and the version of transformers, which makes the model."""
        return {**super().determinants, "transformers": version("transformers")}

    def structure(self, width: int) -> nn.Module:
        """The model; transformers writes it too, unless on ``meta``."""
        return self._model(width, None)

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """A model on `device`, as transformers initializes it."""
        return self._model(width, seed).to(device)

    def _model(self, width: int, seed: int | None) -> nn.Module:
        return build(self._scaled(width), seed, tied=self.asked_tie)

    def _scaled(self, width: int) -> Any:
        c, model = self.config, self.config.model
        return scaled_config(
            model.config,
            width,
            self.heads(width),
            depth=model.depth,
            vocab_size=c.data.vocab_size,
            context=c.data.context,
            tied=self.asked_tie,
            overrides=model.overrides,
            base_width=c.base_width,
            base_heads=self.heads(c.base_width),
        )

    def batch(self, seed: int, device: torch.device) -> Any:
        """Arguments of the model: tokens to go on with or to fill in, or for an encoder-decoder to read and write."""
        length = self.config.data.context
        config = self._scaled(self.config.base_width)
        if not config.is_encoder_decoder:
            return to_device(make_batch(config, *self._corpus.batch(seed, self.config.data.batch, length)), device)
        tokens, _ = self._corpus.batch(seed, self.config.data.batch, 2 * length)
        return to_device(make_batch(config, tokens[:, :length], tokens[:, length:]), device)
