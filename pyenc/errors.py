"""The errors of pyenc. Every message names what was wrong, where, and what would be right."""

from __future__ import annotations


class PyencError(Exception):
    """Base class: catching it catches everything that pyenc raises on purpose."""


class InputError(PyencError, ValueError):
    """An argument has the wrong value, shape or dtype."""


class InputTypeError(InputError, TypeError):
    """An argument has the wrong type, such as `None` among the texts."""


class InputAttributeError(InputError, AttributeError):
    """An attribute that does not exist was set, or one that is read-only."""


class BackendError(PyencError, RuntimeError):
    """A backend was asked for by name and cannot serve; the message says why."""


class WorkerError(PyencError, RuntimeError):
    """One of several processes that encode together died; names its device and how it ended."""


class CheckpointError(PyencError, ValueError):
    """A checkpoint is missing, damaged, unsafe or not what it says it is; names file and key."""


class UnknownArchitectureError(CheckpointError):
    """The tensors belong to no known family, or `config.json` contradicts them."""


class MissingPackageError(PyencError, ImportError):
    """A library that an integration stands on is not installed; names the extra that brings it."""
