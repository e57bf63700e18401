"""Run by test_fork.py: a process that computes on two threads, forks in every way, and tells."""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyenc
from pyenc import forking

GOLDEN = Path(__file__).parent / "golden" / "jina_geglu_h4"
TEXTS = ["a text of some words " * 20] * 8
SECONDS = 30


def load(backend: str) -> pyenc.TextEncoder:
    return pyenc.load(GOLDEN, device="cpu", backend=backend)


def train(encoder: pyenc.TextEncoder) -> float:
    ids = torch.arange(5, 105).repeat(8, 1)
    encoder.model(ids).square().sum().backward()
    gradient = encoder.model.embeddings.word.weight.grad
    assert gradient is not None
    return float(gradient.abs().sum())


class Works:
    """What a child may do; each returns what the test looks at."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.encoder = load(backend)
        self.right = self.encoder.encode(TEXTS)
        train(self.encoder)
        torch.randn(600, 600) @ torch.randn(600, 600)

    def encode(self, loading: bool = False) -> dict[str, Any]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if loading:
                self.encoder = load(self.backend)
            got = [self.encoder.encode(TEXTS) for _ in range(2)][-1]
        kinds = [each for each in caught if issubclass(each.category, pyenc.ForkWarning)]
        return {
            "off": float(np.abs(got - self.right).max()),
            "threads": torch.get_num_threads(),
            "warnings": [str(each.message) for each in kinds],
            "at": [Path(each.filename).name for each in kinds],
        }

    def backward(self) -> dict[str, Any]:
        return {"gradient": train(self.encoder)}

    def load(self) -> dict[str, Any]:
        return self.encode(loading=True)

    def raised(self) -> dict[str, Any]:
        torch.set_num_threads(2)
        torch.randn(600, 600) @ torch.randn(600, 600)
        return self.encode() | self.backward()

    def nested(self) -> dict[str, Any]:
        return {"outer": self.encode(), "inner": forked(self.encode)}

    def raised_nested(self) -> dict[str, Any]:
        return {"outer": self.raised(), "inner": forked(self.encode)}

    def in_a_thread(self) -> dict[str, Any]:
        return from_thread(self.encode)


def forked(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives in a child; "hang" or "error" where it gives nothing."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            answer = json.dumps(work())
        except BaseException:
            answer = json.dumps({"error": traceback.format_exc()})
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], SECONDS)
    answer = os.read(reading, 1 << 16).decode() if ready else ""
    if not answer:
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    os.waitpid(child, 0)
    result: dict[str, Any] = json.loads(answer) if answer else {"hang": True}
    return result


def from_thread(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: result.update(work()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    return result or {"hang": True}


def with_a_lock_held(works: Works) -> dict[str, Any]:
    """Another thread is inside one of pyenc's critical sections as this one forks."""
    forking.held = threading.Lock()  # type: ignore[attr-defined]
    forking.held.acquire()  # type: ignore[attr-defined]
    return forked(lambda: {"free": forking.held.acquire(timeout=5)})  # type: ignore[attr-defined]


def without_dismissal(works: Works, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """As with a runtime that cannot send its team home."""
    real, forking._runtimes = forking._runtimes, lambda: {"/nowhere/libgomp.so.1"}
    try:
        return forked(work)
    finally:
        forking._runtimes = real


WORKS: Works


def pool_work(_: int) -> dict[str, Any]:
    return WORKS.encode()


def by_multiprocessing() -> dict[str, Any]:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        result: dict[str, Any] = pool.apply_async(pool_work, (0,)).get(SECONDS)
    return result


class Data(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return WORKS.encode()


def by_data_loader() -> dict[str, Any]:
    loader = torch.utils.data.DataLoader(
        Data(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=SECONDS
    )
    result: dict[str, Any] = next(iter(loader))
    return result


def main(backend: str) -> None:
    global WORKS
    torch.set_num_threads(2)
    WORKS = works = Works(backend)
    results: dict[str, Any] = {}
    for name in ("encode", "backward", "load", "raised", "nested", "raised_nested", "in_a_thread"):
        results[name] = forked(getattr(works, name))
        works.encoder.encode(TEXTS)  # the parent has a team again
    results["from_a_thread"] = from_thread(
        lambda: (works.encode(), forked(lambda: works.encode() | works.raised()))[1]
    )
    results["lock"] = with_a_lock_held(works)
    results["multiprocessing"] = by_multiprocessing()
    works.encoder.encode(TEXTS)
    results["data_loader"] = by_data_loader()
    works.encoder.encode(TEXTS)
    results["clamped"] = without_dismissal(works, works.encode)
    works.encoder.encode(TEXTS)
    results["clamped_raised"] = without_dismissal(
        works, lambda: (torch.set_num_threads(2), works.encode())[1]
    )
    torch.set_num_threads(1)
    results["one_thread"] = forked(works.encode)
    torch.set_num_threads(2)
    results["parent"] = works.encode()
    print(json.dumps(results))


if __name__ == "__main__":
    start = time.perf_counter()
    main(sys.argv[1])
    print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr)
