"""What a call in Python may say by keyword, checked before anything is built."""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from coordcheck.config.accept import entries
from coordcheck.config.arguments import directory, is_flag, text, whole
from coordcheck.config.executor import check_executor
from coordcheck.config.load import default_gate
from coordcheck.config.rules import member
from coordcheck.config.schema import ENGINES, Decay, ExecutorConfig, ExecutorName, Expect, GateConfig
from coordcheck.records.names import shown


def gate_of(expect: str, decay: str | None, accept: Sequence[str]) -> GateConfig:
    """The default gate with what a call says of it.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    gate = dataclasses.replace(default_gate(), expect=member(Expect, "expect", expect))
    gate.decay = None if decay is None else member(Decay, "decay", decay).value
    entries(accept)
    gate.accept = list(accept)
    return gate


def check_accepted(gate: GateConfig, audit: bool) -> None:
    """Makes sure that there is an audit where its findings are accepted.

    Raises:
        ValueError: if there is none.
    """
    if gate.accept and not audit:
        raise ValueError(
            f"`accept` names what an audit finds, so it needs one; got {shown(gate.accept)} without an audit. "
            f"For example audit=True."
        )


def check_options(
    *, name: Any, control: Any, audit: Any, rerun: Any, try_advice: Any, store: Any, workers: Any
) -> None:
    """Checks what a call may say by keyword, see :func:`coordcheck.coord_check`.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    if name is not None:
        text("name", name, "my model")
    pair = isinstance(control, tuple | list) and len(control) == 2 and all(map(callable, control))
    if not (control is None or is_flag(control) or pair):
        raise ValueError(
            f"`control` is True, False, or a pair of functions (build, optimizer) of a model that must fail; got "
            f"{shown(control)}. For example control=False, or control=(build_in_sp, optimizer)."
        )
    for option, flag in (("audit", audit), ("rerun", rerun), ("try_advice", try_advice)):
        if not is_flag(flag):
            raise ValueError(f"`{option}` is True or False; got {shown(flag)}. For example {option}=False.")
    if store is not None:
        directory("store", store, "checks/runs")
    if workers is not None:
        whole("workers", workers, 2)


def executor_of(executor: Any) -> ExecutorConfig | Executor:
    """Who makes the runs of a check, as a call says it.

    Args:
        executor: A name, a dict of a name and what that engine is told, or an executor of ``concurrent.futures``.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    if isinstance(executor, Executor):
        return executor
    named: Any = {"name": executor} if isinstance(executor, str) else executor
    if not isinstance(named, Mapping) or "name" not in named or not all(isinstance(key, str) for key in named):
        raise ValueError(
            f"`executor` is a name, a dict with a name, or an executor of concurrent.futures; got {shown(executor)}. "
            f"For example executor='processes', or executor={{'name': 'submitit', 'slurm_partition': 'gpu'}}."
        )
    config = ExecutorConfig(
        member(ExecutorName, "executor", named["name"]), {key: value for key, value in named.items() if key != "name"}
    )
    check_executor(config)
    return config


def elsewhere(executor: ExecutorConfig | Executor) -> bool:
    """Whether runs may take place on machines with other devices than this one has."""
    return isinstance(executor, ExecutorConfig) and executor.name in ENGINES
