"""Who gives batches to processes, and what becomes of them when one ends: without any process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pyenc.errors import InputError, WorkerError
from pyenc.ops import use_backend
from pyenc.ops.precision import precisions
from pyenc.text import team as module
from pyenc.text.packed import Packed
from pyenc.text.team import Team

CPU = torch.device("cpu")


class Worker:
    """Stands for a process: answers what it was given when it may go on, and fails once stopped,
    as a pipe does."""

    made: list[Worker]
    failing: Callable[[Worker], None]
    """Called as each is begun, greeted and asked for an answer."""

    def __init__(self, place: str, greeting: Any) -> None:
        self.place, self.greeting, self.does = place, greeting, "begin"
        self.ready: Future[None] = Future()
        self.at_hand: deque[Future[Any]] = deque()
        self.told: list[int] = []
        self.ids: list[Any] = []
        self.ended: list[str] = []
        self.stopped, self.asked, self.going = (threading.Event() for _ in range(3))
        Worker.failing(self)
        Worker.made.append(self)

    def _may_go_on(self, does: str) -> None:
        self.does = does
        Worker.failing(self)
        self.asked.set()
        self.going.wait()
        if self.stopped.is_set():
            raise EOFError

    def greet(self) -> None:
        self._may_go_on("greet")
        self.going.clear()
        self.asked.clear()
        if self.stopped.is_set():  # since
            raise EOFError

    def send(self, future: Future[Any], batch: Packed, prepared: Any, number: int) -> None:
        self.at_hand.append(future)
        self.told.append(number)
        self.ids.append(batch.ids)

    def receive(self) -> None:
        self._may_go_on("receive")
        number = self.told[-len(self.at_hand)]
        self.at_hand.popleft().set_result((number, np.array([number])))

    def stop(self) -> None:
        self.ended.append("stop")
        self.stopped.set()
        self.going.set()

    def wait(self) -> int:
        self.ended.append("wait")
        return 0


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Worker]]:
    """Those that were begun, in order."""
    made: list[Worker] = []
    Worker.made, Worker.failing = made, staticmethod(lambda worker: None)
    monkeypatch.setattr(module, "WorkerProcess", Worker)
    yield made
    for worker in made:  # no thread is left waiting, however a test ends
        worker.stop()


def team_of(count: int, threads: int | None = None) -> Team:
    encoder: Any = SimpleNamespace(model=torch.nn.Dropout(), recipe="recipe")
    return Team(encoder, [CPU] * count, threads)


def batches(count: int) -> Any:
    def packed(number: int) -> Packed:
        one = np.ones(1, dtype=np.int64)
        return Packed(one * (250_000 + number), one, 0 * one)

    return SimpleNamespace(batches=[[number] for number in range(count)], packed=packed)


def settled(future: Future[Any]) -> BaseException | None:
    """How it ended, if it has."""
    assert future.done()
    return None if future.cancelled() else future.exception()


def fail(does: str, error: BaseException, place: str = "worker") -> None:
    def failing(worker: Worker) -> None:
        if worker.does == does and worker.place.startswith(place):
            raise error

    Worker.failing = staticmethod(failing)


def test_each_is_told_how_to_compute(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    with use_backend("torch"):
        for count, threads, each in ((2, None, 2), (6, None, 1), (2, 7, 7)):
            team_of(count, threads).close()
            assert [worker.greeting.threads for worker in workers[-count:]] == [each] * count
    one, two = (worker.greeting for worker in workers[:2])
    assert workers[1].place == "worker 2 of 2 (device cpu)"
    for told in (one, two):
        assert (told.device, told.backend, told.precisions) == ("cpu", "torch", precisions())


def test_so_many_lots_of_texts_that_each_has_two_batches() -> None:
    team = object.__new__(Team)
    found = []
    for team.size in (1, 2, 3, 4, 5):
        found.append(team.ahead)
    assert found == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("fails", [True, False])
def test_one_that_cannot_be_begun_leaves_none(
    fails: bool, workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Any] = []
    plain = module.Sent.close
    monkeypatch.setattr(module.Sent, "close", lambda sent: (closed.append(sent), plain(sent)))
    if fails:
        fail("begin", OSError("no processes are left"), "worker 2")
        with pytest.raises(OSError, match="no processes are left"):
            team_of(3)
        assert [worker.ended for worker in workers] == [["stop", "wait"]]
    else:
        team_of(3).close()
    assert len(closed) == 1  # its memory is the workers' alone


def test_a_team_that_is_closed_takes_nothing(workers: list[Worker]) -> None:
    team = team_of(2)
    team.close()
    with pytest.raises(InputError, match=r"this pool is closed; encoder\.pool"):
        team(batches(1))
    assert not any(thread.is_alive() for thread in team.threads)
    assert all(worker.ended[0] == "stop" and "wait" in worker.ended for worker in workers)


def test_who_waits_for_work_hears_that_there_will_be_none(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 60.0)
    team, waiting = team_of(1), threading.Event()
    wait: Any = team.change.wait
    team.change.wait = lambda: (waiting.set(), wait())[1]  # type: ignore[method-assign]
    workers[0].going.set()
    waiting.wait()
    team.close()
    assert not team.threads[0].is_alive()


@pytest.mark.parametrize("ours", [True, False])
def test_who_closes_it_again_waits_until_it_is_closed(ours: bool, workers: list[Worker]) -> None:
    """But for its own threads, for one of which the first may be waiting."""
    team = team_of(1)
    team.close()
    assert team._stopped.is_set()
    waited: list[int] = []
    team._stopped = SimpleNamespace(wait=lambda: waited.append(1))  # type: ignore[assignment]
    team.threads += [threading.current_thread()] * ours
    team.close(InputError("later"))
    assert bool(waited) != ours
    assert team.broken is None


def test_what_is_under_way_is_answered_by_why_it_was_closed(workers: list[Worker]) -> None:
    """What nobody was given yet, what one has at hand, and who waits for a model."""
    team = team_of(2)
    workers[0].going.set()
    workers[0].ready.result()
    answers = team(batches(9))
    workers[0].asked.wait()  # has some at hand
    assert workers[0].at_hand
    answers._futures[-1].cancel()
    reason = InputError("enough")
    team.close(reason)
    assert {settled(future) for future in answers._futures} == {reason, None}
    assert [settled(worker.ready) for worker in workers] == [None, reason]
    with pytest.raises(InputError, match="enough"):
        team(batches(1))
    later = team_of(1)
    answers = later(batches(1))
    later.close()
    with pytest.raises(InputError, match="the pool was closed before this was done"):
        next(iter(answers))


@pytest.mark.parametrize(
    ("error", "kind", "story"),
    [
        (InputError("no such card"), InputError, "no such card"),
        (ValueError("no such dtype"), ValueError, "no such dtype"),
        (EOFError(), WorkerError, r"worker 2 of 2 \(device cpu\) died: exit code 0"),
        (BrokenPipeError(), WorkerError, "worker 2 of 2 .* died: exit code 0"),
    ],
    ids=repr,
)
def test_who_waits_for_the_model_is_told_why_one_has_none(
    error: Exception, kind: type[Exception], story: str, workers: list[Worker]
) -> None:
    fail("greet", error, "worker 2")
    team = team_of(2)
    for act in (team.ready, lambda: team(batches(1))):
        with pytest.raises(kind, match=story):
            act()
    for thread in team.threads:
        thread.join()
    assert all(worker.stopped.is_set() for worker in workers)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("error", "story"),
    [
        (EOFError(), "worker 1 of 1 .* died: exit code 0;.* the others were stopped"),
        (ValueError("I/O operation on closed file"), "worker 1 of 1 .* died"),
        (KeyError("no message"), r"worker 1 of 1 \(device cpu\): KeyError\('no message'\)"),
    ],
    ids=repr,
)
def test_an_answer_that_does_not_come(error: Exception, story: str, workers: list[Worker]) -> None:
    fail("receive", error)
    team = team_of(1)
    workers[0].going.set()
    answers = team(batches(1))
    team.threads[0].join()
    assert team.closed
    with pytest.raises(WorkerError, match=story):
        next(iter(answers))


def test_two_at_hand_and_no_more(workers: list[Worker]) -> None:
    team = team_of(1)
    workers[0].going.set()
    workers[0].ready.result()
    answers = team(batches(5))
    workers[0].asked.wait()
    assert workers[0].told == [0, 1]  # the longest first
    workers[0].going.set()
    assert sorted((number, values.item()) for number, values in answers) == [
        (number, number) for number in range(5)
    ]
    assert workers[0].told == [0, 1, 2, 3, 4]
    for number, ids in enumerate(workers[0].ids):
        assert (ids.tolist(), ids.itemsize) == ([250_000 + number], 4)  # of a large vocabulary
    team.close()


def test_the_last_ones_go_to_who_is_free(workers: list[Worker]) -> None:
    team = team_of(2)
    workers[0].going.set()
    workers[0].ready.result()
    team(batches(2))
    workers[0].asked.wait()
    assert workers[0].told == [0]
    workers[1].going.set()
    workers[1].ready.result()
    workers[1].asked.wait()
    assert workers[1].told == [1]
    team.close()


def test_everyone_hears_of_work(workers: list[Worker]) -> None:
    team = team_of(2)
    for worker in workers:
        worker.going.set()
        worker.ready.result()
    heard: list[str] = []
    team.change.notify_all = lambda plain=team.change.notify_all: (  # type: ignore[method-assign]
        heard.append("all"),
        plain(),
    )
    team(batches(4))
    assert heard == ["all"]
    team.close()


def test_what_was_given_up_is_not_sent(workers: list[Worker]) -> None:
    team = team_of(1)
    answers = team(batches(3))
    answers.close()
    assert all(future.cancelled() for future in answers._futures)
    more = team(batches(1))
    workers[0].going.set()
    workers[0].ready.result()
    workers[0].asked.wait()
    assert workers[0].told == [0]
    workers[0].going.set()
    assert [number for number, _ in more] == [0]
    team.close()
