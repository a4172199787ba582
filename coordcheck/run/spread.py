"""Runs given to an executor, longest first, and what came of each.

An executor is one of ``concurrent.futures``; which one does not matter here. Where runs take place in other processes,
what a future raises tells of the worker, not of the run: that run is given once more.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from typing import Protocol, runtime_checkable

from coordcheck.run.one import Outcome

Run = tuple[int, int]  # width and seed
TICK = 0.5  # seconds between looks at who is at work


@runtime_checkable
class Arrays(Protocol):
    """An executor that is best given many calls at once."""

    def submit_all(self, call: Callable[[int, int], Outcome], runs: Sequence[Run]) -> "list[Future[Outcome]]":
        """A future for each run."""


def spread(
    executor: Executor,
    call: Callable[[int, int], Outcome],
    runs: Sequence[Run],
    at_a_time: int | None,
    working: Callable[[Sequence[Run]], object],
    tries: int = 1,
) -> Iterator[tuple[Run, Outcome | BaseException]]:
    """What comes of runs, as they end.

    Args:
        executor: Who makes them; left open.
        call: From width and seed to the outcome of a run.
        runs: Longest first.
        at_a_time: How many are given at once; None for all, where the executor has a queue of its own.
        working: Told from time to time which runs go on.
        tries: How often a run is given whose worker dies.

    Yields:
        A run with its outcome, or with what its last future raised.

    Raises:
        ValueError: if the executor takes no more runs.
    """
    waiting, tried = deque(runs), Counter[Run]()
    active: dict[Future[Outcome], Run] = {}
    try:
        while waiting or active:
            free = len(waiting) if at_a_time is None else at_a_time - len(active)
            given = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            active |= dict(zip(_submitted(executor, call, given), given, strict=True))
            working([run for future, run in active.items() if future.running()])
            for future in wait(active, TICK, FIRST_COMPLETED).done:
                run = active.pop(future)
                error = CancelledError() if future.cancelled() else future.exception()
                tried[run] += 1
                if error is None:
                    yield run, future.result()
                elif isinstance(error, Exception) and tried[run] < tries:
                    waiting.append(run)
                else:
                    yield run, error
    finally:
        for future in active:
            future.cancel()


def _submitted(executor: Executor, call: Callable[[int, int], Outcome], runs: Sequence[Run]) -> list[Future[Outcome]]:
    try:
        if isinstance(executor, Arrays):
            return executor.submit_all(call, runs) if runs else []
        return [executor.submit(call, *run) for run in runs]
    except RuntimeError as error:  # a pool whose worker died takes nothing more
        raise ValueError(
            f"`executor` takes no more runs ({type(error).__name__}: {error}); finished ones are kept where there is a "
            f"store. For example executor='processes', which replaces a worker that dies."
        ) from error
