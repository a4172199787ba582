"""Processes that talk over gloo on 127.0.0.1: started once for each world size, they run one mode after another."""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist

PATIENCE = 90.0  # seconds for one mode
KEY = ["step", "module", "kind"]


def _work(rank: int, size: int, port: int, pipe: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # in which what differs is a fault, and no rounding that Adam blows up
    dist.init_process_group("gloo", rank=rank, world_size=size)
    while (job := pipe.recv()) is not None:
        function, arguments = job
        try:
            answer = (True, function(*arguments))
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send(answer)


class Ranks:
    """Some processes, each waiting for what to run."""

    def __init__(self, size: int):
        self.size = size
        self._workers: list[tuple[Any, Any]] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What a top-level function returns on each rank; an error of one is raised."""
        if not self._workers:
            self._start()
        for _, pipe in self._workers:
            pipe.send((function, arguments))
        answers: dict[int, tuple[bool, Any]] = {}
        end = time.monotonic() + PATIENCE
        while len(answers) < self.size and time.monotonic() < end:
            for rank, (_, pipe) in enumerate(self._workers):
                if rank not in answers and pipe.poll(0.02):
                    answers[rank] = pipe.recv()
                    if not answers[rank][0]:
                        end = min(end, time.monotonic() + 2)  # the others may wait for this one
        failed = {rank: said for rank, (well, said) in answers.items() if not well}
        if len(answers) < self.size:
            self.stop()
        if failed:
            raise RuntimeError("\n".join(f"rank {rank}: {said}" for rank, said in failed.items()))
        assert len(answers) == self.size, f"ranks {sorted({*range(self.size)} - {*answers})} did not end"
        return [answers[rank][1] for rank in range(self.size)]

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(rank, self.size, port, there), daemon=True)
            process.start()
            self._workers.append((process, here))

    def stop(self) -> None:
        """Ends the processes, those that hang too."""
        for process, _ in self._workers:
            process.kill()
            process.join()
        self._workers.clear()


def differences(got: pd.DataFrame, expected: pd.DataFrame, tolerance: float = 1e-5) -> list[str]:
    """What two frames of records do not agree in: rows, their order, and statistics beyond a relative tolerance."""
    both = expected.merge(got, on=KEY, how="outer", suffixes=("", "_got"), indicator=True)
    alone = both[both["_merge"] != "both"]
    found = [f"{row['_merge']}: {row['kind']} of {row['module']}, step {row['step']}" for _, row in alone.iterrows()]
    both = both[both["_merge"] == "both"]
    for name in ("l1", "rms", "max", "nonfinite"):
        off = (both[f"{name}_got"] - both[name]).abs() > tolerance * both[name].abs() + 1e-14
        for _, row in both[off | both[f"{name}_got"].isna()].iterrows():
            found.append(f"{name}, {row.kind} of {row.module}, step {row.step}: {row[f'{name}_got']} for {row[name]}")
    order = [frame.sort_values("order")["module"].drop_duplicates().tolist() for frame in (got, expected)]
    if not found and order[0] != order[1]:
        found.append(f"order {order[0]} for {order[1]}")
    if not both["role"].eq(both["role_got"]).fillna(both["role"].isna() & both["role_got"].isna()).all():
        found.append(f"roles {both['role_got'].tolist()} for {both['role'].tolist()}")
    return found
