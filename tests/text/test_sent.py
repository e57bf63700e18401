"""What goes to other processes arrives there: a model with its tensors, messages, errors."""

from __future__ import annotations

import functools
import gc
import io
import os
import sys
import threading
import traceback
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import pyenc
from pyenc.errors import InputError
from pyenc.ops.backend import requested_backend
from pyenc.ops.precision import precisions
from pyenc.text import worker
from pyenc.text.sent import Sent, received


def arrived(sent: Sent) -> Any:
    return received(sent.head, None if sent.file is None else os.dup(sent.file), sent.body)


@pytest.fixture(params=[True, False], ids=["file", "pipe"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a file in memory, or through the pipe where there is no such file."""
    if not request.param:
        monkeypatch.delattr(os, "memfd_create", raising=False)


@pytest.mark.usefixtures("_way")
def test_what_is_sent_arrives() -> None:
    tied = torch.nn.Parameter(torch.randn(3, 5))
    thing = {
        "a": tied, "half": torch.randn(4, 2).half(), "empty": torch.empty(0, 3),
        "long": torch.arange(5), "bf": torch.randn(7).bfloat16()[1::2], "words": "kept",
        "byte": torch.ones((), dtype=torch.uint8), "double": torch.randn(3).double(),
        "b": [tied],
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sent = Sent(thing)
        assert (sent.file is not None) == hasattr(os, "memfd_create")
        got = arrived(sent)
        sent.close()
    assert (sent.file, sent.body) == (None, b"")
    assert got["a"] is got["b"][0]
    assert isinstance(got["a"], torch.nn.Parameter)
    assert not got["a"].requires_grad
    assert got["words"] == "kept"
    for name in ("a", "half", "empty", "long", "bf", "byte", "double"):
        assert got[name].dtype == thing[name].dtype  # type: ignore[attr-defined]
        assert torch.equal(got[name], thing[name])  # type: ignore[arg-type]
        assert (got[name].data_ptr() - got["a"].data_ptr()) % 64 == 0 or name == "empty"


class Another:
    """Is not what is found by its name."""


Another.__qualname__ = "OfTwo"


@pytest.mark.parametrize("thing", [lambda: 1, (lambda: lambda: 1)(), threading.Lock(), Another()])
def test_what_cannot_be_pickled_is_said(thing: Any) -> None:
    with pytest.raises(InputError, match="cannot be sent to another process: "):
        Sent({"a": thing})


@pytest.mark.usefixtures("_way")
def test_what_one_does_to_its_weights_no_other_sees() -> None:
    sent = Sent(torch.ones(3, 5))
    one, other = arrived(sent), arrived(sent)
    one.zero_()
    assert other.sum() == arrived(sent).sum() == 15
    sent.close()
    assert other.sum() == 15


@pytest.mark.usefixtures("_way")
def test_what_has_no_values_is_sent_too() -> None:
    sent = Sent({"words": "kept", "empty": torch.empty(0, 3)})
    got = arrived(sent)
    sent.close()
    assert (got["words"], got["empty"].shape) == ("kept", (0, 3))


def test_no_file_stays_open() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    gc.collect()
    before = sorted(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        sent = Sent(torch.ones(3, 5))
        got = arrived(sent)
        sent.close()
    assert got.sum() == 15
    del got
    gc.collect()
    assert sorted(Path("/proc/self/fd").iterdir()) == before


class Elsewhere:
    """Of no module that another process could import."""


Elsewhere.__module__ = "__main__"


def of_the_program(x: int) -> int:
    return x


of_the_program.__module__ = "__main__"


@pytest.mark.parametrize("program", ["__main__", "__mp_main__"])
@pytest.mark.parametrize("kind", ["class", "object", "function", "partial"])
def test_what_the_program_itself_defines_is_named(
    kind: str, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pickling finds it here, and nobody finds it there."""
    main = sys.modules["__main__"]
    monkeypatch.setitem(sys.modules, program, main)
    for each in (Elsewhere, of_the_program):
        monkeypatch.setattr(each, "__module__", program)
        monkeypatch.setattr(main, each.__name__, each, raising=False)
    thing = {
        "class": Elsewhere, "object": Elsewhere(), "function": of_the_program,
        "partial": functools.partial(of_the_program, 1),
    }[kind]  # fmt: skip
    with pytest.raises(InputError, match=r"(Elsewhere|of_the_program) is defined in the program"):
        Sent({"a": [thing]})


@pytest.mark.parametrize("gone", ["module", "class"])
def test_what_is_not_found_there_is_named(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("pyenc_not_to_be_found")
    made = type("Made", (), {"__module__": module.__name__})
    module.Made = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    sent = Sent(made())
    if gone == "module":
        monkeypatch.delitem(sys.modules, module.__name__)
    else:
        del module.Made
    with pytest.raises(InputError, match=r"cannot be sent to another process, .*not_to_be_found"):
        arrived(sent)
    sent.close()


def test_a_message_that_was_cut_off_is_none() -> None:
    """As of a process that ends while it writes."""
    pipe = io.BytesIO()
    worker.write(pipe, (3, [1, 2]))
    whole = pipe.getvalue()
    twice = io.BytesIO(whole * 2)
    assert [worker.read(twice) for _ in range(2)] == [(3, [1, 2])] * 2
    for size in range(len(whole)):
        with pytest.raises(EOFError):
            worker.read(io.BytesIO(whole[:size]))


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("it has a lock")


class OfTwo(Exception):
    """Is pickled, but not made again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InputError("no."), InputError),
        (Unpicklable("no."), RuntimeError),
        (OfTwo("no", "."), RuntimeError),
    ],
)
def test_any_error_arrives_with_its_story(error: Exception, kind: type[Exception]) -> None:
    def failing() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        failing()
    pipe = io.BytesIO()
    worker.write(pipe, worker._sendable(caught.value))
    got = worker.read(io.BytesIO(pipe.getvalue()))
    assert type(got) is kind
    story = "".join(traceback.format_exception(got))
    assert "in failing" in story
    assert f"{type(error).__name__}: no." in story


def test_a_worker_computes_as_who_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its backend, in as many threads as it is told, in what torch may make products in."""
    sent = Sent((torch.nn.Dropout().train(), "recipe"))
    threads, asked = [], []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(worker, "set_precisions", asked.append)
    for backend in ("torch", "auto"):
        file = None if sent.file is None else os.dup(sent.file)
        greeting = worker.Greeting("cpu", 3, backend, precisions(), sent.head, file, sent.body)
        with pyenc.ops.use_backend("reference"):
            model, recipe = worker._settle(greeting)
            assert requested_backend(None) == ("torch" if backend == "torch" else "reference")
        assert (model.training, recipe) == (False, "recipe")
    assert (threads, asked) == ([3] * 2, [precisions()] * 2)
    sent.close()
