"""Models of this package's families, put into muP by a dozen lines that share nothing with the package's own."""

import re
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import mup
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from coordcheck.models.gpt import GPT
from coordcheck.models.post_ln import PostLN
from coordcheck.models.t5 import T5
from coordcheck.observe.roles import fans
from planted.case import CONTEXT, VOCAB, Build, Case, MakeOptimizer, Plant, frozen, output_times, written, zipf

LR = 1e-3
BATCH = 8
HEAD_SIZE = 16


def in_mup(
    structure: Build,
    base: int,
    *,
    plant: Plant = lambda model, mult: None,
    readout_std: float = 0.0,
    rescale: bool = False,
    shapes_of: Build | None = None,
) -> Build:
    """Initializes what `structure` builds as Tensor Programs V (arXiv 2203.03466), table 8, says.

    Args:
        structure: From width to model.
        base: Width at which all parametrizations agree.
        plant: A fault, given the model and width / base.
        readout_std: Of readouts that are multiplied by 1/width.
        rescale: Whether ``mup.set_base_shapes`` rescales weights for torch's own init, after ours.
        shapes_of: What the base shapes are taken from; None for `structure`.
    """

    @cache
    def base_shapes() -> Any:
        with torch.device("meta"):
            return mup.make_base_shapes(*((shapes_of or structure)(width) for width in (base, 2 * base)))

    def build(width: int) -> nn.Module:
        model = structure(width)
        shapes = base_shapes()
        mup.set_base_shapes(model, shapes, rescale_params=False, do_assert=False)
        owners = dict(model.named_modules())
        readouts = {module.weight for module in owners.values() if isinstance(module, mup.MuReadout)}
        with torch.no_grad():
            for name, p in model.named_parameters():
                fan_in, _ = fans(owners[name.rpartition(".")[0]], p.shape)
                if p.dim() < 2:
                    p.fill_(1.0 if name.endswith("weight") else 0.0)
                elif p in readouts:
                    p.normal_(0.0, readout_std)
                else:
                    p.normal_(0.0, fan_in**-0.5)  # 1 for an embedding, which looks up a row
        if rescale:
            for module in model.modules():
                if isinstance(module, mup.MuReadout):
                    module._rescale_parameters()
        plant(model, width / base)
        return model

    return build


def gpt(width: int, *, heads: int | None = None, scale: float = HEAD_SIZE**-0.5, **options: Any) -> GPT:
    """A GPT of two blocks whose count of heads grows."""
    options = {"depth": 2, "tied": False, "mup_multiplier": 1.0} | options
    return GPT(
        width,
        heads or width // HEAD_SIZE,
        scale,
        vocab_size=VOCAB,
        context=CONTEXT,
        bias=False,
        positions="learned",
        **options,
    )


def t5(width: int, **options: Any) -> T5:
    """A T5 of one block each."""
    options = {"tied": False, "mup_multiplier": 1.0} | options
    return T5(width, width // HEAD_SIZE, HEAD_SIZE**-0.5, encoder_depth=1, decoder_depth=1, vocab_size=VOCAB, **options)


def post_ln(width: int, mup_multiplier: float | None = 1.0) -> PostLN:
    """A post-LN encoder-decoder of one and two blocks.

    Its decoder starts from zeros, so the first values are the same at all positions, and the first queries and keys
    have gradients of exactly zero. What rounding leaves of that, Adam with a small epsilon would make full steps of.
    """
    model = PostLN(
        width,
        width // HEAD_SIZE,
        HEAD_SIZE**-0.5,
        encoder_depth=1,
        decoder_depth=2,
        feed_forward=4 * width,
        input_size=16,
        queries=8,
        classes=7,
        box_size=2,
        eps=1e-5,
        mup_multiplier=mup_multiplier,
    )
    frozen(r"decoder\.0\.self_attn\.[qk]\.")(model, 1.0)
    return model


def hugging_face(width: int) -> nn.Module:
    """Hugging Face's GPT-2 with an untied readout of the mup package."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": width, "n_head": width // HEAD_SIZE, "n_layer": 2, "vocab_size": VOCAB, "n_positions": CONTEXT}
    model = GPT2LMHeadModel(
        GPT2Config(**sizes, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, bos_token_id=None, eos_token_id=None)
    )
    model.lm_head = mup.MuReadout(width, VOCAB, bias=False)
    return model


def next_tokens(seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a decoder."""
    tokens = zipf(seed, BATCH, CONTEXT + 1)
    return tokens[:, :-1], tokens[:, 1:]


def source_and_target(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of an encoder, and inputs and targets of a decoder."""
    return zipf(seed + 1000, BATCH, CONTEXT), *next_tokens(seed)


def t5_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross entropy of the decoder's next tokens."""
    source, inputs, targets = batch
    return F.cross_entropy(model(source, inputs).flatten(0, 1), targets.flatten())


def labelled_queries(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, and a class and a box for every query."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(BATCH, CONTEXT, 16, generator=generator)
    classes = torch.randint(8, (BATCH, 8), generator=generator)
    return features, classes, torch.rand(BATCH, 8, 2, generator=generator)


def post_ln_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross entropy of the classes and the L1 distance of the boxes, of the last decoder block."""
    features, classes, boxes = batch
    logits, predicted = model(features)
    return F.cross_entropy(logits[-1].flatten(0, 1), classes.flatten()) + (predicted[-1] - boxes).abs().mean()


def adam(
    pattern: str = "^$",
    exponent: float = 0.0,
    *,
    lr: float = LR,
    eps: float = 1e-12,
    only: str = "",
    kind: type[torch.optim.Optimizer] = torch.optim.Adam,
    **values: Any,
) -> MakeOptimizer:
    """Adam with muP's learning rates, 1/width_mult for what grows in both dimensions.

    Args:
        pattern: Whose learning rate is multiplied by ``width_mult ** exponent`` besides.
        exponent: Of that factor.
        lr: At base width.
        eps: Adam's.
        only: Pattern of the parameters that are trained.
        kind: Adam or AdamW.
        values: Others of every group.
    """

    def make(model: nn.Module) -> torch.optim.Optimizer:
        groups = []
        for name, p in model.named_parameters():
            mult = p.infshape.width_mult()
            scaled = lr / mult if p.infshape.ninf() == 2 else lr
            scaled *= mult**exponent if re.search(pattern, name) else 1.0
            if p.requires_grad and re.search(only, name):
                groups.append({"params": [p], "lr": scaled})
        return kind(groups, lr=lr, eps=eps, **values)  # type: ignore[call-arg]

    return make


def mups(kind: Any, lr: float, **values: Any) -> MakeOptimizer:
    """An optimizer of the mup package."""
    return lambda model: kind(model.parameters(), lr=lr, **values)


def correct(base: int) -> Iterator[Case]:
    """Models that no check may fail."""
    std = base**-0.5
    put = partial(in_mup, base=base)
    on_gpt = partial(Case, batch=next_tokens, optimizer=adam())
    on_t5 = partial(Case, batch=source_and_target, loss=t5_loss, optimizer=adam())
    yield on_gpt("GPT, zero readout", put(gpt))
    yield on_gpt("GPT, constant readout", put(gpt, readout_std=std))
    tied = partial(gpt, tied=True)
    yield on_gpt("GPT, tied", put(tied, readout_std=std))
    yield on_gpt("GPT, tied, zero", put(tied))
    yield on_gpt("GPT, grouped queries", put(lambda width: gpt(width, kv_heads=width // HEAD_SIZE // 2)))
    yield on_gpt("GPT, SwiGLU", put(partial(gpt, feed_forward="swiglu")))
    yield on_gpt("GPT, RMS norm", put(partial(gpt, norm="rms")))
    yield on_gpt("GPT, QK norm", put(partial(gpt, qk_norm=True)))
    yield on_gpt("GPT, six blocks", put(partial(gpt, depth=6)))
    yield on_gpt("GPT, four growing heads", put(lambda width: gpt(width, heads=4, scale=4 * base**0.5 / 2 / width)))
    yield on_gpt("GPT, small learning rate", put(gpt), optimizer=adam(lr=1e-5))
    yield on_gpt("GPT, large learning rate", put(gpt), optimizer=adam(lr=1e-2))
    yield on_gpt("GPT, MuAdam", put(gpt), optimizer=mups(mup.MuAdam, LR, eps=1e-12))
    yield on_gpt("GPT, MuSGD", put(gpt, readout_std=std), optimizer=mups(mup.MuSGD, 0.1))
    yield on_gpt("GPT, MuAdamW", put(gpt), optimizer=mups(mup.MuAdamW, LR, eps=1e-12, weight_decay=0.1))
    yield on_gpt("GPT, logits divided by width after the readout", divided_logits(base, std))
    plain = put(partial(gpt, mup_multiplier=None), plant=written(r"lm_head", base**0.5, -1.0))
    yield on_gpt("GPT, plain readout with std and rate 1/width", plain, optimizer=adam("lm_head", -1.0))
    yield on_gpt("GPT, activation checkpointing", put(gpt, plant=checkpointing))
    yield on_t5("T5, zero readout", put(t5))
    yield on_t5("T5, tied, constant", put(partial(t5, tied=True), readout_std=std))
    yield on_t5("T5, GEGLU", put(partial(t5, feed_forward="geglu"), readout_std=std))
    yield Case("post-LN", put(post_ln), labelled_queries, adam(), post_ln_loss)
    yield Case("Hugging Face's GPT-2", put(hugging_face), next_tokens, adam())


def divided_logits(base: int, std: float) -> Build:
    """A GPT with a plain readout whose logits are multiplied by 1/width_mult when they leave the model."""
    plain = partial(gpt, mup_multiplier=None)

    def plant(model: nn.Module, mult: float) -> None:
        nn.init.normal_(model.lm_head.weight, std=std)  # type: ignore[union-attr, arg-type]
        output_times("", -1.0)(model, mult)

    return in_mup(plain, base, plant=plant)


def checkpointing(model: nn.Module, mult: float) -> None:
    """Makes every block forget its activations and compute them again in the backward pass."""
    for block in model.blocks:  # type: ignore[union-attr]
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
