"""Is a planted fault seen, is its place named first, and its cause? Prints the tables of benchmarks/README.md.

    python benchmarks/faults.py run first     # trains: seeds 0 to 2, base width 64
    python benchmarks/faults.py run second    # seeds 10 to 12, base width 128
    python benchmarks/faults.py run third     # seeds 30 to 32, faults that were planted when the rules stood
    python benchmarks/faults.py table         # diagnoses the stored checks anew and prints

Correct models are put into muP by :func:`in_mup`, a dozen lines that share nothing with this package's own. A fault is
one change to such a model, its optimizer, batch or loss. :attr:`Case.places` are the modules that a person would have
to look at: several where a number is multiplied on the way from one to the other.
"""

import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import mup
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import coordcheck
from coordcheck.judge.diagnose import diagnose
from coordcheck.models.gpt import GPT
from coordcheck.models.post_ln import PostLN
from coordcheck.models.t5 import T5
from coordcheck.observe.roles import fans
from coordcheck.report.tables import markdown_table

LR = 1e-3
VOCAB, CONTEXT, BATCH = 64, 32, 8
WIDTHS = (64, 128, 256)
KINDS = ("activation", "delta", "effective_update")
SETS = {"first": (range(3), 64), "second": (range(10, 13), 128), "third": (range(30, 33), 64)}
STORE = Path("checks/faults")
HEAD_SIZE = 16
LAYERS = r"\.(attn|self_attn|cross|cross_attn|mlp)\."

Build = Callable[[int], nn.Module]
Plant = Callable[[nn.Module, float], None]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Case:
    """A model to check, correct or with one fault.

    Attributes:
        name: What is special about it.
        build: From width to model.
        batch: From seed to batch.
        optimizer: From model to optimizer.
        loss: None for the default one.
        places: Modules of which one must be named first; empty for a correct model.
        cause: Class of the fault, of ``coordcheck.judge.diagnose.evidence.FAULT_CLASSES``; empty for a right model.
    """

    name: str
    build: Build
    batch: Callable[[int], Any]
    optimizer: MakeOptimizer
    loss: Loss | None = None
    places: tuple[str, ...] = ()
    cause: str = ""


# correct models


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


def zipf(seed: int, *shape: int) -> Tensor:
    """Tokens of which the n-th is seen 1/n as often as the first."""
    generator = torch.Generator().manual_seed(seed)
    share = 1 / torch.arange(1, VOCAB + 1)
    return torch.multinomial(share, torch.Size(shape).numel(), replacement=True, generator=generator).view(shape)


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


# faults


def written(pattern: str, std: float, exponent: float = 0.0) -> Plant:
    """Initializes weights again, with another std."""

    def plant(model: nn.Module, mult: float) -> None:
        for name, p in model.named_parameters():
            if p.dim() > 1 and re.search(pattern, name):
                nn.init.normal_(p, std=std * (mult * 64) ** exponent)

    return plant


def scaled(pattern: str, exponent: float) -> Plant:
    """Multiplies weights by ``width_mult ** exponent``."""

    def plant(model: nn.Module, mult: float) -> None:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.dim() > 1 and re.search(pattern, name):
                    p.mul_(mult**exponent)

    return plant


def output_times(name: str, exponent: float) -> Plant:
    """Multiplies a module's output by ``width_mult ** exponent``."""

    def plant(model: nn.Module, mult: float) -> None:
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output: output * mult**exponent)

    return plant


def input_times(name: str, exponent: float) -> Plant:
    """Multiplies a module's first input by ``width_mult ** exponent``."""

    def plant(model: nn.Module, mult: float) -> None:
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs: (inputs[0] * mult**exponent, *inputs[1:])
        )

    return plant


def frozen(pattern: str) -> Plant:
    """Stops the training of parameters."""

    def plant(model: nn.Module, mult: float) -> None:
        for name, p in model.named_parameters():
            p.requires_grad_(not re.search(pattern, name))

    return plant


def detached(name: str) -> Plant:
    """Lets no gradient reach a layer's weight, as ``torch.no_grad`` in the wrong place does."""

    def plant(model: nn.Module, mult: float) -> None:
        layer = model.get_submodule(name)
        layer.forward = lambda x: F.linear(x, layer.weight.detach())

    return plant


def silenced(name: str) -> Plant:
    """Multiplies a module's output by zero."""

    def plant(model: nn.Module, mult: float) -> None:
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output: 0 * output)

    return plant


def overflowing(name: str) -> Plant:
    """Passes a module's output through float16 after a multiplication that is too large for wide models."""

    def plant(model: nn.Module, mult: float) -> None:
        factor = 4e3 * mult**2
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output: (output * factor).half().float() / factor
        )

    return plant


def fixed_feed_forward(base: int, width: int) -> GPT:
    """A GPT whose second feed-forward layer has the size of the base model."""
    model = gpt(width)
    mlp = model.blocks[1].mlp
    mlp.fc, mlp.proj = nn.Linear(width, 4 * base, bias=False), nn.Linear(4 * base, width, bias=False)
    return model


def forgetful_shapes(base: int) -> Build:
    """For base shapes: a GPT whose feed-forward layer keeps the base model's size."""

    def structure(width: int) -> GPT:
        model = gpt(width)
        for block in model.blocks:
            block.mlp.fc = nn.Linear(width, 4 * base, bias=False)
            block.mlp.proj = nn.Linear(4 * base, width, bias=False)
        return model

    return structure


def without_base_shapes(model: nn.Module, mult: float) -> None:
    """Sets the base shapes again, without a base: every width is its own."""
    mup.set_base_shapes(model, None, rescale_params=False, do_assert=False)


def q_and_k_as_readouts(width: int) -> GPT:
    """A GPT whose queries and keys come from readouts of the mup package."""
    model = gpt(width)
    for block in model.blocks:
        block.attn.q = mup.MuReadout(width, width, bias=False)
        block.attn.k = mup.MuReadout(width, width, bias=False)
    return model


def scheduled(model: nn.Module) -> torch.optim.Optimizer:
    """Adam whose scheduler sets one learning rate for all groups after the first step."""
    optimizer = adam()(model)

    def overwrite(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = LR

    optimizer.register_step_post_hook(overwrite)
    return optimizer


def decayed_gains(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW that decays the gains of norms, by one percent in a step."""
    optimizer = adam(kind=torch.optim.AdamW, weight_decay=0.0)(model)
    for group in optimizer.param_groups:
        group["weight_decay"] = 10.0 if group["params"][0].dim() < 2 else 0.0
    return optimizer


def sgd_with_adams_rules(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with the parameter groups of Adam."""
    return torch.optim.SGD([{**group} for group in adam(lr=0.1)(model).param_groups], lr=0.1)


def shrinking_batch(model: nn.Module, batch: Any) -> Tensor:
    """The loss of fewer sequences for a wider model, as one does for lack of memory."""
    inputs, targets = batch
    few = BATCH * WIDTHS[0] // model.wte.weight.shape[1]  # type: ignore[union-attr, index]
    return F.cross_entropy(model(inputs[:few]).flatten(0, 1), targets[:few].flatten())


class Twice:
    """A loss that runs the model once more from its second call on, as an evaluation within a step does."""

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Returns the cross entropy."""
        inputs, targets = batch
        if hasattr(model, "ran"):
            model(inputs[:2])
        model.ran = True  # type: ignore[assignment]
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def faulty(base: int) -> Iterator[Case]:
    """Models with one fault each."""
    std = base**-0.5
    put = partial(in_mup, base=base)
    on_gpt = partial(Case, batch=next_tokens, optimizer=adam())
    on_t5 = partial(Case, batch=source_and_target, loss=t5_loss, optimizer=adam())
    on_post_ln = partial(Case, batch=labelled_queries, loss=post_ln_loss, optimizer=adam())
    q, fc, proj = "blocks.0.attn.q", "blocks.1.mlp.fc", "blocks.1.mlp.proj"

    def init(case: Any, name: str, build: Build, *places: str) -> Case:
        made: Case = case(name, build, places=places, cause="init")
        return made

    yield init(on_gpt, "hidden init std constant", put(gpt, plant=scaled(LAYERS, 0.5)), q)
    yield init(on_gpt, "hidden init std 1/width", put(gpt, plant=scaled(LAYERS, -0.5)), q)
    yield init(on_gpt, "one layer's init std constant", put(gpt, plant=scaled(fc, 0.5)), fc)
    yield init(on_gpt, "one layer's init std width^-1/4", put(gpt, plant=scaled(proj, 0.25)), proj)
    yield init(on_gpt, "one k's init std constant", put(gpt, plant=scaled("blocks.1.attn.k", 0.5)), "blocks.1.attn.k")
    yield init(on_gpt, "embedding's init std width^-1/2", put(gpt, plant=scaled("wte", -0.5)), "wte")
    v = "encoder.blocks.0.attn.v"
    yield init(on_t5, "T5: encoder's v, init std constant", put(t5, plant=scaled(v, 0.5)), v)
    last = "decoder.1.mlp.proj"
    yield init(on_post_ln, "post-LN: last layer's init std constant", put(post_ln, plant=scaled(last, 0.5)), last)

    again = partial(on_gpt, cause="reinitialized")
    yield again("all written again with std 0.1", put(gpt, plant=written(LAYERS, 0.1)), places=(q,))
    yield again("one layer written again with std 0.1", put(gpt, plant=written(proj, 0.1)), places=(proj,))
    cross = "decoder.blocks.0.cross.q"
    case = put(t5, plant=written(cross, 0.1))
    yield on_t5("T5: cross-attention's q written again", case, places=(cross,), cause="reinitialized")

    rate = partial(on_gpt, cause="learning_rate")
    yield rate("Adam without muP's rates", put(gpt), optimizer=adam(LAYERS, 1.0), places=(q,))
    yield rate("one layer's rate does not shrink", put(gpt), optimizer=adam(fc, 1.0), places=(fc,))
    yield rate("hidden rates width^-1/2", put(gpt), optimizer=adam(LAYERS, 0.5), places=(q,))
    yield rate(
        "one v's rate does not shrink", put(gpt), optimizer=adam(r"0\.attn\.v", 1.0), places=("blocks.0.attn.v",)
    )
    yield rate("last layer's rate width^-1/2", put(gpt), optimizer=adam(proj, 0.5), places=(proj,))
    yield rate(
        "readout with multiplier and rate 1/width", put(gpt), optimizer=adam("lm_head", -1.0), places=("lm_head",)
    )
    yield rate("embedding's rate 1/width", put(gpt), optimizer=adam("wte", -1.0), places=("wte",))
    yield rate(
        "tied weight's rate 1/width",
        put(partial(gpt, tied=True), readout_std=std),
        optimizer=adam("wte", -1.0),
        places=("wte",),
    )
    yield rate("SGD with Adam's rates", put(gpt, readout_std=std), optimizer=sgd_with_adams_rules, places=("wte",))
    yield rate("scheduler overwrites the rates", put(gpt, readout_std=std), optimizer=scheduled, places=(q,))
    fc0 = "decoder.blocks.0.mlp.fc"
    yield on_t5(
        "T5: one layer's rate does not shrink", put(t5), optimizer=adam(fc0, 1.0), places=(fc0,), cause="learning_rate"
    )
    out = "encoder.0.attn.out"
    yield on_post_ln(
        "post-LN: one layer's rate does not shrink",
        put(post_ln),
        optimizer=adam(out + ".weight", 1.0),
        places=(out,),
        cause="learning_rate",
    )

    factor = partial(on_gpt, cause="multiplier")
    plain = partial(gpt, mup_multiplier=None)
    yield factor("plain readout, fan-in init", put(plain), places=("lm_head",))
    yield factor("plain readout, constant init", put(plain, plant=written("lm_head", 0.1)), places=("lm_head",))
    yield factor(
        "readout divided twice", put(gpt, plant=input_times("lm_head", -1.0), readout_std=std), places=("lm_head",)
    )
    yield factor(
        "logits multiplied again", put(gpt, plant=output_times("", 1.0), readout_std=std), places=("lm_head", "(model)")
    )
    yield factor(
        "1/sqrt(head size) with growing heads",
        put(lambda width: gpt(width, heads=4, scale=(width // 4) ** -0.5)),
        optimizer=adam(lr=5e-3),
        places=("blocks.0.attn",),
    )
    yield factor(
        "attention divided twice",
        put(lambda width: gpt(width, heads=4, scale=(width // 4) ** -2.0 * 64)),
        places=("blocks.0.attn",),
    )
    yield factor("embedding times sqrt(width)", put(gpt, plant=output_times("wte", 0.5)), places=("wte",))
    yield factor(
        "residual stream times sqrt(width)",
        put(gpt, plant=input_times("blocks.0", 0.5)),
        places=("wte", "wpe", "blocks.0"),
    )
    yield factor(
        "a branch times sqrt(width)", put(gpt, plant=output_times("blocks.1.mlp", 0.5)), places=("blocks.1.mlp",)
    )
    yield factor(
        "a hidden input divided by width",
        put(gpt, plant=input_times("blocks.0.mlp.fc", -1.0)),
        places=("blocks.0.mlp.fc",),
    )
    yield factor("q and k typed as readouts", put(q_and_k_as_readouts, readout_std=std), places=(q,))
    yield on_t5("T5: plain tied readout", put(t5_plain_tied), places=("lm_head",), cause="multiplier")
    yield on_post_ln("post-LN: plain class head", put(plain_class_head), places=("class_head",), cause="multiplier")

    shared = {"readout_std": std, "rescale": True}
    yield on_gpt(
        "shared readout rescaled", put(partial(gpt, tied=True), **shared), places=("wte",), cause="shared_readout"
    )
    yield on_t5(
        "T5: shared readout rescaled", put(partial(t5, tied=True), **shared), places=("wte",), cause="shared_readout"
    )

    yield on_gpt(
        "width does not reach one feed-forward", put(partial(fixed_feed_forward, base)), places=(fc,), cause="width"
    )
    yield on_gpt(
        "one head of keys and values at every width",
        put(partial(gpt, kv_heads=1)),
        places=("blocks.0.attn.k",),
        cause="width",
    )
    yield on_gpt(
        "base shapes forget the feed-forward",
        put(gpt, shapes_of=forgetful_shapes(base)),
        places=("blocks.0.mlp.fc",),
        cause="base_shapes",
    )
    yield on_gpt(
        "base shapes lost",
        put(gpt, plant=without_base_shapes, readout_std=std),
        optimizer=mups(mup.MuAdam, LR, eps=1e-12),
        places=(q, "lm_head"),
        cause="base_shapes",
    )

    yield on_gpt(
        "optimizer gets the blocks only",
        put(gpt, readout_std=std),
        optimizer=adam(only="blocks"),
        places=("wte",),
        cause="untrained",
    )
    yield on_gpt("one layer without gradient", put(gpt, plant=detached(fc)), places=(fc,), cause="untrained")
    yield on_gpt(
        "a branch times zero",
        put(gpt, plant=silenced("blocks.1.attn.proj")),
        places=("blocks.1.attn.proj",),
        cause="dead",
    )
    yield on_gpt(
        "AdamW's decay coupled to the rate",
        put(gpt),
        optimizer=adam(kind=torch.optim.AdamW, weight_decay=0.1),
        places=(q,),
        cause="decay",
    )
    yield on_gpt(
        "Adam's epsilon 0.01", put(gpt, readout_std=std), optimizer=adam(eps=0.01), places=(q, "wte"), cause="epsilon"
    )
    yield on_gpt("overflow in float16", put(gpt, plant=overflowing(fc)), places=(fc,), cause="nonfinite")
    yield on_gpt(
        "warmup: learning rate 1e-9",
        put(gpt, readout_std=std),
        optimizer=adam(lr=1e-9),
        places=("(model)",),
        cause="gentle",
    )
    yield on_gpt("batch shrinks with width", put(gpt), loss=shrinking_batch, places=("(model)",), cause="harness")
    yield on_gpt("an evaluation within the step", put(gpt), loss=Twice(), places=("(model)",), cause="harness")


def t5_plain_tied(width: int) -> T5:
    """A tied T5 that neither scales its readout's input nor has a multiplier."""
    model = t5(width, tied=True, mup_multiplier=None)
    model.readout_scale = 0.125
    return model


def plain_class_head(width: int) -> PostLN:
    """A post-LN model one of whose heads is a plain layer."""
    model = post_ln(width)
    model.class_head = nn.Linear(width, 8)
    return model


def held_out(base: int) -> Iterator[Case]:
    """Faults that were planted when the rules stood, and changed none: what the rules say of faults they never saw."""
    std = base**-0.5
    put = partial(in_mup, base=base)
    on_gpt = partial(Case, batch=next_tokens, optimizer=adam())
    on_t5 = partial(Case, batch=source_and_target, loss=t5_loss, optimizer=adam())
    on_post_ln = partial(Case, batch=labelled_queries, loss=post_ln_loss, optimizer=adam())

    def at(case: Callable[..., Case], cause: str, place: str, name: str, build: Build, **values: Any) -> Case:
        return case(name, build, places=(place,), cause=cause, **values)

    rate, factor = "learning_rate", "multiplier"
    fc, v, gate = "encoder.blocks.0.mlp.fc", "blocks.0.attn.v", "blocks.1.mlp.gate"
    yield at(on_t5, rate, fc, "T5: encoder's layer, rate width^-1/2", put(t5), optimizer=adam(fc, 0.5))
    key = "decoder.1.cross_attn.k"
    yield at(on_post_ln, "reinitialized", key, "post-LN: k written again", put(post_ln, plant=written(key + ".w", 0.2)))
    yield at(on_gpt, factor, v, "v times sqrt(width)", put(gpt, plant=output_times(v, 0.5)))
    yield at(on_gpt, factor, "ln_f", "final norm times sqrt(width)", put(gpt, plant=output_times("ln_f", 0.5)))
    rest = adam(only="wte|blocks|ln|head")
    yield at(on_gpt, "untrained", "wpe", "positions in no group", put(gpt), optimizer=rest)
    tied = put(partial(gpt, tied=True), readout_std=std)
    yield at(on_gpt, rate, "blocks.0.attn.q", "tied, Adam without muP's rates", tied, optimizer=adam(LAYERS, 1.0))
    c_fc = "transformer.h.1.mlp.c_fc"
    yield at(on_gpt, rate, c_fc, "Hugging Face's GPT-2: one rate", put(hugging_face), optimizer=adam(c_fc + ".w", 1.0))
    gated = partial(gpt, feed_forward="swiglu")
    yield at(on_gpt, "init", gate, "SwiGLU: gate's init std constant", put(gated, plant=scaled(gate, 0.5)))
    yield at(on_gpt, rate, "lm_head", "readout's rate width^+1/2", put(gpt), optimizer=adam("lm_head", 0.5))
    cross = "decoder.blocks.0.cross.k"
    yield at(on_t5, "untrained", cross, "T5: k without gradient", put(t5, plant=detached(cross)))
    proj = "blocks.1.attn.proj"
    yield at(on_gpt, factor, proj, "attention's output divided by width", put(gpt, plant=output_times(proj, -1.0)))
    norm = "blocks.1.ln_1"
    yield at(on_gpt, "dead", norm, "a norm times zero", put(gpt, plant=silenced(norm)))
    narrow = "blocks.0.mlp.proj"
    yield at(on_gpt, "init", narrow, "one layer's init std 1/width", put(gpt, plant=scaled(narrow, -0.5)))


def invisible(base: int) -> Iterator[Case]:
    """What someone may call a fault, and what no exponent of width shows: kept to see that this stays so."""
    put = partial(in_mup, base=base)
    fc = "blocks.1.mlp.fc"
    on_gpt = partial(Case, batch=next_tokens, optimizer=adam(), places=(fc,))
    yield on_gpt("one layer frozen", put(gpt, plant=frozen(fc)), cause="untrained")
    yield on_gpt("gains of norms decayed", put(gpt), optimizer=decayed_gains, cause="decay")


# the benchmark

GENERATORS = {
    "first": (faulty, correct, invisible),
    "second": (faulty, correct, invisible),
    "third": (held_out,),
}


def cases(base: int) -> dict[str, Case]:
    """All cases, by name."""
    made = (*faulty(base), *correct(base), *held_out(base), *invisible(base))
    return {case.name: case for case in made}


def check_case(case: Case, seeds: Sequence[int]) -> coordcheck.CoordCheck:
    """Checks one case on one thread."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an evaluation within the step has one of its own
        return coordcheck.coord_check(
            case.build,
            case.batch,
            widths=WIDTHS,
            seeds=seeds,
            optimizer=case.optimizer,
            loss=case.loss,
            kinds=KINDS,
            device="cpu",
        )


def run(name: str, chosen: str) -> str:
    """Checks one case and stores the check with the seconds it took."""
    seeds, base = SETS[chosen]
    begin = time.perf_counter()
    check = check_case(cases(base)[name], seeds)
    seconds = time.perf_counter() - begin
    directory = directory_of(name, chosen)
    check.save(directory)
    (directory / "seconds.json").write_text(json.dumps(seconds))
    return f"{seconds:5.1f} s  {check.verdict:12}  {name}"


def directory_of(name: str, chosen: str) -> Path:
    """Where a check is stored."""
    return STORE / chosen / re.sub(r"[^\w]+", "-", name)


def outcome(case: Case, chosen: str) -> dict[str, Any]:
    """A stored check, diagnosed anew and held against what was planted; "alone" is by the curves without the audit."""
    directory = directory_of(case.name, chosen)
    check = coordcheck.CoordCheck.load(directory)
    first = next((finding for finding in check.findings if finding.fault), None)
    alone = next(
        (f for f in diagnose(check.records, check.slopes, check.gate, None, check.control.saw) if f.fault), None
    )
    return {
        "case": case.name,
        "planted": f"{case.cause} at {' or '.join(case.places)}",
        "verdict": check.verdict,
        "named first": f"{first.fault} at {first.module}" if first else "",
        "detected": first is not None,
        "place": _is_at(first, case),
        "cause": first is not None and first.fault == case.cause,
        "detected alone": alone is not None,
        "place alone": _is_at(alone, case),
        "cause alone": alone is not None and alone.fault == case.cause,
        "said": str(first) if first else "",
        "seconds": f"{json.loads((directory / 'seconds.json').read_text()):.1f}",
    }


def _is_at(finding: coordcheck.Finding | None, case: Case) -> bool:
    return finding is not None and finding.module.partition("[")[0] in case.places


def percent(share: pd.Series) -> str:
    """A mean of booleans, with its counts."""
    return f"{int(share.sum())} of {len(share)} ({100 * share.mean():.0f} %)"


def table_of(of: Callable[[int], Iterator[Case]], chosen: str) -> str:
    """Some cases of one set as Markdown, with the rates before the table."""
    rows = pd.DataFrame([outcome(case, chosen) for case in of(SETS[chosen][1])])
    if of is correct:
        failed = percent(rows["detected"] | (rows["verdict"] == "fail"))
        rates, columns = f"fail {failed}", ["case", "verdict", "named first", "seconds"]
    else:
        marks = ["detected", "place", "cause"]
        rates = ", ".join(f"{name} {percent(rows[name])}" for name in marks)
        rates += "; without the audit " + ", ".join(f"{name} {percent(rows[f'{name} alone'])}" for name in marks)
        columns = ["case", "planted", "named first", "verdict", *marks, "seconds"]
        rows[marks] = rows[marks].replace({True: "yes", False: "**no**"}).astype(str)
    return f"### {of.__name__}: {rates}\n\n{markdown_table(rows[columns])}"


def main(command: str, *arguments: str) -> None:
    """Runs a set in two processes, or prints the tables of all."""
    if command == "table":
        for chosen, (seeds, base) in SETS.items():
            print(f"## {chosen}: seeds {seeds[0]} to {seeds[-1]}, base width {base}\n")
            print("\n\n".join(table_of(of, chosen) for of in GENERATORS[chosen]) + "\n")
        return
    chosen, *names = arguments
    wanted = names or [case.name for of in GENERATORS[chosen] for case in of(SETS[chosen][1])]
    with ProcessPoolExecutor(2) as pool:
        for line in pool.map(partial(run, chosen=chosen), wanted):
            print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
