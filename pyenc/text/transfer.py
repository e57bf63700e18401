"""To a GPU and back without making it wait: what is sent lies in pinned memory, in one piece, and a
batch's vectors are waited for when the next batch has been given to the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def sent(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Integers (n,) each, on the device as int64 (n,) each; parts of one tensor."""
    # Each begins at a multiple of 16 entries: kernels are compiled for how a pointer is aligned.
    firsts = np.cumsum([0] + [-(-len(each) // 16) * 16 for each in arrays])
    joined = np.zeros(firsts[-1], dtype=np.int64)
    for first, each in zip(firsts, arrays, strict=False):
        joined[first : first + len(each)] = each
    whole = torch.from_numpy(joined)
    if device.type == "cuda":
        # Pinned memory is given back when the copy has been made, which its allocator sees to.
        whole = whole.pin_memory().to(device, non_blocking=True)
    else:
        whole = whole.to(device)
    return [whole[first : first + len(each)] for first, each in zip(firsts, arrays, strict=False)]


def landed(
    results: Iterable[tuple[int, Tensor]], place: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Numbers of batches and their values, in the order they come, on `place`.

    Values on a GPU that are wanted on the host leave it while the next batch is begun: each is
    handed out one batch late, the last at the end.
    """
    waiting: tuple[int, Callable[[], Tensor]] | None = None
    for number, values in results:
        if not values.is_cuda or place.type != "cpu":
            yield number, values.to(place)
            continue
        begun = leaving(values)
        if waiting is not None:
            yield waiting[0], waiting[1]()
        waiting = number, begun
    if waiting is not None:
        yield waiting[0], waiting[1]()


def leaving(values: Tensor) -> Callable[[], Tensor]:
    """Begin a copy of a GPU's values to the host; what is returned waits for it and gives it."""
    host = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
    host.copy_(values, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(values.device))

    def wait() -> Tensor:
        done.synchronize()
        return host

    return wait
