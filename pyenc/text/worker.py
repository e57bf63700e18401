"""A process that runs batches for another one: what it is told, over its pipes, and nothing else.

It is a fresh interpreter, not a fork, and does not import the program that started it: a script
needs no `if __name__ == "__main__"`. It ignores Ctrl-C, which is the other's to answer, and ends
when its pipe does, however the other ended.
"""

from __future__ import annotations

import os
import pickle
import queue
import struct
import threading
import traceback
from dataclasses import dataclass
from typing import IO, Any

import torch

from ..ops import use_backend
from ..ops.precision import set_precisions
from .packed import run_packed
from .sent import received

LENGTH = struct.Struct("<Q")

BOOTSTRAP = """\
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
out = os.dup(1)
os.dup2(2, 1)
sys.path[:] = {path!r}
from pyenc.text.worker import main
main(out)
"""
"""What the interpreter runs: whatever is printed goes to standard error, the pipe is ours."""


@dataclass(frozen=True)
class Greeting:
    """The first that a worker is told."""

    device: str
    threads: int
    backend: str
    """What `use_backend` and PYENC_BACKEND asked for."""
    precisions: tuple[str, ...]
    """What torch may make products of float32 in."""
    head: bytes
    file: int | None
    body: bytes


def write(pipe: IO[bytes], message: Any) -> None:
    """Send: pickled once."""
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(LENGTH.pack(len(content)))
    pipe.write(content)
    pipe.flush()


def read(pipe: IO[bytes]) -> Any:
    """Receive.

    Raises:
        EOFError: the other end is gone.
    """
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    (length,) = LENGTH.unpack(head)
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError
    return pickle.loads(content)


def main(out: int) -> None:
    """Serve until the pipe ends."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(out, "wb")
    greeting: Greeting = read(incoming)
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Read on while a batch runs: the other end never waits for us to take what it sends, and an
    # end of the pipe ends us at once.
    threading.Thread(target=_listen, args=(incoming, told), daemon=True).start()
    try:
        model, recipe = _settle(greeting)
    except Exception as error:
        write(outgoing, (None, _sendable(error)))
        os._exit(1)  # not by way of the thread that is reading
    write(outgoing, (None, None))
    while True:
        number, batch, output, finish = told.get()
        try:
            answer: Any = run_packed(model, recipe, batch, output, finish).cpu().numpy()
        except Exception as error:
            answer = _sendable(error)
        try:
            write(outgoing, (number, answer))
        except BrokenPipeError:
            os._exit(0)


def _settle(greeting: Greeting) -> Any:
    torch.set_num_threads(greeting.threads)
    set_precisions(greeting.precisions)
    if greeting.backend != "auto":
        use_backend(greeting.backend)
    model, recipe = received(greeting.head, greeting.file, greeting.body)
    return model.to(greeting.device).eval(), recipe


def _listen(incoming: IO[bytes], told: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            told.put(read(incoming))
    except BaseException:
        os._exit(0)


def _sendable(error: Exception) -> Exception:
    """An error that arrives: of its class if it can be pickled, with where it arose beneath."""
    story = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"in the process that raised it:\n{story.rstrip()}")
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(story)
