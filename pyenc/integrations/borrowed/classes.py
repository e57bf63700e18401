"""A class of ours in the place of an object's own: the same object, under the same class name.

As torch does it (`torch.nn.utils.parametrize`, FSDP): the object gets a subclass of its class, and
gets its class back. Nothing of it moves, so that names in a `state_dict`, references that others
hold, and hooks stay what they were. The subclass carries the name and module of the class that it
stands for, since sentence-transformers writes them into `modules.json`; it is pickled as what it is
made of, so that a spawned worker has the same.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
from types import FunctionType
from typing import Any

_NEWOBJ: Any = copyreg.__newobj__  # type: ignore[attr-defined]
"""How objects are made anew that say nothing else of it."""

_made: dict[tuple[type, type], type] = {}


class Standing:
    """Base of what stands for a class; its methods come before that class's.

    Their class comes first among the bases of the subclass (Python gives an object only a class
    that is laid out alike), so methods are put into the subclass itself, and reach what they stand
    for through `own`.
    """

    __slots__ = ()

    def own(self) -> Any:
        """The object as its own class has it."""
        return super(_subclass(type(self)), self)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as what its class is made of, by those too that do not ask metaclasses."""
        kinds: Any = stands_for(type(self))
        made = kinds[1].__reduce_ex__(self, protocol)
        if made[0] is not _NEWOBJ or made[1] != (type(self),):
            return made
        if type(self) is not _subclass(type(self)):
            return made
        return (_rebuilt, kinds, *made[2:])


def put(thing: object, ours: type[Standing]) -> None:
    """Make it one of ours, as well as what it is."""
    thing.__class__ = standing(ours, type(thing))


def take_away(thing: object) -> None:
    """Give it its own class back, if it has one of ours."""
    if isinstance(thing, Standing):
        thing.__class__ = stands_for(type(thing))[1]


def as_own(thing: Any) -> Any:
    """The object as its own class has it, whether another stands in its place or not."""
    return thing.own() if isinstance(thing, Standing) else thing


def own_arguments(thing: object) -> tuple[str, ...]:
    """The names of what its own class's `forward` takes."""
    return tuple(inspect.signature(as_own(thing).forward).parameters)


def standing(ours: type[Standing], theirs: type) -> type:
    """The class that stands for `theirs`."""
    if (ours, theirs) not in _made:
        body = {key: getattr(theirs, key) for key in ("__module__", "__qualname__", "__doc__")}
        for base in (Standing, ours):
            body |= {k: v for k, v in vars(base).items() if isinstance(v, FunctionType)}
        if "forward" in body:
            body["forward"] = _signed(body["forward"], theirs)
        _made[ours, theirs] = _kind_of(type(theirs))(theirs.__name__, (theirs, ours), body)
    return _made[ours, theirs]


def _signed(forward: FunctionType, theirs: Any) -> FunctionType:
    """A copy that says it takes what theirs does: generation, trainers and tracing ask."""
    copied = FunctionType(
        forward.__code__, forward.__globals__, forward.__name__, forward.__defaults__,
        forward.__closure__,
    )  # fmt: skip
    copied.__kwdefaults__, copied.__doc__ = forward.__kwdefaults__, forward.__doc__
    copied.__signature__ = inspect.signature(theirs.forward)  # type: ignore[attr-defined]
    return copied


def _rebuilt(ours: type[Standing], theirs: type) -> Any:
    made: Any = standing(ours, theirs)
    return made.__new__(made)


@functools.cache
def _kind_of(kind: type) -> type:
    """The metaclass of a subclass: pickle looks for other classes under their names."""
    own = type(kind.__name__, (kind,), {})
    copyreg.pickle(own, _reduce)  # type: ignore[arg-type]
    return own


def _reduce(made: type) -> tuple[Any, ...]:
    return standing, stands_for(made)


def stands_for(made: type) -> tuple[type[Standing], type]:
    """(ours, theirs) of a class that `standing` gave, or of a subclass of one."""
    subclass = _subclass(made)
    return next(pair for pair, each in _made.items() if each is subclass)  # type: ignore[return-value]


def _subclass(made: type) -> type:
    known = set(_made.values())
    return next(each for each in made.__mro__ if each in known)
