"""Other people's architectures, each with the table that puts it into muP, see :mod:`planted.by_hand`."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from planted.by_hand import BASE, Rule, adamw, lion, muon, put, sgd
from planted.case import VOCAB, Case, frozen, zipf

BATCH, CONTEXT = 4, 16
HEAD_SIZE = 16
CLASSES = 10


# architectures of transformers, from their configurations


class Divided(nn.Linear):
    """A readout that divides its input by width / base, as one writes it by hand."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns logits."""
        return super().forward(input * (BASE / self.in_features))


def divided(width: int, weight: nn.Parameter | None = None) -> Divided:
    """Such a readout, with a std that does not depend on width, or tied."""
    head = Divided(width, VOCAB, bias=False)
    if weight is None:
        nn.init.normal_(head.weight, std=0.1)
    else:
        head.weight = weight
    return head


def _sizes(width: int, **options: Any) -> dict[str, Any]:
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "use_cache": False}
    sizes = {"vocab_size": VOCAB, "hidden_size": width, "num_hidden_layers": 2, "tie_word_embeddings": False}
    return sizes | special | {"initializer_range": 0.1} | options


def _grouped(width: int, **options: Any) -> dict[str, Any]:
    heads = width // HEAD_SIZE
    attention = {"num_attention_heads": heads, "num_key_value_heads": heads // 2, "head_dim": HEAD_SIZE}
    return _sizes(width, intermediate_size=2 * width, **attention) | options


def llama(width: int, kind: Any = transformers.LlamaForCausalLM, head: bool = False, **options: Any) -> nn.Module:
    """Llama with grouped queries and heads of one size; `head` is whether its readout divides its input."""
    model: nn.Module = kind(transformers.LlamaConfig(**_grouped(width, **options)))
    if head:
        model.lm_head = divided(width)
    return model


def four_heads(width: int, scaled: bool) -> nn.Module:
    """A Llama whose four heads grow, with the library's 1/sqrt(head size) or with 1/head size."""
    model = llama(width, num_attention_heads=4, num_key_value_heads=2, head_dim=width // 4)
    for layer in model.model.layers if scaled else ():  # type: ignore[union-attr]
        layer.self_attn.scaling = HEAD_SIZE**0.5 / (width // 4)
    return model


def mixtral(width: int) -> nn.Module:
    """Mixtral with two of four experts."""
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**_grouped(width, num_local_experts=4, num_experts_per_tok=2))
    )


def qwen3(width: int) -> nn.Module:
    """Qwen3, tied, whose readout divides its input."""
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_grouped(width)))
    model.lm_head = divided(width, model.model.embed_tokens.weight)
    return model


def gemma(width: int) -> nn.Module:
    """Gemma, whose embedding is multiplied by sqrt(width)."""
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(**_grouped(width)))


def mamba(width: int) -> nn.Module:
    """Mamba with a time step of rank 4."""
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(**_sizes(width, state_size=8, time_step_rank=4, residual_in_fp32=False))
    )


def neox(width: int) -> nn.Module:
    """GPT-NeoX with its parallel blocks, packed queries and biases."""
    heads = {"num_attention_heads": width // HEAD_SIZE, "intermediate_size": 4 * width}
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**_sizes(width, **heads)))


def opt(width: int, tied: bool = False) -> nn.Module:
    """OPT with learned positions; tied, its readout divides its input."""
    sizes = _sizes(width, num_attention_heads=width // HEAD_SIZE, ffn_dim=4 * width, word_embed_proj_dim=width)
    del sizes["initializer_range"]
    config = transformers.OPTConfig(
        **sizes, init_std=0.1, dropout=0.0, attention_dropout=0.0, max_position_embeddings=CONTEXT
    )
    model = transformers.OPTForCausalLM(config)
    if tied:
        model.lm_head = divided(width, model.model.decoder.embed_tokens.weight)
    return model


def vit(width: int) -> nn.Module:
    """ViT for images of 16 x 16 in patches of 4 x 4."""
    sizes = {"hidden_size": width, "num_attention_heads": width // HEAD_SIZE, "intermediate_size": 4 * width}
    config = transformers.ViTConfig(
        **sizes, num_hidden_layers=2, image_size=16, patch_size=4, num_labels=CLASSES, initializer_range=0.1
    )
    return transformers.ViTForImageClassification(config)


def t5(width: int, tied: bool = False) -> nn.Module:
    """T5; tied, its readout's input is multiplied by width^-1/2."""
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=width,
        d_kv=HEAD_SIZE,
        d_ff=2 * width,
        num_heads=width // HEAD_SIZE,
        num_layers=1,
        num_decoder_layers=1,
        dropout_rate=0.0,
        use_cache=False,
        decoder_start_token_id=0,
        tie_word_embeddings=tied,
    )
    config.tie_word_embeddings = tied  # since 5.1 the argument ties whatever it is
    return transformers.T5ForConditionalGeneration(config)


# architectures written by hand


class ConvNet(nn.Module):
    """Two residual convolutions and one that halves the image, with group norm, as for CIFAR."""

    def __init__(self, width: int):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(1, width), nn.Conv2d(width, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.norm2, self.conv2 = nn.GroupNorm(1, 2 * width), nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.norm = nn.GroupNorm(1, 2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits."""
        x = self.stem(images)
        x = self.down(x + self.conv1(F.relu(self.norm1(x))))
        x = x + self.conv2(F.relu(self.norm2(x)))
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class LSTM(nn.Module):
    """A language model of two recurrent layers."""

    def __init__(self, width: int):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns logits."""
        return self.head(self.lstm(self.embedding(tokens))[0])


class LoRA(nn.Module):
    """A frozen layer with a trained update of rank 4, named as peft names them."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.lora_A = nn.Linear(layer.in_features, 4, bias=False)
        self.lora_B = nn.Linear(4, layer.out_features, bias=False)
        nn.init.normal_(self.lora_A.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of both."""
        return self.base_layer(x) + 2 * self.lora_B(self.lora_A(x))


def lora(width: int) -> nn.Module:
    """A Llama of which only the updates of queries, values and feed-forward layers are trained."""
    model = llama(width).requires_grad_(False)
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.self_attn.q_proj, layer.self_attn.v_proj = LoRA(layer.self_attn.q_proj), LoRA(layer.self_attn.v_proj)
        layer.mlp.up_proj, layer.mlp.down_proj = LoRA(layer.mlp.up_proj), LoRA(layer.mlp.down_proj)
    return model


class Experts(nn.Module):
    """A dense mixture of three experts: weights of three dimensions, and a router that is a bare parameter."""

    def __init__(self, width: int):
        super().__init__()
        self.router = nn.Parameter(torch.empty(3, width))
        self.up = nn.Parameter(torch.empty(3, width, 2 * width))
        self.down = nn.Parameter(torch.empty(3, 2 * width, width))
        for weight in (self.router, self.up, self.down):
            nn.init.normal_(weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the experts' outputs, weighted."""
        gates = F.linear(x, self.router).softmax(-1)
        hidden = F.gelu(torch.einsum("btw,ewh->beth", x, self.up))
        return torch.einsum("beth,ehw,bte->btw", hidden, self.down, gates)


def experts(width: int) -> nn.Module:
    """A Llama with such mixtures for feed-forward layers."""
    model = llama(width)
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.mlp = Experts(width)
    return model


# tables

READOUT = Rule(r"^(lm_head|head|classifier)\.weight", "readout", -1.0)
LLAMA = (Rule(r"embed_(tokens|in|positions)", "input", factor=5.0), READOUT, Rule(r"layers\.", "hidden", -0.5))
DIVIDED = (Rule(r"^lm_head", "divided"), LLAMA[0], LLAMA[2])  # also for tied ones, which are inputs
ROUTED = (Rule(r"mlp\.(gate\.weight|router)", "projection", -0.5), *LLAMA)
MAMBA = (
    Rule("embeddings", "input", factor=5.0),
    READOUT,
    Rule(r"A_log|conv1d|dt_proj", "vector"),
    Rule("x_proj", "projection", -0.5),
    Rule("out_proj", "hidden"),  # the library's std has its fan-in
    Rule("in_proj", "hidden", -0.5),
)
VIT = (READOUT, Rule(r"embeddings\.", "input", factor=3.0), LLAMA[2])
T5 = (
    Rule("shared", "input"),
    Rule("relative_attention_bias", "input", 0.5, factor=8.0),  # the library divides it by sqrt(width)
    Rule("lm_head", "readout", -1.0, factor=0.1),
    Rule("block", "hidden"),  # the library's std has the right fan-in
)
TORCH_READOUT = Rule(r"^head\.weight", "readout", -0.5)  # torch's own std is 1/sqrt(fan-in)
CONV = (Rule("stem", "input"), TORCH_READOUT, Rule(r"conv|down", "hidden"))
RECURRENT = (Rule("embedding", "input"), TORCH_READOUT, Rule(r"lstm\.weight", "hidden", factor=2.0))
LORA = (Rule("lora_A", "projection"), Rule("lora_B", "input"), *LLAMA)


# batches


def tokens(seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a decoder."""
    drawn = zipf(seed, BATCH, CONTEXT + 1)
    return drawn[:, :-1], drawn[:, 1:]


def translated(seed: int) -> dict[str, Tensor]:
    """Inputs of an encoder and targets of a decoder."""
    return {"input_ids": zipf(seed + 1000, BATCH, CONTEXT), "labels": zipf(seed, BATCH, CONTEXT)}


def images(seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images and their classes."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2 * BATCH, 3, size, size, generator=generator)
    return drawn, torch.randint(CLASSES, (2 * BATCH,), generator=generator)


small_images = partial(images, size=8)


def ntk(model: nn.Module, mult: float) -> None:
    """Multiplies the output of each hidden layer by ``width_mult ** -1/2``."""
    for module in model.model.layers.modules():  # type: ignore[union-attr]
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: output * mult**-0.5)


def correct_others(base: int) -> Iterator[Case]:
    """Models of other people that no check may fail."""
    on = partial(Case, batch=tokens, optimizer=adamw())
    to = partial(put, base=base)
    head = partial(llama, head=True)
    yield on("Llama", to(llama, *LLAMA))
    yield on("Llama, readout divides its input", to(head, *DIVIDED))
    half = (LLAMA[0], READOUT, Rule("layers", "half"))
    yield on("Llama, hidden layers multiplied by width^-1/2", to(llama, *half, plant=ntk))
    yield on("Llama, frozen embedding", to(llama, *LLAMA, plant=frozen("embed_tokens")))
    yield on("Llama, four growing heads", to(partial(four_heads, scaled=True), *LLAMA))
    yield on("Llama, Muon", to(llama, *LLAMA), optimizer=muon())
    yield on("Llama, raw experts", to(experts, *ROUTED))
    yield on("Llama, LoRA", to(lora, *LORA))
    yield on("Mixtral", to(mixtral, *ROUTED))
    yield on("Qwen3, tied", to(qwen3, *DIVIDED))
    small = (Rule("embed_tokens", "half", -0.5), *LLAMA)
    yield on("Gemma, embedding's std and rate width^-1/2", to(gemma, *small))
    yield on("Mamba", to(mamba, *MAMBA, zero="^$"))
    yield on("GPT-NeoX", to(neox, *LLAMA))
    yield on("GPT-NeoX, SGD", to(neox, *LLAMA), optimizer=sgd())
    yield on("OPT", to(opt, *LLAMA))
    yield on("OPT, tied", to(partial(opt, tied=True), *DIVIDED))
    yield on("T5 of transformers", to(t5, *T5), batch=translated)
    yield on("ViT, Lion", to(vit, *VIT), batch=images, optimizer=lion())
    yield on("ViT, decay coupled to the rate", to(vit, *VIT), batch=images, optimizer=adamw(weight_decay=0.1))
    yield on("ConvNet, SGD", to(ConvNet, *CONV), batch=small_images, optimizer=sgd())
    yield on("ConvNet", to(ConvNet, *CONV), batch=small_images)
    yield on("LSTM", to(LSTM, *RECURRENT))
