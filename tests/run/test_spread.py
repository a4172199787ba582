"""Runs given to an executor: order, how many at a time, and what a worker that dies costs."""

import threading
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor

import pytest

from coordcheck.run.one import Outcome
from coordcheck.run.spread import Arrays, spread

RUNS = [(256, 0), (256, 1), (128, 0), (64, 0)]


class ByHand(Executor):
    """Futures that a test ends itself; the workers of `dying` runs die so often."""

    def __init__(self, dying=()):
        self.dying, self.given, self.open, self.most = dict(dying), [], 0, 0

    def submit(self, call, /, *run):
        future = Future()
        self.given.append(run)
        self.open += 1
        self.most = max(self.most, self.open)
        threading.Timer(0.01, self.end, [future, call, run]).start()
        return future

    def end(self, future, call, run):
        self.open -= 1
        if self.dying.get(run, 0):
            self.dying[run] -= 1
            future.set_exception(BrokenExecutor("SIGKILL(-9)"))
        elif future.set_running_or_notify_cancel():
            future.set_result(call(*run))


def outcome(width, seed):
    return Outcome(None, error=f"{width} {seed}")


def test_runs_are_given_longest_first_and_no_more_than_go_on_at_a_time():
    executor = ByHand()
    assert dict(spread(executor, outcome, RUNS, 2, lambda runs: None)) == {run: outcome(*run) for run in RUNS}
    assert executor.given == RUNS
    assert executor.most == 2


def test_an_executor_with_a_queue_of_its_own_is_given_all_at_once():
    executor = ByHand()
    assert len([*spread(executor, outcome, RUNS, None, lambda runs: None)]) == 4
    assert executor.most == 4


def test_a_run_whose_worker_dies_is_given_once_more_and_costs_no_other():
    executor = ByHand({(256, 1): 1})
    assert dict(spread(executor, outcome, RUNS, 2, lambda runs: None, tries=2)) == {run: outcome(*run) for run in RUNS}
    assert sorted(executor.given) == sorted([*RUNS, (256, 1)])


def test_a_run_whose_worker_dies_twice_is_told_with_its_reason():
    executor = ByHand({(256, 1): 9})
    done = dict(spread(executor, outcome, RUNS, 2, lambda runs: None, tries=2))
    assert executor.given.count((256, 1)) == 2
    assert str(done.pop((256, 1))) == "SIGKILL(-9)"
    assert done == {run: outcome(*run) for run in RUNS if run != (256, 1)}


def test_a_pool_that_takes_no_more_is_one_sentence():
    class Broken(ByHand):
        def submit(self, call, /, *run):
            if self.given:
                raise BrokenExecutor("a child process terminated abruptly")
            return super().submit(call, *run)

    with pytest.raises(ValueError, match=r"`executor` takes no more runs \(BrokenExecutor: a child .*For example exec"):
        list(spread(Broken(), outcome, RUNS, 1, lambda runs: None, tries=2))


def test_what_waits_is_cancelled_when_nobody_wants_it_any_more():
    begun, go = [], threading.Event()

    def slow(width, seed):
        begun.append((width, seed))
        go.wait(20)
        return outcome(width, seed)

    def interrupt(runs):
        if begun:
            raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(KeyboardInterrupt):
            list(spread(executor, slow, RUNS, None, interrupt))
        go.set()
    assert begun == RUNS[:1]


def test_all_that_are_at_work_are_told():
    told = threading.Event()

    def wait(width, seed):
        assert told.wait(20)
        return outcome(width, seed)

    def tell(runs):
        if runs == RUNS[:2]:
            told.set()

    with ThreadPoolExecutor(2) as executor:
        assert len([*spread(executor, wait, RUNS, 2, tell)]) == 4


def test_runs_of_an_array_are_given_together():
    class Array(ByHand):
        def submit_all(self, call, runs):
            self.arrays.append([*runs])
            return [self.submit(call, *run) for run in runs]

    executor = Array({(64, 0): 1})
    executor.arrays = []
    assert isinstance(executor, Arrays)
    list(spread(executor, outcome, RUNS, None, lambda runs: None, tries=2))
    assert executor.arrays == [RUNS, [(64, 0)]]
