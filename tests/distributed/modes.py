"""A small GPT, how it trains in one process, and how in each way that torch has of training it on several ranks.

Each mode returns what a rank recorded, merged; the ranks' processes run it, so it is a top-level function.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import coordcheck
from coordcheck import Recorder

KINDS = ("activation", "delta", "effective_update", "gradient")
BATCH, LENGTH, VOCABULARY, HEADS, WIDTH, STEPS = 8, 32, 64, 4, 128, 3


class Attention(nn.Module):
    """x: (B, L, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = (part(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.proj(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x: (B, L, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width)
        self.fc, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.out(self.fc(self.norm_2(x)).relu())


class GPT(nn.Module):
    """tokens: (B, L); an absent part, as in the stage of a pipeline, hands on what it gets."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleDict({str(i): Block(width) for i in range(2)})
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wte(x) if self.wte is not None else x
        for block in self.blocks.values():
            x = block(x)
        return self.head(self.norm(x)) if self.head is not None else x


class Twice(Block):
    """One layer runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + self.fc(x)[..., :WIDTH]


def build(twice: bool = False) -> GPT:
    torch.manual_seed(0)
    model: Any = GPT()
    for block in model.blocks.values() if twice else ():
        block.__class__ = Twice
    return model


def roles() -> dict[str, str]:
    return coordcheck.roles(GPT)


Data = tuple[Tensor, Tensor]


def batch(length: int = LENGTH) -> Data:
    tokens = torch.randint(VOCABULARY, (BATCH, length + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


def share(rank: int | None = None, ranks: int | None = None, dim: int = 0, length: int = LENGTH) -> Data:
    """This rank's part of the batch, or of each sequence."""
    rank, ranks = dist.get_rank() if rank is None else rank, ranks or dist.get_world_size()
    inputs, targets = (part.chunk(ranks, dim)[rank] for part in batch(length))
    return inputs, targets


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


Optimizer = Callable[[Any], torch.optim.Optimizer]


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


def train(
    model: nn.Module,
    data: Data,
    *,
    micro_batches: int = 1,
    kinds: tuple[str, ...] = KINDS,
    optimizer: Optimizer = adam,
    quiet: Callable[[], Any] = nullcontext,
    loss: Callable[[Tensor, Tensor], Tensor] = loss_of,
    recorded: nn.Module | None = None,
) -> Recorder:
    """Trains a model, on several ranks with this rank's data, and records it."""
    stepped = optimizer(model.parameters())
    parts = [*zip(*(part.chunk(micro_batches) for part in data), strict=True)]
    recorder = Recorder(recorded or model, width=WIDTH, kinds=kinds, roles=roles())
    with recorder:
        for _ in range(STEPS):
            for i, (inputs, targets) in enumerate(parts):
                with nullcontext() if i == micro_batches - 1 else quiet():
                    value = loss(model(inputs), targets)
                    recorder.record_loss(value)
                    (value / micro_batches).backward()
            stepped.step()
            stepped.zero_grad()
            recorder.step()
    return recorder


def merged(recorder: Recorder) -> pd.DataFrame:
    return recorder.records(group=dist.group.WORLD)


def one_process(length: int = LENGTH, twice: bool = False) -> pd.DataFrame:
    return train(build(twice), batch(length)).records()


def ddp() -> pd.DataFrame:
    return merged(train(DistributedDataParallel(build()), share()))


def ddp_micro_batches() -> pd.DataFrame:
    model = DistributedDataParallel(build())
    return merged(train(model, share(), micro_batches=2, quiet=model.no_sync))


def ddp_of_which_the_recorder_has_the_inside() -> pd.DataFrame:
    inside = build()
    return merged(train(DistributedDataParallel(inside), share(), recorded=inside))


def fsdp1(use_orig_params: bool, twice: bool = False) -> pd.DataFrame:
    return merged(train(shard_flat(build(twice), use_orig_params), share()))


def shard_flat(model: nn.Module, use_orig_params: bool = True) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    options: dict[str, Any] = {"use_orig_params": use_orig_params, "device_id": torch.device("cpu")}
    return FullyShardedDataParallel(model, auto_wrap_policy=ModuleWrapPolicy({Block, Twice}), **options)


def fsdp2(per_layer: bool, wrapped: bool = False, dimensions: int = 1) -> pd.DataFrame:
    """Wrapped: every block is checkpointed and compiled. Two dimensions: what is sharded is replicated, too."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model: Any = build()
    for name, block in [*model.blocks.items()] if wrapped else []:
        model.blocks[name] = torch.compile(checkpoint_wrapper(block))
    shape = (dist.get_world_size(),) if dimensions == 1 else (2, dist.get_world_size() // 2)
    shard(model, init_device_mesh("cpu", shape, mesh_dim_names=("replicated", "sharded")[-dimensions:]), per_layer)
    return merged(train(model, share()))


def parallel_layers(model: GPT, mesh: Any, sequence: str) -> None:
    """Splits layers over ranks as torchtitan does.

    Args:
        model: Is changed.
        mesh: Of one dimension.
        sequence: What is between those layers: "whole", or split along the sequence, as "plain" tensors or as DTensors.
    """
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    between = Replicate() if sequence == "whole" else Shard(1)
    out: dict[str, Any] = {"output_layouts": between, "use_local_output": sequence != "distributed"}
    plan: dict[str, Any] = {
        "wte": RowwiseParallel(input_layouts=Replicate(), **out),
        "head": ColwiseParallel(input_layouts=between, output_layouts=Replicate()),
    }
    norms = ["norm"]
    for block in ("blocks.0", "blocks.1"):
        plan |= {f"{block}.attn.{name}": ColwiseParallel() for name in "qkv"}
        plan |= {f"{block}.attn.proj": RowwiseParallel(**out), f"{block}.out": RowwiseParallel(**out)}
        prepare: Any = PrepareModuleInput(input_layouts=(between,), desired_input_layouts=(Replicate(),))
        plan |= {f"{block}.attn": prepare, f"{block}.fc": ColwiseParallel(input_layouts=between)}
        norms += [f"{block}.norm_1", f"{block}.norm_2"]
    if sequence != "whole":
        plan |= {name: SequenceParallel(use_local_output=sequence == "plain") for name in norms}
    parallelize_module(model, mesh, plan)


def tensor_parallel(sequence: str, length: int = LENGTH) -> pd.DataFrame:
    model = build()
    parallel_layers(model, init_device_mesh("cpu", (dist.get_world_size(),)), sequence)
    return merged(train(model, batch(length)))


def mesh_of_two_dimensions(per_layer: bool) -> pd.DataFrame:
    """FSDP2 over one, tensor and sequence parallelism over the other."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = build()
    parallel_layers(model, mesh["tensor"], "distributed")
    shard(model, mesh["data"], per_layer)
    return merged(train(model, share(mesh.get_local_rank("data"), 2)))


def shard(model: GPT, mesh: Any, per_layer: bool) -> None:
    """FSDP2, where each layer or each block is a unit."""
    from torch.distributed._composable.fsdp import fully_shard

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding | nn.LayerNorm)]
    for unit in layers if per_layer else model.blocks.values():
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)


def stage_of(index: int, stages: int = 2) -> GPT:
    """The first or the last half of the model, whose modules keep their names; built whole, so that seeds agree."""
    model: Any = build()
    if index > 0:
        model.wte = None
        del model.blocks["0"]
    if index < stages - 1:
        model.norm = model.head = None
        del model.blocks["1"]
    return model


def pipeline(name: str, scale_grads: bool = True) -> pd.DataFrame:
    from torch.distributed import pipelining

    rank, micro_batches = dist.get_rank(), 4
    stage = pipelining.PipelineStage(stage_of(rank), rank, 2, torch.device("cpu"))

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        value = loss_of(logits, targets)
        recorder.record_loss(value)
        return value

    kind = getattr(pipelining, name)
    schedule = kind(stage, micro_batches, loss_fn=loss, scale_grads=scale_grads)
    inputs, targets = batch()
    optimizer = adam(stage.submod.parameters())
    recorder = Recorder(schedule, width=WIDTH, kinds=KINDS, roles=roles())
    with recorder:
        for _ in range(STEPS):
            if rank == 0:
                schedule.step(inputs)
            else:
                schedule.step(target=targets)
            optimizer.step()
            optimizer.zero_grad()
            recorder.step()
    return merged(recorder)


def chunk(width: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh())


def chunks() -> list[nn.Sequential]:
    torch.manual_seed(0)
    return [chunk() for _ in range(4)]


def interleaved() -> pd.DataFrame:
    """Two stages on each rank, all with the same names."""
    from torch.distributed import pipelining

    rank, device = dist.get_rank(), torch.device("cpu")
    stages = [pipelining.PipelineStage(chunks()[i], i, 4, device) for i in (rank, rank + 2)]
    schedule = pipelining.ScheduleInterleaved1F1B(stages, 2, loss_fn=lambda x, y: (x - y).square().mean())
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
    optimizer = adam([p for stage in stages for p in stage.submod.parameters()])
    with Recorder(schedule, width=WIDTH, kinds=KINDS, roles={}) as recorder:
        for _ in range(STEPS):
            schedule.step(x) if rank == 0 else schedule.step(target=-x)
            optimizer.step()
            optimizer.zero_grad()
            recorder.step()
    return merged(recorder)


def not_interleaved() -> pd.DataFrame:
    model = nn.Sequential(*chunks())
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
    optimizer = adam(model.parameters())
    with Recorder(model, width=WIDTH, kinds=KINDS, roles={}) as recorder:
        for _ in range(STEPS):
            (model(x) + x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.step()
    records = recorder.records()
    last = records["module"] == "3"  # the model's output, too
    names = records["module"].where(records["module"] == "(model)", "stages." + records["module"])
    return records.assign(module=names)[~last]


class Gathered(torch.autograd.Function):
    """(B, H, L / R, K) -> (B, H, L, K); gradients of all ranks add up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size(), dim=2)[dist.get_rank()]


class SplitAttention(Attention):
    """Of sequences that are split over ranks: each asks with its own positions, and sees the keys and values of all."""

    def forward(self, x: Tensor) -> Tensor:
        heads = [part(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for part in (self.q, self.k, self.v)]
        keys, values = (Gathered.apply(part.contiguous()) for part in heads[1:])
        asks = torch.arange(x.shape[1]) + dist.get_rank() * x.shape[1]
        seen = torch.arange(keys.shape[2]) <= asks[:, None]
        y = F.scaled_dot_product_attention(heads[0], keys, values, attn_mask=seen)
        return self.proj(y.transpose(1, 2).flatten(2))


def context_parallel(length: int) -> pd.DataFrame:
    model: Any = build()
    for block in model.blocks.values():
        block.attn.__class__ = SplitAttention
    return merged(train(DistributedDataParallel(model), share(dim=1, length=length)))


class Exchanged(torch.autograd.Function):
    """What this rank has for each rank -> what each rank has for this one."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> tuple[Tensor, ...]:
        got = [torch.empty_like(part) for part in parts]
        dist.all_to_all(got, [part.contiguous() for part in parts])
        return tuple(got)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return Exchanged.forward(ctx, *gradients)


class Experts(nn.Module):
    """x: (N, D). Token i goes to expert i mod 2; each rank has one of them, or one process both."""

    def __init__(self, ranks: int = 1):
        super().__init__()
        mine = range(2) if ranks == 1 else [dist.get_rank()]
        experts = {str(i): nn.Linear(WIDTH, WIDTH) for i in range(2)}
        self.experts = nn.ModuleDict({str(i): experts[str(i)] for i in mine})
        self.ranks = ranks

    def forward(self, x: Tensor) -> Tensor:
        halves = x.unflatten(0, (-1, 2)).unbind(1)
        if self.ranks == 1:
            return torch.stack([self.experts[str(i)](half) for i, half in enumerate(halves)], 1).flatten(0, 1)
        (expert,) = self.experts.values()
        made = expert(torch.cat(Exchanged.apply(*halves))).chunk(2)
        return torch.stack(Exchanged.apply(*made), 1).flatten(0, 1)


class Mixture(nn.Module):
    """x: (N, D)."""

    def __init__(self, ranks: int = 1):
        super().__init__()
        self.fc, self.moe, self.out = nn.Linear(WIDTH, WIDTH), Experts(ranks), nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.moe(self.fc(x).relu()).relu())


def mixture(ranks: int) -> pd.DataFrame:
    """Data parallel but for the experts, whose gradients are complete where they are."""
    torch.manual_seed(0)
    model: Any = Mixture(ranks)
    x = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1))
    mine = x if ranks == 1 else x.chunk(ranks)[dist.get_rank()]
    optimizer = adam(model.parameters())
    with Recorder(model, width=WIDTH, kinds=KINDS[:3], roles={}) as recorder:
        for _ in range(STEPS):
            model(mine).square().mean().backward()
            for name, parameter in model.named_parameters() if ranks > 1 else ():
                if "experts" not in name:
                    dist.all_reduce(parameter.grad)
                parameter.grad /= ranks
            optimizer.step()
            optimizer.zero_grad()
            recorder.step()
    return recorder.records() if ranks == 1 else merged(recorder)


def without_roles() -> list[str]:
    """What is said of a model that was sharded before anybody asked for its roles."""
    model = build()
    shard(model, init_device_mesh("cpu", (dist.get_world_size(),)), per_layer=False)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Recorder(model, width=WIDTH)
    return [str(warning.message) for warning in seen]


def inside_of_fsdp1() -> str:
    inside = build()
    _ = shard_flat(inside)
    blocks: Any = inside.head
    try:
        Recorder(blocks, width=WIDTH, roles={}).__enter__()
    except ValueError as error:
        return str(error)
    return ""


def weights_of_ranks() -> str:
    try:
        Recorder(build(), width=WIDTH, kinds=["weight"], roles={}).__enter__()
    except ValueError as error:
        return str(error)
    return ""


def saved(directory: str) -> pd.DataFrame:
    """What each rank saves; the frame that they gather."""
    recorder = train(DistributedDataParallel(build()), share())
    recorder.save(directory)
    return merged(recorder)


def of_groups() -> tuple[int, int]:
    """How many entries there are of one module, by all ranks and by one that trained alone."""
    recorder = train(build(), share())
    alone = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    frames = (merged(recorder), recorder.records(group=alone))
    return tuple(int(frame.query("module == 'wte' and step == 0")["count"].iloc[0]) for frame in frames)  # type: ignore[return-value]
