"""Faults in other people's architectures, of the kinds that their public reports tell of."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import mup
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from planted.by_hand import Rule, adamw, groups, lion, muon, put, sgd
from planted.case import VOCAB, Case, Plant, overflowing, scaled
from planted.others import (
    CONV,
    DIVIDED,
    LLAMA,
    LORA,
    LSTM,
    MAMBA,
    READOUT,
    RECURRENT,
    ROUTED,
    T5,
    VIT,
    ConvNet,
    experts,
    four_heads,
    gemma,
    images,
    llama,
    lora,
    mamba,
    mixtral,
    neox,
    opt,
    qwen3,
    small_images,
    t5,
    tokens,
    translated,
    vit,
)
from planted.ours import in_mup, mups

# structures with a fault


class Bypassed(transformers.LlamaForCausalLM):
    """A Llama that takes its readout's weight past the readout, as a fused loss does: what divides never runs."""

    def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        """Returns logits."""
        return F.linear(self.model(input_ids).last_hidden_state, self.lm_head.weight)


class Gated(nn.Module):
    """A feed-forward layer with a gate of its own behind it, whose memory nobody writes."""

    def __init__(self, inner: nn.Module, width: int):
        super().__init__()
        self.inner = inner
        self.mixing = nn.Parameter(torch.empty(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the inner layer's output and a mixture of its entries."""
        y = self.inner(x)
        return y + F.linear(y, self.mixing)


def gated(width: int) -> nn.Module:
    """A Llama with such a gate in its second layer."""
    model = llama(width)
    layer = model.model.layers[1]  # type: ignore[union-attr, index]
    layer.mlp = Gated(layer.mlp, width)
    return model


def lost_tie(width: int) -> nn.Module:
    """A tied OPT made on ``meta``: memory came one place at a time, and who wrote the weights left the readout out."""
    with torch.device("meta"):
        model = opt(width, tied=True)
    for name, module in model.named_modules():
        for key, p in module._parameters.items():
            if p is not None:
                module._parameters[key] = nn.Parameter(torch.empty(p.shape, device="cpu"))
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Embedding) and name != "lm_head":
            nn.init.normal_(module.weight, std=0.1)
    for buffer in [module for module in model.modules() if module._buffers]:
        buffer.to_empty(device="cpu", recurse=False)
    return model


def narrow(width: int) -> nn.Module:
    """A Llama whose second feed-forward layer has a size that was typed in."""
    model = llama(width)
    mlp = model.model.layers[1].mlp  # type: ignore[union-attr, index]
    for name in ("gate_proj", "up_proj", "down_proj"):
        sizes = (128, width) if name == "down_proj" else (width, 128)
        layer = nn.Linear(*sizes, bias=False)
        nn.init.normal_(layer.weight, std=0.1)
        setattr(mlp, name, layer)
    return model


def mups_llama(width: int) -> nn.Module:
    """A Llama with a readout of the mup package."""
    model = llama(width)
    model.lm_head = mup.MuReadout(width, VOCAB, bias=False)
    return model


def forgetful(width: int) -> nn.Module:
    """For base shapes: the same with a feed-forward layer of one size."""
    model = llama(width, intermediate_size=128)
    model.lm_head = mup.MuReadout(width, VOCAB, bias=False)
    return model


def shared(width: int) -> nn.Module:
    """A tied Llama with the mup package's shared readout."""
    model = llama(width)
    model.lm_head = mup.MuSharedReadout(model.model.embed_tokens.weight, bias=False)  # type: ignore[union-attr]
    return model


# changes to a model


def all_again(model: nn.Module, mult: float) -> None:
    """Initializes all linear layers again when all is done, as ``model.apply(init)`` does."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)


def silent_relu(layer: str) -> Plant:
    """Lets no unit of a ReLU layer be positive."""

    def plant(model: nn.Module, mult: float) -> None:
        nn.init.constant_(model.get_submodule(layer).bias, -1e3)  # type: ignore[arg-type]

    return plant


def no_updates(model: nn.Module, mult: float) -> None:
    """Sets LoRA's A to zero, as B is: no gradient reaches either."""
    for name, p in model.named_parameters():
        if "lora_A" in name:
            nn.init.zeros_(p)


# optimizers with a fault


def overwritten(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW whose schedule sets one rate for all groups after the first step."""
    optimizer = torch.optim.AdamW(groups(model, "adam", 2e-3), eps=1e-12, weight_decay=0.0)

    def overwrite(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3

    optimizer.register_step_post_hook(overwrite)
    return optimizer


def warming_up(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW in a warmup that is still at zero when the check is over."""
    return torch.optim.AdamW(groups(model, "adam", 0.0), eps=1e-12, weight_decay=0.0)


def fewer_images(model: nn.Module, batch: Any) -> Tensor:
    """The loss of fewer images for a wider model."""
    drawn, classes = batch
    few = len(drawn) * 64 // model.head.in_features * 2  # type: ignore[union-attr, operator]
    return F.cross_entropy(model(drawn[:few]), classes[:few])


def faulty_others(base: int) -> Iterator[Case]:
    """Other people's models with one fault each."""
    yield from _initial(base)
    yield from _rates(base)
    yield from _multipliers(base)
    yield from _rest(base)


def _initial(base: int) -> Iterator[Case]:
    on = partial(Case, batch=tokens, optimizer=adamw(), cause="init")
    to = partial(put, base=base)
    moe = "model.layers.1.mlp.experts"
    constant = scaled("1.mlp.experts.gate_up", 0.5)
    yield on("Mixtral: one expert matrix's std constant", to(mixtral, *ROUTED, plant=constant), places=(moe,))
    down = "model.layers.0.mlp"
    constant = scaled("0.mlp.down", 0.5)
    yield on("raw experts: one matrix's std constant", to(experts, *ROUTED, plant=constant), places=(down,))
    yield on("LSTM: one matrix's std constant", to(LSTM, *RECURRENT, plant=scaled("ih_l1", 0.5)), places=("lstm",))
    constant = scaled("conv1", 0.5)
    yield on(
        "ConvNet: one convolution's std constant",
        to(ConvNet, *CONV, plant=constant),
        batch=small_images,
        optimizer=sgd(),
        places=("conv1",),
    )
    into = "backbone.layers.0.mixer.in_proj"
    shrinks = scaled("0.mixer.in_proj", -0.5)
    yield on("Mamba: in_proj's std 1/width", to(mamba, *MAMBA, zero="^$", plant=shrinks), places=(into,))
    bias = "relative_attention_bias"
    library = (Rule(bias, "input", factor=8.0), *T5)  # whose second rule is 1/sqrt(width), where torch's is constant
    yield on(
        "T5: relative bias as the library makes it",
        to(t5, *library),
        batch=translated,
        places=tuple(f"{side}.block.0.layer.0.SelfAttention.{bias}" for side in ("encoder", "decoder")),
        cause=("init", "reinitialized"),
    )
    mixing = "model.layers.1.mlp"
    unwritten = (Rule("mixing", "hidden"), *LLAMA)
    yield on("Llama: a gate that nobody writes", to(gated, *unwritten), places=(mixing,))
    yield on("OPT: tie lost on meta", to(lost_tie, *DIVIDED), places=("lm_head",))
    again = partial(on, cause=("reinitialized", "init"))
    q = "gpt_neox.layers.0.attention.query_key_value"
    yield again("GPT-NeoX: all written again", to(neox, *LLAMA, plant=all_again), places=(q,))


def _rates(base: int) -> Iterator[Case]:
    on = partial(Case, batch=tokens, optimizer=adamw(), cause="learning_rate")
    to = partial(put, base=base)
    head = to(partial(llama, head=True), *DIVIDED)
    qkv = tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv")

    def one(pattern: str, exponent: float) -> Any:
        return adamw(pattern=pattern, exponent=exponent)

    gate = "model.layers.0.mlp.gate"
    yield on("Mixtral: routers' rate constant", to(mixtral, *ROUTED), optimizer=one("mlp.gate", 1.0), places=(gate,))
    mlp = "model.layers.0.mlp"
    yield on("raw experts: router's rate constant", to(experts, *ROUTED), optimizer=one("router", 1.0), places=(mlp,))
    yield on("Llama: readout's rate divided twice", head, optimizer=one("lm_head", -1.0), places=("lm_head",))
    embed = "model.embed_tokens"
    yield on("Llama: embedding's rate 1/width", to(llama, *LLAMA), optimizer=one("embed", -1.0), places=(embed,))
    both = one("embed|lm_head", -1.0)
    yield on("Llama: each matrix's rate 1/width", head, optimizer=both, places=(embed, "lm_head"))
    first = "model.layers.0.self_attn.q_proj.lora_A"
    a = (first, first.replace("q_proj", "v_proj"))
    yield on("LoRA: one rate", to(lora, *LORA), optimizer=one("lora_A", 1.0), places=a)
    x_proj = "backbone.layers.0.mixer.x_proj"
    state = to(mamba, *MAMBA, zero="^$")
    yield on("Mamba: x_proj's rate constant", state, optimizer=one("x_proj", 1.0), places=(x_proj,))
    wi = "encoder.block.0.layer.1.DenseReluDense.wi"
    yield on(
        "T5: wi's rate constant", to(t5, *T5), batch=translated, optimizer=one(r"encoder.*\.wi\.", 1.0), places=(wi,)
    )
    fc1 = "vit.layers.1.mlp.fc1"
    rate = lion(pattern=r"1\.mlp\.fc1.weight", exponent=1.0)
    yield on("ViT, Lion: one layer's rate constant", to(vit, *VIT), batch=images, optimizer=rate, places=(fc1,))
    yield on(
        "LSTM: one matrix's rate constant", to(LSTM, *RECURRENT), optimizer=one("weight_ih_l1", 1.0), places=("lstm",)
    )
    matching = muon("match_rms_adamw")
    yield on("Llama, Muon: step as large as AdamW's", to(llama, *LLAMA), optimizer=matching, places=qkv)
    adams = sgd(rule="adam")
    q = "gpt_neox.layers.0.attention.query_key_value"
    yield on("GPT-NeoX, SGD with Adam's rates", to(neox, *LLAMA), optimizer=adams, places=("gpt_neox.embed_in", q))
    yield on("GPT-NeoX: schedule overwrites the rates", to(neox, *LLAMA), optimizer=overwritten, places=(q,))
    narrower = one(r"1\.mlp\.dense_h_to_4h\.weight", 0.5)
    to_4h = "gpt_neox.layers.1.mlp.dense_h_to_4h"
    yield on("GPT-NeoX: one rate width^-1/2", to(neox, *LLAMA), optimizer=narrower, places=(to_4h,))


def _multipliers(base: int) -> Iterator[Case]:
    on = partial(Case, batch=tokens, optimizer=adamw(), cause="multiplier")
    to = partial(put, base=base)
    bypassed = to(partial(llama, kind=Bypassed, head=True), *DIVIDED)
    yield on("Llama: readout's weight used past it", bypassed, places=("lm_head", "(model)"))
    plain = Rule("^head", "divided", 0.0)  # the rates and the std of a divided one, without the division
    yield on("ConvNet: plain readout", to(ConvNet, plain, *CONV), batch=small_images, places=("head",))
    yield on("LSTM: plain readout", to(LSTM, plain, *RECURRENT), places=("head",))
    constant = Rule("^classifier", "divided")
    yield on("ViT: plain readout, constant std", to(vit, constant, *VIT), batch=images, places=("classifier",))
    growing = to(partial(four_heads, scaled=False), *LLAMA)
    attention = "model.layers.0.self_attn"
    yield on("Llama: 1/sqrt(head size), growing heads", growing, optimizer=adamw(1e-2), places=(attention,))
    embed = "model.embed_tokens"
    yield on("Gemma: embedding times sqrt(width)", to(gemma, *LLAMA), places=(embed,))
    tied = to(partial(t5, tied=True), *T5)
    name = "T5: tied as the library makes it"
    yield on(name, tied, batch=translated, places=("lm_head", "shared"))


def _rest(base: int) -> Iterator[Case]:
    on = partial(Case, batch=tokens, optimizer=adamw())
    to = partial(put, base=base)
    layers = (
        "gpt_neox.embed_in",
        *(f"gpt_neox.layers.0.{name}" for name in ("attention.query_key_value", "attention.dense")),
        *(f"gpt_neox.layers.0.mlp.{name}" for name in ("dense_h_to_4h", "dense_4h_to_h")),
    )
    large = adamw(eps=1e-2)
    yield on("GPT-NeoX: epsilon 1e-2", to(neox, *LLAMA), optimizer=large, places=layers, cause="epsilon")
    mlp = tuple(f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down"))
    rules = (LLAMA[0], READOUT, Rule("1.mlp.down", "input"), Rule("1.mlp.(up|gate)", "projection", -0.5), LLAMA[2])
    yield on("Llama: width does not reach a layer", to(narrow, *rules), places=mlp, cause="width")
    adam_of_mup = mups(mup.MuAdam, 2e-3, eps=1e-12)
    shapes = in_mup(mups_llama, base, shapes_of=forgetful, readout_std=0.1)
    places = tuple(f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up"))
    name = "Llama: base shapes forget the feed-forward"
    yield on(name, shapes, optimizer=adam_of_mup, places=places, cause="base_shapes")
    tied = in_mup(shared, base, readout_std=0.1, rescale=True)
    name = "Llama: shared readout rescaled"
    yield on(name, tied, optimizer=adam_of_mup, places=("model.embed_tokens",), cause="shared_readout")
    matrices = adamw(wanted=lambda name, p: p.dim() < 3)
    experts_ = "model.layers.0.mlp.experts"
    name = "Mixtral: weights of three dimensions in no group"
    yield on(name, to(mixtral, *ROUTED), optimizer=matrices, places=(experts_,), cause="untrained")
    first = "model.layers.0.self_attn.q_proj"
    places = ("(model)", *(f"{first.replace('q', p)}.lora_{x}" for p in "qv" for x in "AB"))
    yield on("LoRA: A and B zero", to(lora, *LORA, plant=no_updates), places=places, cause="dead")
    still = partial(on, optimizer=warming_up, places=("(model)",), cause=("dead", "gentle"))
    yield still("Qwen3: warmup is still at zero", to(qwen3, *DIVIDED))
    fc = tuple(f"model.decoder.layers.1.{name}" for name in ("fc1", "activation_fn", "fc2"))
    yield on("OPT: no unit is positive", to(opt, *LLAMA, plant=silent_relu(fc[0])), places=fc, cause="dead")
    down = "model.layers.1.mlp.down_proj"
    half = overflowing(down)
    yield on("Qwen3: overflow in float16", to(qwen3, *DIVIDED, plant=half), places=(down,), cause="nonfinite")
    independent = partial(on, optimizer=adamw(weight_decay=0.1), decay="independent", cause="decay")
    q = tuple(f"vit.layers.0.attention.{name}_proj" for name in "qkv")
    yield independent("ViT: decay coupled where it should not be", to(vit, *VIT), batch=images, places=q)
    few = partial(on, batch=small_images, loss=fewer_images, places=("(model)",), cause="harness")
    yield few("ConvNet: batch shrinks with width", to(ConvNet, *CONV))
