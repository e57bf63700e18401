"""Several processes: the vectors of one, and nothing left behind however it ends."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyenc
from pyenc.errors import InputError, InputTypeError, WorkerError
from pyenc.text.encoding import Prepared
from pyenc.text.worker_process import how_ended
from tests.conftest import GOLDEN
from tests.text.texts import TEXTS

ROOT = Path(__file__).resolve().parents[2]
MANY = [f"{text} {i}" for i, text in enumerate(TEXTS * 9)]
SMALL = {"batch_tokens": 60}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="looks at processes")


@pytest.fixture(scope="module")
def pool() -> Iterator[pyenc.EncoderPool]:
    with pyenc.load(GOLDEN / "bert_mean_h4").pool(["cpu", "cpu"]) as pool:
        yield pool


def processes(pool: pyenc.EncoderPool) -> list[int]:
    return [worker._process.pid for worker in pool._team.workers]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_same_vectors_in_the_same_order(
    bert: pyenc.TextEncoder, pool: pyenc.EncoderPool
) -> None:
    right = bert.encode(MANY, **SMALL)
    for budget in (1, 60, 10_000):
        got = pool.encode(MANY, batch_tokens=budget)
        np.testing.assert_allclose(got, right, rtol=0, atol=1e-5)
    assert (pool.encode("one") == pool.encode(["one"])[0]).all()
    assert pool.encode([]).shape == (0, 64)
    got = pool.encode(MANY, precision="ubinary", truncate_dim=20)
    assert got.shape == (len(MANY), 3)
    tensor = pool.encode(MANY, convert_to_tensor=True, **SMALL)
    assert isinstance(tensor, torch.Tensor)
    assert np.abs(tensor.numpy() - right).max() <= 1e-5
    for ours, theirs in zip(
        pool.encode(MANY, output="tokens", **SMALL),
        bert.encode(MANY, output="tokens", **SMALL),
        strict=True,
    ):
        np.testing.assert_allclose(ours.vectors, theirs.vectors, rtol=0, atol=1e-5)
        assert (ours.spans == theirs.spans).all()
    pairs = [["say so: ", text] for text in MANY]
    np.testing.assert_allclose(
        pool.encode(pairs, **SMALL), bert.encode(pairs, **SMALL), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("error", [MemoryError("no room"), ValueError("no shape")])
def test_a_batch_that_cannot_be_made(
    error: Exception, pool: pyenc.EncoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is an error of its own, not a wait without end, and no worker's death."""
    packed = Prepared.packed

    def fails(prepared: Prepared, number: int) -> Any:
        if number == 3:
            raise error
        return packed(prepared, number)

    with monkeypatch.context() as patched:
        patched.setattr(Prepared, "packed", fails)
        with pytest.raises(type(error), match=r"no room|no shape"):
            pool.encode(MANY, **SMALL)
    assert pool.encode(MANY, **SMALL).shape == (len(MANY), 64)


def test_streams_and_threads_share_it(bert: pyenc.TextEncoder, pool: pyenc.EncoderPool) -> None:
    right = bert.encode(MANY)
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: pool.encode(MANY, progress=False, **SMALL), range(8)))
    for each in made:
        np.testing.assert_allclose(each, right, rtol=0, atol=1e-5)
    got = []
    for vector in pool.encode_stream(iter(MANY), **SMALL):
        got.append(vector)
        if len(got) % 10 == 0:  # another call while the stream is on its way
            np.testing.assert_allclose(pool.encode_query(MANY[0]), right[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.stack(got), right, rtol=0, atol=1e-5)
    endless = pool.encode_stream(f"text {i}" for i in range(10**9))
    next(endless)
    endless.close()  # type: ignore[attr-defined]
    assert pool.encode("still there").shape == (64,)


def test_errors_are_those_of_one_process(pool: pyenc.EncoderPool) -> None:
    with pytest.raises(InputTypeError, match="text 1 is None"):
        pool.encode(["a", None])  # type: ignore[list-item]
    with pytest.warns(pyenc.TruncationWarning, match="1 of 2 texts exceed 8 tokens") as caught:
        pool.encode(["a", "b " * 30], max_length=8)
    assert caught[0].filename == __file__
    with pytest.raises(InputError, match="a pool has its devices"):
        pool.encode(["a"], devices=["cpu"])
    with pytest.raises(InputTypeError, match="cannot be pickled"):
        pickle.dumps(pool)
    assert "['cpu', 'cpu'], open" in repr(pool)


def test_threads_are_divided_and_weights_shared(pool: pyenc.EncoderPool) -> None:
    """What the workers have to say of themselves, by what the system says of them."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    for pid in processes(pool):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"OMP_NUM_THREADS=1" in environment
        assert "memfd:pyenc" in Path(f"/proc/{pid}/maps").read_text()


def test_a_worker_that_dies_is_named(bert: pyenc.TextEncoder) -> None:
    pool = bert.pool(["cpu", "cpu"])
    with pool:
        pids = processes(pool)
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"worker 2 of 2 \(device cpu\) died: .*SIGKILL"):
            list(pool.encode_stream(MANY * 1000, **SMALL))
        assert not any(map(alive, pids))
        with pytest.raises(WorkerError, match="worker 2 of 2"):
            pool.encode("a")
    with pytest.raises(WorkerError):
        next(pool.encode_stream(["a"]))


def test_how_a_process_ended() -> None:
    assert how_ended(3).startswith("exit code 3")
    assert how_ended(-signal.SIGSEGV) == "ended by signal SIGSEGV"
    assert "memory" in how_ended(-signal.SIGKILL)


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started it may ignore it
import pyenc
encoder = pyenc.load(sys.argv[1])  # no `if __name__ == "__main__"`: none is needed
stream = encoder.encode_stream((f"text {i}" for i in range(10**9)), devices=["cpu"])
try:
    for count, vector in enumerate(stream):
        if count == 0:
            print("begun", flush=True)
except KeyboardInterrupt:
    stream.close()
    print("stopped", flush=True)
"""


def test_ctrl_c_ends_all() -> None:
    begun = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(GOLDEN / "bert_mean_h4")],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert begun.stdout is not None
        assert begun.stdout.readline() == "begun\n"
        os.killpg(begun.pid, signal.SIGINT)
        out, err = begun.communicate(timeout=60)
        assert (begun.returncode, out, err) == (0, "stopped\n", "")
        with pytest.raises(ProcessLookupError):
            os.killpg(begun.pid, 0)  # nobody of the group is left
    finally:
        if begun.poll() is None:
            os.killpg(begun.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("cpu", "devices must be a list, such as"),
        (3, "devices must be a list"),
        ([], "devices is empty"),
        (["cpu", "gpu"], "device 'gpu' is not available"),
        (["cuda:99"], "device 'cuda:99' is not available: . CUDA cards are here"),
        (["meta"], "'meta' holds no values"),
        ([None], "a device is a name such as"),
    ],
)
def test_devices_that_are_refused(bert: pyenc.TextEncoder, devices: Any, message: str) -> None:
    for act in (bert.pool, lambda d: bert.encode(["a"], devices=d)):
        with pytest.raises(InputError, match=message):
            act(devices)
    with pytest.raises(InputError, match="threads must be at least 1"):
        bert.pool(["cpu"], threads=0)
