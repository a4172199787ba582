"""Faults in models of this package's families."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import mup
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coordcheck.models.gpt import GPT
from coordcheck.models.post_ln import PostLN
from coordcheck.models.t5 import T5
from planted.case import (
    Build,
    Case,
    detached,
    frozen,
    input_times,
    output_times,
    overflowing,
    scaled,
    silenced,
    written,
)
from planted.ours import (
    BATCH,
    LR,
    adam,
    gpt,
    hugging_face,
    in_mup,
    labelled_queries,
    mups,
    next_tokens,
    post_ln,
    post_ln_loss,
    source_and_target,
    t5,
    t5_loss,
)

NARROWEST = 64  # the smallest width that is checked
LAYERS = r"\.(attn|self_attn|cross|cross_attn|mlp)\."


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
    few = BATCH * NARROWEST // model.wte.weight.shape[1]  # type: ignore[union-attr, index]
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
        decay="independent",
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
