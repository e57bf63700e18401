"""Processes that run batches, seen from the one that started them.

One thread a worker hands it batches from one queue, longest first as they come, and takes the
answers. A worker has the next batch at hand while it runs one, as long as there are enough for all.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, as_completed
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, WorkerError
from ..ops.backend import requested_backend
from ..ops.precision import precisions
from .encoding import Prepared
from .loaded import Loaded
from .packed import Packed
from .sent import Sent
from .stream import UNIT_BATCHES
from .worker import Greeting
from .worker_process import PATIENCE, WorkerProcess, how_ended

AT_HAND = 2
"""Batches that a worker is given at once."""


class Team:
    """The processes, started.

    Args:
        encoder: its model is sent as it is now.
        devices: one of each process.
        threads: of each; None: this process's, divided.
    """

    def __init__(
        self, encoder: Loaded, devices: Sequence[torch.device], threads: int | None = None
    ) -> None:
        self.size = len(devices)
        self.change = threading.Condition()
        self.tasks: deque[tuple[Future[Any], Prepared, int]] = deque()
        self.closed = False
        self.broken: Exception | None = None
        self.workers: list[WorkerProcess] = []
        self.threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        if threads is None:
            threads = max(1, torch.get_num_threads() // self.size)
        sent = Sent((encoder.model, encoder.recipe))
        try:
            for number, device in enumerate(devices):
                greeting = Greeting(
                    str(device), threads, requested_backend(None),
                    precisions(), sent.head, sent.file, sent.body,
                )  # fmt: skip
                place = f"worker {number + 1} of {self.size} (device {device})"
                self.workers.append(WorkerProcess(place, greeting))
            self.threads = [
                threading.Thread(target=_serve, args=(self, worker), name=worker.place, daemon=True)
                for worker in self.workers
            ]
            for thread in self.threads:
                thread.start()
        except BaseException:
            self.close()
            raise
        finally:
            sent.close()  # each has inherited it

    @property
    def ahead(self) -> int:
        """Lots of texts under way that keep everyone at work (`encoding.Start`)."""
        return -(-AT_HAND * self.size // UNIT_BATCHES)

    def ready(self) -> None:
        """Wait until every process has the model.

        Raises:
            WorkerError: one died; or what it raised instead.
        """
        for worker in self.workers:
            worker.ready.result()

    def __call__(self, prepared: Prepared) -> _Answers:
        """Set about its batches."""
        futures: list[Future[Any]] = [Future() for _ in prepared.batches]
        with self.change:
            if self.broken is not None:
                raise self.broken
            if self.closed:
                raise InputError("this pool is closed; encoder.pool(devices) makes another")
            self.tasks.extend((f, prepared, number) for number, f in enumerate(futures))
            self.change.notify_all()
        return _Answers(futures)

    def close(self, reason: Exception | None = None) -> None:
        """Stop every process; what is unanswered is answered by `reason`."""
        ours = threading.current_thread() in self.threads
        with self.change:
            first, self.closed = not self.closed, True
            if first:
                self.broken = reason
            self.change.notify_all()
        if not first:
            if not ours:  # one of ours may be what is waited for
                self._stopped.wait()
            return
        try:
            self._stop(reason or InputError("the pool was closed before this was done"))
        finally:
            self._stopped.set()

    def _stop(self, reason: Exception) -> None:
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            worker.wait()
        for thread in self.threads:  # each finds its pipe ended
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join(PATIENCE)
        unanswered = [future for future, _, _ in self.tasks]
        self.tasks.clear()
        for worker in self.workers:
            unanswered += [*worker.at_hand, worker.ready]
        for future in unanswered:
            _settle(future, reason)

    def died(self, worker: WorkerProcess) -> None:
        """One is gone: name it, and stop the others."""
        with self.change:
            if self.closed:
                return
        code = worker.wait()
        self.close(
            WorkerError(
                f"{worker.place} died: {how_ended(code)}; the others were stopped, and nothing of "
                "this call is kept"
            )
        )


class _Answers:
    """Numbers of batches and their values, as they come."""

    def __init__(self, futures: list[Future[Any]]) -> None:
        self._futures = futures

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        for future in as_completed(self._futures):
            number, values = future.result()
            yield number, torch.from_numpy(values)

    def close(self) -> None:
        """What has not been sent will not be."""
        for future in self._futures:
            future.cancel()


def _serve(team: Team, worker: WorkerProcess) -> None:
    """A worker's thread: hand it batches and take answers, until the team is closed."""
    try:
        try:
            worker.greet()
        except (OSError, EOFError):
            raise
        except Exception as error:  # which it raised over there
            team.close(error)
            return
        _settle(worker.ready, None)
        while _hand_over(team, worker):
            worker.receive()
    except (OSError, EOFError, ValueError):  # its pipe has ended
        team.died(worker)
    except BaseException as error:
        team.close(WorkerError(f"{worker.place}: {error!r}"))
        raise


def _hand_over(team: Team, worker: WorkerProcess) -> bool:
    """Give it what it may have at hand; waits while it has nothing. False: the team is closed."""
    while True:
        with team.change:
            while not team.closed and not worker.at_hand and not team.tasks:
                team.change.wait()
            if team.closed:
                return False
            room = len(worker.at_hand) < AT_HAND
            # The last ones go to who is free.
            if not team.tasks or not room or (worker.at_hand and len(team.tasks) < team.size):
                return True
            future, prepared, number = team.tasks.popleft()
            if not future.set_running_or_notify_cancel():
                continue
        try:
            batch = _slim(prepared.packed(number))
        except Exception as error:  # of this process, which may lack the memory: no worker's fault
            _settle(future, error)
            continue
        worker.send(future, batch, prepared, number)


def _slim(batch: Packed) -> Packed:
    """Ids in half the bytes."""
    return Packed(batch.ids.astype("int32"), batch.lengths, batch.skip)


def _settle(future: Future[Any], error: Exception | None) -> None:
    """Done, or failed; unless it was before."""
    with contextlib.suppress(InvalidStateError):
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
