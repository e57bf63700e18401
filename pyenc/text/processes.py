"""`EncoderPool`: the verbs of a `TextEncoder`, by several processes, on several devices."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

import torch

from ..errors import InputError, InputTypeError
from ..loading import check_device
from .arguments import whole
from .encoding import Start
from .loaded import Loaded
from .team import Team
from .verbs import Verbs


class EncoderPool(Verbs):
    """Processes that encode together; made by `TextEncoder.pool`, which says more.

    Threads may share it: their batches are taken in turn. Whoever leaves its `with`, closes it or
    forgets it ends the processes, and so does the end of this one, even by a signal.

    Attributes:
        devices: of each process.
    """

    def __init__(self, encoder: Loaded, devices: Any = None, *, threads: int | None = None) -> None:
        self.devices = _checked_devices(devices)
        if threads is not None and (threads := whole("threads", threads)) < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        # Its settings as they are now, as its weights are.
        self._own = copy.copy(encoder)
        self._team = Team(encoder, self.devices, threads)
        self._end = weakref.finalize(self, self._team.close)

    def close(self) -> None:
        """End the processes; texts still under way are lost to whoever waits for them."""
        self._end()

    def __enter__(self) -> EncoderPool:
        try:
            self._team.ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._team.closed else "open"
        return f"EncoderPool({self._own!r}, {[str(d) for d in self.devices]}, {state})"

    def __reduce__(self) -> Any:
        raise InputTypeError("an EncoderPool cannot be pickled; its TextEncoder can")

    def _encoder(self) -> Loaded:
        return self._own

    def _starting(self, devices: Any) -> AbstractContextManager[Start]:
        if devices is not None:
            raise InputError("a pool has its devices; devices= is of a TextEncoder's own encode")
        return _open(self._team)


@contextmanager
def _open(team: Team) -> Iterator[Start]:
    yield team


def team_for(encoder: Loaded, devices: Any) -> AbstractContextManager[Start]:
    """Processes for one call: started when it is entered, ended when it is left."""
    return _for_one_call(encoder, _checked_devices(devices))


@contextmanager
def _for_one_call(encoder: Loaded, devices: list[torch.device]) -> Iterator[Start]:
    team = Team(encoder, devices)
    try:
        yield team
    finally:
        team.close()


def _checked_devices(devices: Any) -> list[torch.device]:
    """The devices, one of each process.

    Args:
        devices: a list of names or devices; None: every CUDA card.

    Raises:
        InputError: one is not there, or there is none.
        InputTypeError: no list.
    """
    if devices is None:
        count = torch.cuda.device_count()
        if not count:
            raise InputError(
                "there is no CUDA card here; devices=['cpu', 'cpu'] asks for two processes on the "
                "CPU"
            )
        return [torch.device("cuda", i) for i in range(count)]
    if isinstance(devices, (str, torch.device)) or not isinstance(devices, Sequence):
        raise InputTypeError(f"devices must be a list, such as ['cpu', 'cpu'], got {devices!r:.80}")
    if not devices:
        raise InputError("devices is empty; name one for each process")
    return [_checked(device) for device in devices]


def _checked(name: Any) -> torch.device:
    if not isinstance(name, (str, torch.device)):
        raise InputTypeError(f"a device is a name such as 'cuda:0', got {name!r:.80}")
    try:
        device = torch.device(name)
    except RuntimeError:
        return check_device(name)
    if device.type != "cuda":
        return check_device(device)
    # Not tried out: that would take hundreds of megabytes of each card for this process.
    if (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {str(name)!r} is not available: {torch.cuda.device_count()} CUDA cards are "
            "here"
        )
    return device
