"""Trains a transformer in muP as torchtitan does, by FSDP2 with checkpointed and compiled blocks, and records it.

torchrun --nproc-per-node 2 train.py --widths 64 128 256 --seeds 2
coordcheck-report checks/fsdp2

What coordcheck needs are the ten lines with a sign #+.
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._composable.fsdp import fully_shard
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh

import coordcheck  # +

BASE_WIDTH, VOCABULARY, BATCH, LENGTH, HEAD = 64, 256, 8, 64, 16


class Attention(nn.Module):
    """Heads of one size, whose number grows with width."""

    def __init__(self, width: int):
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Of (B, L, D)."""
        q, k, v = (part(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a feed-forward layer, each behind a norm."""

    def __init__(self, width: int):
        super().__init__()
        self.norm_1, self.attn, self.norm_2 = nn.RMSNorm(width), Attention(width), nn.RMSNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of (B, L, D)."""
        x = x + self.attn(self.norm_1(x))
        return x + self.down(F.silu(self.up(self.norm_2(x))))


class Transformer(nn.Module):
    """A causal language model."""

    def __init__(self, width: int, depth: int = 2):
        super().__init__()
        self.width_mult = width / BASE_WIDTH
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleDict({str(i): Block(width) for i in range(depth)})
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns logits, (B, L, V), of tokens (B, L)."""
        x = self.embedding(tokens)
        for block in self.blocks.values():
            x = block(x)
        return self.head(self.norm(x) / self.width_mult)


def build(width: int) -> Transformer:
    """In muP: hidden weights like width^-1/2; the head, which has its multiplier, starts at zero."""
    model = Transformer(width)
    for name, weight in model.named_parameters():
        if name.startswith("blocks") and weight.dim() == 2:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    nn.init.zeros_(model.head.weight)
    return model


def shard(model: Transformer, mesh: object) -> None:
    """Checkpoints, compiles and shards each block, then the rest."""
    for name, block in [*model.blocks.items()]:
        model.blocks[name] = torch.compile(checkpoint_wrapper(block))
        fully_shard(model.blocks[name], mesh=mesh)
    fully_shard(model, mesh=mesh)


def optimizer_of(model: Transformer, lr: float, standard: bool) -> torch.optim.Optimizer:
    """Adam; hidden matrices learn at a rate that shrinks like 1/width, unless the rates of `standard` are asked for."""
    hidden = [p for name, p in model.named_parameters() if "blocks" in name and p.dim() == 2]
    others = [p for name, p in model.named_parameters() if not ("blocks" in name and p.dim() == 2)]
    groups = [{"params": hidden, "lr": lr if standard else lr / model.width_mult}, {"params": others, "lr": lr}]
    return torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-12)


def train(width: int, seed: int, options: argparse.Namespace) -> None:
    """One run, of one width and one seed."""
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(seed)
    model = build(width).to(device)
    shard(model, init_device_mesh(device.type, (dist.get_world_size(),)))
    optimizer = optimizer_of(model, 1e-3, options.standard)
    text = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
    mine = text.chunk(dist.get_world_size())[dist.get_rank()].to(device)
    roles = coordcheck.roles(build)  # +
    kinds = ["activation", "delta", "effective_update"]  # +
    with coordcheck.Recorder(model, width=width, seed=seed, kinds=kinds, roles=roles) as recorder:  # +
        for _ in range(options.steps):
            loss = F.cross_entropy(model(mine[:, :-1]).flatten(0, 1), mine[:, 1:].flatten())
            recorder.record_loss(loss.detach())  # +
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.step()  # +
    recorder.save(options.directory)  # +


def main() -> None:
    """Every width with every seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--standard", action="store_true", help="one rate for all, a fault that the report finds")
    parser.add_argument("--directory", default="checks/fsdp2")
    options = parser.parse_args()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    for width in options.widths:
        for seed in range(options.seeds):
            train(width, seed, options)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
