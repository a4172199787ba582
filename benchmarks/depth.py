"""Models of transformers over depths, as they are and with branches divided by depth by hooks: what a check says.

    python benchmarks/depth.py

writes benchmarks/depth.md. With the multiplier no curve may be at fault, and without it one must be. GPT-2 divides by
its init as well: with the multiplier what its branches add at initialization is too small.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

import coordcheck

DEPTHS, BASE, WIDTH, HEADS, VOCABULARY, SEEDS = (2, 4, 8, 16), 2, 64, 4, 256, 4
HERE = Path(__file__).parent
SIZES = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_attention_heads": HEADS, "max_position_embeddings": 64}


def llama(depth: int) -> tuple[nn.Module, list[nn.Module]]:
    """Llama, and its branches."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=depth, intermediate_size=2 * WIDTH))
    return model, [branch for layer in model.model.layers for branch in (layer.self_attn, layer.mlp)]


def gpt_neox(depth: int) -> tuple[nn.Module, list[nn.Module]]:
    """GPT-NeoX, whose two branches read the same stream."""
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, num_hidden_layers=depth, intermediate_size=4 * WIDTH))
    return model, [branch for layer in model.gpt_neox.layers for branch in (layer.attention, layer.mlp)]


def gpt2(depth: int) -> tuple[nn.Module, list[nn.Module]]:
    """GPT-2, whose init already divides the ends of branches by the root of the depth."""
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_head=HEADS, n_layer=depth, n_positions=64)
    config.attn_pdrop = config.resid_pdrop = config.embd_pdrop = 0.0
    model = GPT2LMHeadModel(config)
    return model, [branch for layer in model.transformer.h for branch in (layer.attn, layer.mlp)]


def batch(seed: int) -> dict[str, torch.Tensor]:
    """Random tokens to learn by heart."""
    tokens = torch.randint(VOCABULARY, (4, 32), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens, "labels": tokens}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """One learning rate at every depth."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-12)


def checked(family, divided: bool) -> coordcheck.CoordCheck:  # type: ignore[no-untyped-def]
    """The check of a family, with its branches divided by depth / base depth or not."""

    def build(depth: int) -> nn.Module:
        model, branches = family(depth)
        for branch in branches if divided else []:
            branch.register_forward_hook(
                lambda module, inputs, output: (
                    (output[0] * BASE / depth, *output[1:]) if isinstance(output, tuple) else output * BASE / depth
                )
            )
        return model

    return coordcheck.coord_check(
        build, batch, depths=DEPTHS, optimizer=adamw, seeds=SEEDS, device="cpu", control=False, name=family.__name__
    )


def row(check: coordcheck.CoordCheck, divided: bool) -> str:
    """A line of the table."""
    slopes = check.slopes
    stream = slopes[slopes["module"].str.partition("[")[0].str.endswith("(last)")].set_index(["kind", "step"])["slope"]
    at_fault = int(slopes["verdict"].isin(("explodes", "vanishes", "dead", "nonfinite")).sum())
    first = check.findings[0] if at_fault else None
    said = "" if first is None else f"{first.fault} at {first.module}"
    undecided = int((slopes["verdict"] == "inconclusive").sum())
    numbers = f"{stream['activation', 0]:+.2f} | {stream['delta', 1]:+.2f}"
    name, kind = check.cell().partition(" ")[0], "divided" if divided else "as they are"
    return f"| {name} | {kind} | {at_fault} of {len(slopes)} | {undecided} | {numbers} | {said} |"


def main() -> None:
    """Checks all, and writes the table."""
    lines = [
        "# Models of transformers over depths",
        "",
        f"`python benchmarks/depth.py`: depths {list(DEPTHS)}, width {WIDTH}, {SEEDS} seeds, AdamW at one rate; "
        "of the residual stream behind all blocks: exponents of its output at step 0 and of its change at step 1.",
        "",
        "| model | branches | at fault | undecided | output | change | first fault |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in (llama, gpt_neox, gpt2):
        for divided in (True, False):
            lines.append(row(checked(family, divided), divided))
            print(lines[-1], flush=True)
    (HERE / "depth.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
