"""The model families that a configuration can name: what each builds, how it is initialized, and what it learns.

Each family is a cell; :func:`make_cell` picks it by the configuration's model.
"""

import dataclasses
from abc import abstractmethod
from functools import cached_property
from typing import Any

import mup
import torch
from torch import Tensor, nn

from coordcheck.cell import Cell
from coordcheck.config import (
    NO_NUMBERS,
    CheckConfig,
    Embedding,
    GPTConfig,
    HFConfig,
    Init,
    Parametrization,
    ParametrizationConfig,
    PostLNConfig,
    Readout,
    T5Config,
    default_model,
    head_count,
)
from coordcheck.data import Corpus, load_corpus
from coordcheck.initialize import Rule, Std, initialize
from coordcheck.models import GPT, T5, PostLN, hf
from coordcheck.models.layers import materialize
from coordcheck.optim import make_optimizer
from coordcheck.parametrization import infshapes, roles, shapes
from coordcheck.schemes import post_ln_rules
from coordcheck.set_prediction import make_scenes, set_loss
from coordcheck.train import default_loss, to_device

META = torch.device("meta")
SIZES = ("config", "depth", "encoder_depth", "decoder_depth", "head_size", "heads")
GPT2_STD = 0.02


def make_cell(config: CheckConfig) -> "ConfiguredCell":
    """The cell of a validated configuration."""
    families: dict[type, type[ConfiguredCell]] = {
        GPTConfig: GPTCell,
        T5Config: T5Cell,
        PostLNConfig: PostLNCell,
        HFConfig: HFCell,
    }
    return families[type(config.model)](config)


class ConfiguredCell(Cell):
    """A cell that a configuration describes.

    A family says its structure and its rules of initialization; it may have a batch and a loss of its own.

    Args:
        config: Validated.
    """

    def __init__(self, config: CheckConfig):
        self.config = config

    @cached_property
    def columns(self) -> dict[str, str]:  # type: ignore[override]
        """Labels that say all that makes the cell."""
        c = self.config
        readout = "" if c.readout.std is None else f" std={c.readout.std:g}"
        return {
            "model": self.describe_model(),
            "parametrization": f"{c.parametrization.name}",
            "embedding": f"{c.embedding.name}",
            "readout": f"{c.readout.name}{readout}",
            "optimizer": f"{c.optimizer.name} lr={c.optimizer.lr:g}",
        }

    def describe_model(self) -> str:
        """Name, size, and what differs from the family's file in ``configs/model``."""
        values, usual = vars(self.config.model), default_model(self.config.model.name)
        unusual = [name for name, value in values.items() if name not in ("name", *SIZES) and value != usual[name]]
        sizes = [name for name in SIZES if values.get(name) is not None]
        return " ".join([self.config.model.name, *(f"{name}={values[name]}" for name in (*sizes, *unusual))])

    @property
    def determinants(self) -> dict[str, Any]:  # type: ignore[override]
        """Values of the configuration that bear on numbers, and the text."""
        values = dataclasses.asdict(self.config)
        numbers = {key: value for key, value in values.items() if key not in NO_NUMBERS | {"widths"}}
        return {**numbers, "corpus": self.corpus_sha256}

    @cached_property
    def corpus_sha256(self) -> str | None:
        """Hash of the text, where there is one."""
        return self._corpus.sha256

    @cached_property
    def _corpus(self) -> Corpus:
        return load_corpus(self.config.data)

    @property
    def readout(self) -> str | None:
        """The readout's init where it is known what it should be."""
        return None if self.config.readout.name == Readout.own else self.config.readout.name

    @cached_property
    def _base_infshapes(self) -> dict[str, Any]:
        """Mup's base shapes, from a base and a delta model without memory."""
        base, delta = (self.on_meta(factor * self.config.base_width) for factor in (1, 2))
        result: dict[str, Any] = mup.make_base_shapes(base, delta)
        return result

    @cached_property
    def roles(self) -> dict[str, str]:  # type: ignore[override]
        """Role of each parameter, by name."""
        narrow, wide = (self.on_meta(factor * self.config.base_width) for factor in (1, 2))
        return roles(narrow, infshapes(shapes(narrow), shapes(wide)))

    @property
    def in_mup(self) -> bool:
        """Whether muP parametrizes it."""
        return self.config.parametrization.name == Parametrization.mup

    @property
    def tied(self) -> bool:
        """Whether the readout's weight is the embedding's."""
        return self.config.embedding.name != Embedding.untied

    def heads(self, width: int) -> int:
        """Number of attention heads."""
        return head_count(self.config.model, width)

    def on_meta(self, width: int) -> nn.Module:
        """The model without memory."""
        with META:
            return self.structure(width)

    def runnable_on_meta(self, width: int) -> nn.Module:
        """The model without memory, with the base shapes that mup's readouts ask for."""
        model = self.on_meta(width)
        if self.in_mup:
            mup.set_base_shapes(model, self._base_infshapes, rescale_params=False)
        return model

    @abstractmethod
    def structure(self, width: int) -> nn.Module:
        """The model, uninitialized; called on ``meta``."""

    def rules(self) -> list[Rule]:
        """What :func:`coordcheck.initialize.initialize` writes; nothing where a library initializes."""
        return []

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """A model on `device`, every parameter written once."""
        model = materialize(self.on_meta(width), device)
        initialize(model, self.roles, self.rules(), torch.Generator(device).manual_seed(seed))
        if self.in_mup:
            # Our table writes muP's values, so mup has nothing to rescale, as it would for torch's own fan-in init.
            # `tied_rescaled` lets it, as the released package does: the shared weight is then multiplied by
            # sqrt(width_mult), and with it the embedding (https://github.com/microsoft/mup/issues/55).
            rescale = self.config.embedding.name == Embedding.tied_rescaled
            mup.set_base_shapes(model, self._base_infshapes, rescale_params=rescale)
        return model

    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """An optimizer of its parameters."""
        return make_optimizer(model, self.config.optimizer, self.config.parametrization.name)

    def batch(self, seed: int, device: torch.device) -> Any:
        """Inputs and targets, (B, L) each."""
        data = self.config.data
        return to_device(self._corpus.batch(seed, data.batch, data.context), device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean cross entropy."""
        return default_loss(model, batch)

    def in_sp(self) -> "ConfiguredCell":
        """The twin in standard parametrization, at the same learning rate."""
        sp = ParametrizationConfig(Parametrization.sp)
        return make_cell(dataclasses.replace(self.config, parametrization=sp))

    def readout_std(self) -> Std:
        """The readout's init, under mup's multiplier in muP."""
        c = self.config
        return {
            Readout.zero: Std(0.0),
            Readout.constant: Std(c.base_width**-0.5 if c.readout.std is None else c.readout.std),
            Readout.fan_in: Std(1.0 if c.readout.std is None else c.readout.std, -0.5),
        }[c.readout.name]

    def embedding_std(self) -> Std:
        """The token embedding's init: a tied one has the readout's."""
        return self.readout_std() if self.tied else Std(self.config.embedding.std)


class GPTCell(ConfiguredCell):
    """A decoder of this project."""

    def attention_scale(self, width: int) -> float:
        """What q·k is multiplied by: K^-1/2 in SP; in muP proportional to 1/K and equal to SP at base width."""
        base = self.config.base_width // self.heads(self.config.base_width)
        head_size = width // self.heads(width)
        return float(base**0.5 / head_size if self.in_mup else head_size**-0.5)

    def structure(self, width: int) -> nn.Module:
        """A GPT."""
        c, model = self.config, self.config.model
        heads = self.heads(width)
        if heads % model.queries_per_key:
            raise ValueError(
                f"`model.queries_per_key` must divide the number of heads at every width; {model.queries_per_key} "
                f"does not divide {heads} at width {width}. For example model.queries_per_key=2."
            )
        return GPT(
            width,
            heads,
            self.attention_scale(width),
            depth=model.depth,
            vocab_size=c.data.vocab_size,
            context=c.data.context,
            bias=model.bias,
            positions=model.positions,
            tied=self.tied,
            mup_multiplier=c.readout.multiplier if self.in_mup else None,
            norm=model.norm,
            feed_forward=model.feed_forward,
            kv_heads=heads // model.queries_per_key,
            qk_norm=model.qk_norm,
        )

    def rules(self) -> list[Rule]:
        """Fan-in initialization, or GPT-2's.

        Tensor Programs V (arXiv 2203.03466), table 8, which the mup package follows: hidden weights fan_in^-1/2
        in standard and in muP, input weights, and the readout under mup's 1/width_mult multiplier, a constant.
        """
        return [
            Rule("input", r"^wte\.weight$", self.embedding_std()),
            Rule("input", r"^wpe\.weight$", Std(self.config.embedding.position_std)),
            Rule("hidden", r"(?<!proj)\.weight$", self._hidden_std()),
            Rule("hidden", r"attn\.proj\.weight$", self._hidden_std(residual=True)),
            Rule("hidden", r"mlp\.proj\.weight$", self._hidden_std(residual=True, fan_in=4)),
            Rule("readout", r"\.weight$", self.readout_std()),
            Rule("vector", r"\.weight$", mean=1.0),
            Rule("vector", r"\.bias$"),
            Rule("fixed", r"_norm\.weight$", mean=1.0),
        ]

    def _hidden_std(self, *, residual: bool = False, fan_in: int = 1) -> Std:
        """Of hidden weights whose fan-in is so many times the width; `residual` ones end a branch.

        GPT-2 (Radford et al. 2019; Hugging Face modeling_gpt2.py) has 0.02 at every width, and 0.02 / sqrt(2 depth) at
        the end of branches. In muP it has that at base width, and elsewhere what fan-in scaling makes of it.
        """
        c = self.config
        if c.model.init == Init.fan_in:
            return Std(1.0, -0.5)
        std = GPT2_STD * ((2 * c.model.depth) ** -0.5 if residual else 1.0)
        return Std(std * (fan_in * c.base_width) ** 0.5, -0.5) if self.in_mup else Std(std)


class T5Cell(ConfiguredCell):
    """An encoder-decoder of this project, which reads a text and writes on."""

    def structure(self, width: int) -> nn.Module:
        """A T5.

        T5 folds the scale of attention into the init of q. In muP the scale is K_base / K: the same at base width, and
        proportional to 1/K.
        """
        c, model = self.config, self.config.model
        head_size, base = (w // self.heads(w) for w in (width, c.base_width))
        # mup's multiplier takes the place of T5's D^-1/2 before a tied readout, and equals it at base width
        multiplier = c.readout.multiplier * (c.base_width**-0.5 if self.tied else 1.0)
        return T5(
            width,
            self.heads(width),
            base / head_size if self.in_mup else 1.0,
            encoder_depth=model.encoder_depth,
            decoder_depth=model.decoder_depth,
            vocab_size=c.data.vocab_size,
            tied=self.tied,
            mup_multiplier=multiplier if self.in_mup else None,
            feed_forward=model.feed_forward,
        )

    def rules(self) -> list[Rule]:
        """T5X's initializers (t5x examples/t5/layers.py): fan-in, q divided by sqrt(K), embeddings as configured.

        Position biases are added to the logits of attention, so their std keeps the size that Hugging Face gives them
        at base width (d^-1/2, modeling_t5.py).
        """
        c = self.config
        head_size = c.base_width // self.heads(c.base_width)
        bias = Std(c.base_width**-0.5)
        return [
            Rule("input", r"^wte\.weight$", self.embedding_std()),
            Rule("input", r"position_bias\.weight$", bias),
            Rule("fixed", r"position_bias\.weight$", bias),
            Rule("hidden", r"\.q\.weight$", Std(head_size**-0.5, -0.5) if self.in_mup else self._q_std()),
            Rule("hidden", r"(?<!\.q)\.weight$", Std(1.0, -0.5)),
            Rule("readout", r"\.weight$", self.readout_std()),
            Rule("vector", r"\.weight$", mean=1.0),
        ]

    def _q_std(self) -> Std:
        """(D K)^-1/2 in standard parametrization, where K is D / H if the count of heads is fixed."""
        model = self.config.model
        return Std(model.heads**0.5, -1.0) if model.heads is not None else Std(model.head_size**-0.5, -0.5)

    def batch(self, seed: int, device: torch.device) -> Any:
        """What the encoder and the decoder read, and the decoder's targets: (B, L) each."""
        length = self.config.data.context
        inputs, targets = self._corpus.batch(seed, self.config.data.batch, 2 * length)
        return to_device(((inputs[:, :length], inputs[:, length:]), targets[:, length:]), device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean cross entropy of the decoder's tokens."""
        inputs, targets = batch
        return nn.functional.cross_entropy(model(*inputs).flatten(0, -2), targets.flatten())


class PostLNCell(ConfiguredCell):
    """The encoder-decoder of DETR, which finds objects in scenes."""

    INPUT_SIZE = 16
    cross_entropy = False

    @property
    def corpus_sha256(self) -> str | None:
        """None: scenes are generated."""
        return None

    def structure(self, width: int) -> nn.Module:
        """A post-LN encoder-decoder."""
        model = self.config.model
        heads = self.heads(width)
        return PostLN(
            width,
            heads,
            (width // heads) ** -0.5,
            encoder_depth=model.encoder_depth,
            decoder_depth=model.decoder_depth,
            feed_forward=model.feed_forward_ratio * width,
            input_size=self.INPUT_SIZE,
            queries=model.queries,
            classes=self.config.data.vocab_size,
            box_size=2,
            eps=model.eps,
            mup_multiplier=None,
        )

    def rules(self) -> list[Rule]:
        """Those of the scheme."""
        model = self.config.model
        return post_ln_rules(
            model.init,
            feed_forward_ratio=model.feed_forward_ratio,
            encoder_depth=model.encoder_depth,
            decoder_depth=model.decoder_depth,
        )

    def batch(self, seed: int, device: torch.device) -> Any:
        """Scenes."""
        data = self.config.data
        return make_scenes(
            seed, data.batch, length=data.context, classes=data.vocab_size, input_size=self.INPUT_SIZE
        ).to(device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """DETR's, summed over the decoder's blocks."""
        logits, boxes = model(batch.features)
        losses = [set_loss(*of_block, batch) for of_block in zip(logits, boxes, strict=True)]
        return torch.stack(losses).sum()


class HFCell(ConfiguredCell):
    """A model of Hugging Face transformers, initialized by transformers."""

    def structure(self, width: int) -> nn.Module:
        """The model; transformers writes it too, unless on ``meta``."""
        return self._model(width, None)

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """A model on `device`, as transformers initializes it."""
        return self._model(width, seed).to(device)

    def _model(self, width: int, seed: int | None) -> nn.Module:
        return hf.build(self._scaled(width), seed)

    def _scaled(self, width: int) -> Any:
        c, model = self.config, self.config.model
        return hf.scaled_config(
            model.config,
            width,
            self.heads(width),
            depth=model.depth,
            vocab_size=c.data.vocab_size,
            context=c.data.context,
            tied=self.tied,
            overrides=model.overrides,
        )

    def batch(self, seed: int, device: torch.device) -> Any:
        """Arguments of the model: tokens to go on with, or for an encoder-decoder to read and to write."""
        length = self.config.data.context
        config = self._scaled(self.config.base_width)
        if not config.is_encoder_decoder:
            return to_device(hf.make_batch(config, *self._corpus.batch(seed, self.config.data.batch, length)), device)
        tokens, _ = self._corpus.batch(seed, self.config.data.batch, 2 * length)
        return to_device(hf.make_batch(config, tokens[:, :length], tokens[:, length:]), device)
