"""Who makes the runs of a check: this process's threads, a process for each GPU, or the engine of a cluster.

All are executors of ``concurrent.futures``, and none plans: which run goes where is for loky, Slurm, Ray or Dask to
say. Each engine is imported when it is asked for. See docs/clusters.md.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from coordcheck.config.schema import ExecutorConfig, ExecutorName
from coordcheck.records.names import one_line
from coordcheck.run.one import Outcome
from coordcheck.run.spread import Run

SLURM = "slurm"
VISIBLE = "CUDA_VISIBLE_DEVICES"
KEPT = {"LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"}  # loky would take wide models for a leak, and begin another process
POLL = 1.0  # seconds between looks at Slurm's jobs, and at whether the process that began a worker is still there
TRIES = 2  # of a run whose worker dies


@dataclass
class Engine:
    """An executor that starts when the first run is given, and serves all queues of a check.

    Attributes:
        start: From how many runs go on at a time to the executor.
        devices: Of this machine that it uses.
        each: Runs at a time that each of them may get where its memory has room for as many: one for each CPU core that
            feeds it, unless somebody says how many.
        remote: Whether runs take place on other machines, so that nothing is tried out or timed on this one.
        queues: Whether it keeps what waits itself; else it is given no more runs than go on.
        foreign: Whether somebody else began it, who will end it too.
        automatic: Whether nobody asked for it.
    """

    start: Callable[[int], Executor]
    devices: int = 1
    each: int = 1
    remote: bool = False
    queues: bool = False
    foreign: bool = False
    automatic: bool = False
    _executor: Executor | None = field(default=None, init=False)

    def executor(self, workers: int) -> Executor:
        """The executor, begun if need be."""
        if self._executor is None:
            self._executor = self.start(workers)
        return self._executor

    def stop(self) -> None:
        """Ends it with whatever still goes on."""
        executor, self._executor = self._executor, None
        if executor is not None and not self.foreign:
            executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def engine_of(
    executor: ExecutorConfig | Executor | Engine, device: torch.device, folder: Path | None, workers: int | None
) -> Iterator[Engine | None]:
    """The engine that a check asks for, ended with it; None where its runs go on in threads of this process.

    Args:
        executor: A name with arguments, any executor of ``concurrent.futures``, or an engine of which this is a part.
        device: Where runs take place.
        folder: On a directory that all machines see, for what an engine writes; None where there is none.
        workers: Runs at a time that were asked for.

    Raises:
        ValueError: if its package is not installed, or it needs a store.
    """
    if isinstance(executor, Engine):
        yield executor
        return
    engine = _engine(executor, device, folder, workers)
    try:
        yield engine
    finally:
        if engine is not None:
            engine.stop()


def _engine(
    executor: ExecutorConfig | Executor, device: torch.device, folder: Path | None, workers: int | None
) -> Engine | None:
    if isinstance(executor, Executor):
        return Engine(lambda _: executor, queues=True, foreign=True)
    name, args = executor.name, dict(executor.args)
    visible, on_gpu = devices_of(device), device.type == "cuda"
    if name == ExecutorName.threads or (name == ExecutorName.auto and len(visible) < 2):
        return None
    if name in (ExecutorName.auto, ExecutorName.processes):
        start, devices = partial(_processes, visible), max(1, len(visible))
        each = max(1, cores() // devices) if on_gpu and workers is None else 1
        return Engine(start, devices, each, automatic=name == ExecutorName.auto)
    if name == ExecutorName.ray:
        return Engine(lambda _: _begun(name, Ray, on_gpu, **args), remote=True, queues=True)
    if name == ExecutorName.dask:
        here = {} if "address" in args else {"n_workers": workers or os.cpu_count(), "threads_per_worker": 1}
        return Engine(lambda _: _begun(name, Dask, **{**here, **args}), remote=True, queues=True)
    if folder is None:
        raise ValueError(
            "executor='submitit' needs a directory that all machines see, where finished runs are kept; got none. "
            "For example store='checks/runs'."
        )
    if workers is not None:
        args = {"slurm_array_parallelism": workers, **args}
    on_slurm = args.get("cluster", SLURM) == SLURM
    logs = folder.absolute() / "submitit"
    return Engine(lambda _: _begun(name, Submitit, logs, on_gpu, **args), remote=on_slurm, queues=on_slurm)


def _begun(name: str, executor: Callable[..., Executor], *args: Any, **parameters: Any) -> Executor:
    """An executor of an engine.

    Raises:
        ValueError: if its package is not installed, or does not take these parameters.
    """
    try:
        return executor(*args, **parameters)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"executor={name} needs {error.name}, which is not installed. For example pip install 'coordcheck[{name}]'."
        ) from error
    except (TypeError, NameError, RuntimeError, OSError) as error:  # which the engines raise for what they do not take
        raise ValueError(
            f"executor={name} cannot start with {parameters} ({type(error).__name__}: {one_line(error)}). "
            f"For example executor.args.{KNOWN[name]}."
        ) from error


KNOWN = {
    "submitit": "cluster=local, which needs no Slurm",
    "ray": "address=auto",
    "dask": "address=tcp://scheduler:8786",
}


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices_of(device: torch.device) -> list[str]:
    """The GPUs that runs may use, as CUDA_VISIBLE_DEVICES names them; none for any other device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return []
    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    every = [*map(str, range(torch.cuda.device_count()))] if not named else named[: torch.cuda.device_count()]
    return every if device.index is None else every[device.index : device.index + 1]


def _processes(devices: Sequence[str], workers: int) -> "Processes":
    """As many processes, in turn on each GPU."""
    return Processes([{VISIBLE: devices[i % len(devices)]} if devices else {} for i in range(workers)])


class Processes(ThreadPoolExecutor):
    """A process of its own for each thread, so that one that dies takes no other with it; the next run gets another.

    They are loky's: begun anew rather than forked, with an environment each, and without a second run of the script
    that asks for them.

    Args:
        environments: What each process has set besides, before it imports anything.
    """

    def __init__(self, environments: Sequence[Mapping[str, str]]):
        super().__init__(len(environments))
        self._environments: SimpleQueue[Mapping[str, str]] = SimpleQueue()
        for environment in environments:
            self._environments.put(environment)
        self._thread = threading.local()
        self._pools: set[Any] = set()
        self._ended = False

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As every executor."""
        return super().submit(self._elsewhere, call, *args, **kwargs)

    def _elsewhere(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        pool = self._pool()
        try:
            return pool.submit(call, *args, **kwargs).result()
        except BrokenExecutor:
            self._thread.pool = None
            self._pools.discard(pool)
            raise

    def _pool(self) -> Any:
        """This thread's process."""
        from loky.process_executor import ProcessPoolExecutor

        own = self._thread
        if not hasattr(own, "environment"):
            own.environment, own.pool = self._environments.get(), None
        if own.pool is None and not self._ended:
            environment = {**KEPT, **own.environment}
            own.pool = ProcessPoolExecutor(1, initializer=_in_worker, initargs=(os.getpid(),), env=environment)
            self._pools.add(own.pool)
        return own.pool

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes; with `cancel_futures` those too that are at work."""
        self._ended = self._ended or cancel_futures
        if cancel_futures:
            super().shutdown(wait=False, cancel_futures=True)
            for pool in list(self._pools):
                pool.shutdown(wait=True, kill_workers=True)
        super().shutdown(wait=wait)
        for pool in list(self._pools):
            pool.shutdown(wait=wait)


def _in_worker(parent: int) -> None:
    """Ctrl-C is for the process that asks to handle; where that is gone, however it ended, so is this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Submitit(Executor):
    """Jobs of a cluster by submitit: those that are given together are one array.

    Args:
        folder: On a directory that all machines see, for what submitit sends and what jobs print.
        on_gpu: Whether each job has a GPU, unless `parameters` say otherwise.
        cluster: "slurm", or "local" for processes of this machine.
        **parameters: Of ``submitit.AutoExecutor.update_parameters``.
    """

    def __init__(self, folder: Path, on_gpu: bool = False, cluster: str = SLURM, **parameters: Any):
        import submitit

        self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        usual = {"name": "coordcheck", "timeout_min": 60, "cpus_per_task": torch.get_num_threads()}
        usual |= {"gpus_per_node": 1} if on_gpu else {}
        if cluster != SLURM:
            parameters = {name: value for name, value in parameters.items() if name != "slurm_array_parallelism"}
        self._executor.update_parameters(**{**usual, **parameters})
        self._logs = folder if cluster == SLURM else None
        self._jobs: dict[Future[Any], Any] = {}
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """One job."""
        return self._watched([self._executor.submit(call, *args, **kwargs)])[0]

    def submit_all(self, call: Callable[[int, int], Outcome], runs: Sequence[Run]) -> list[Future[Outcome]]:
        """One array, a job for each run."""
        jobs = self._executor.map_array(call, *zip(*runs, strict=True))
        if self._logs is not None:
            job = str(jobs[0].job_id).partition("_")[0]
            print(f"{len(jobs)} runs are given to Slurm as job {job}; {self._logs} has its logs", file=sys.stderr)
        return self._watched(jobs)

    def _watched(self, jobs: Sequence[Any]) -> list[Future[Any]]:
        futures: list[Future[Any]] = [Future() for _ in jobs]
        self._jobs |= dict(zip(futures, jobs, strict=True))
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return futures

    def _watch(self) -> None:
        """Tells futures what came of their jobs."""
        while not self._ended.wait(POLL / 4):
            for future, job in list(self._jobs.items()):
                if future.cancelled():
                    job.cancel(check=False)
                elif job.done():
                    _tell(future, job)
                elif not future.running() and job.state == "RUNNING":
                    future.set_running_or_notify_cancel()
                    continue
                else:
                    continue
                del self._jobs[future]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends it; with `cancel_futures` all jobs too."""
        self._ended.set()
        for job in self._jobs.values() if cancel_futures else ():
            job.cancel(check=False)


def _tell(future: Future[Any], job: Any) -> None:
    """Hands what came of a job on."""
    if not future.running() and not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(job.result())
    except Exception as error:  # of a job that died: run_one raises nothing
        future.set_exception(error)


class Ray(Executor):
    """Tasks of a Ray cluster, each with a GPU where runs need one.

    Args:
        on_gpu: Whether they do.
        **parameters: Of ``ray.init``, unless Ray has begun already; ``address="auto"`` joins a cluster.
    """

    def __init__(self, on_gpu: bool = False, **parameters: Any):
        import ray

        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            ray.init(**{"log_to_driver": False, "include_dashboard": False, **parameters})
        self._options = {"num_gpus": 1.0 if on_gpu else 0.0, "max_retries": 0}
        self._references: dict[Future[Any], Any] = {}

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """One task."""
        task = self._ray.remote(**self._options)(_called)
        reference = task.remote(call, args, kwargs)
        future: Future[Any] = reference.future()
        self._references[future] = reference
        future.add_done_callback(lambda done: self._references.pop(done, None))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends it; with `cancel_futures` all tasks too."""
        for reference in list(self._references.values()) if cancel_futures else ():
            with suppress(Exception):  # of a task that has just ended
                self._ray.cancel(reference, force=True)
        if self._ours:
            self._ray.shutdown()


def _called(call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What Ray runs: it takes functions, and no partial."""
    return call(*args, **kwargs)


class Dask(Executor):
    """Tasks of a Dask cluster.

    Args:
        **parameters: Of ``dask.distributed.Client``: ``address="tcp://..."`` joins a cluster; without, one is begun on
            this machine. Its workers have one thread each, and a GPU each where runs need one.
    """

    def __init__(self, **parameters: Any):
        import dask
        from distributed import Client

        # a scheduler that is begun here gives a run up with its worker, for a check gives it once more itself
        with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
            self._client = Client(**parameters)
        self._executor = self._client.get_executor(pure=False)

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """One task."""
        future: Future[Any] = self._executor.submit(call, *args, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends it; what waits is given up."""
        self._executor.shutdown(wait=wait and not cancel_futures)
        self._client.close()
