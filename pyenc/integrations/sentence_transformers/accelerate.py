"""`pyenc.accelerate`: a loaded model of sentence-transformers goes on under its own API, its tokens
packed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import InputTypeError
from ...ops.extension import tell_missing
from ..borrowed.classes import Standing, put, take_away
from ..borrowed.on_parameters import Borrowed
from ..borrowed.refusals import Refused, warn
from ..borrowed.slot import is_traced, restore
from ..borrowed.whole import set_aside
from ..missing import needs
from .behind import check_behind
from .modules import FirstSlot, PackedPooling, PackedTransformer, as_it_is
from .refusals import check_first, check_version, has_head
from .splade import PackedSplade, encoding

if TYPE_CHECKING:
    from sentence_transformers.base.model import BaseModel

TESTED = {"sentence-transformers": ("6.0.0", "6.1.0", "6.2.0"), "transformers": ("5.24.0",)}
"""Versions that the tests were run with."""

TAKEN = ("SentenceTransformer", "CrossEncoder", "SparseEncoder", "MultiVectorEncoder")
"""Classes of sentence-transformers; the last is not in every version."""

Model = TypeVar("Model", bound="BaseModel")


class AcceleratedModel(Standing):
    """Stands for a model of sentence-transformers: it can be restored."""

    __slots__ = ()

    def forward(self, input: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """As of the model, whatever modules stand behind the first one by now."""
        whole: Any = self
        # What is traced is its own code in any case.
        if not is_traced():
            first = whole[0] if len(whole) else None
            if isinstance(first, PackedTransformer) and (why := first._pyenc.behind.fault(whole)):
                first._pyenc.tell(why)
                with as_it_is(first):
                    return self.own().forward(input, **kwargs)  # type: ignore[no-any-return]
        return self.own().forward(input, **kwargs)  # type: ignore[no-any-return]

    def restore(self) -> BaseModel:
        """Undo `pyenc.accelerate`: every object is of its own class again, and all are the same
        objects that they were.

        Returns:
            The model itself.
        """
        whole: Any = self
        return restore(whole)  # type: ignore[no-any-return]


class AcceleratedSparse(AcceleratedModel):
    """Stands for `SparseEncoder` itself: a subclass may look at the logits in its `encode`."""

    __slots__ = ()

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """As of `SparseEncoder`."""
        with encoding(self):
            return self.own().encode(*args, **kwargs)

    def _inference(self, *args: Any, **kwargs: Any) -> Any:
        """As of `SparseEncoder`, whose worker processes call it for their part of `encode`."""
        with encoding(self):
            return self.own()._inference(*args, **kwargs)


def accelerate(model: Model) -> Model:
    """Run the encoder of a model of sentence-transformers on pyenc; all else of it stays as it is.

    The model that is given is changed and returned. It goes on tokenizing, pooling, normalising,
    ranking, saving and training by its own code under its own API; what its first module makes of
    a padded batch is computed packed, without the padding, on the very parameters that it has:
    nothing is held twice, and what is done to them later (an optimizer, `load_state_dict`, `.to`,
    `.half`) counts. A mean is taken over the packed states. The head of a `CrossEncoder` (a
    classifier, with its pooler, or that of a language model) or of a `SparseEncoder` (a masked
    LM's) is its own code, on states that are computed so; the greatest logits, which
    `SpladePooling` keeps in `encode`, are taken of packed ones. `model.restore()` undoes it;
    `restore(model)` of this module takes a model that was left as it was, too.

    A copy of the model, and its copies in spawned workers, are accelerated as well. To accelerate
    it twice is to accelerate it once.

    What is run by the model's own code as before: modules that drop something (so that a seeded run
    draws what it always drew; in `eval` too, where some are kept in training), training with
    gradient checkpointing of some layers alone, with offloading or reentrant,
    `output_hidden_states`, features that are not plain token ids, torch.compile, a head that would
    read states of padding of these very rows (the first of those padded on the left, the last of
    those padded on the right, one that is looked for by ids which do not tell padding), and, with
    one warning, a model whose modules have hooks, or were given since what its config does not say:
    other modules, tables of other shapes, other numbers.

    Args:
        model: a `SentenceTransformer`, `CrossEncoder`, `SparseEncoder` or `MultiVectorEncoder` of
            sentence-transformers 6.x, with a `Transformer` of one of the families that `pyenc
            models` lists as its first module, a language model's too (Qwen3-Reranker).

    Returns:
        The same object. Where it cannot be accelerated it is left as it was, with one
        `AccelerationWarning` that says why.

    Raises:
        InputTypeError: it is none of these.
        MissingPackageError: sentence-transformers is not installed.
    """
    with needs("sentence_transformers", "sentence-transformers"):
        import sentence_transformers
    kinds = [n for n in TAKEN if isinstance(model, getattr(sentence_transformers, n, ()))]
    if not kinds:
        usual, *others = TAKEN
        raise InputTypeError(
            f"accelerate takes a {usual}, got {type(model).__module__}.{type(model).__qualname__}; "
            f"it takes {', '.join(others)} and models of transformers as well"
        )
    modules: Any = model
    if isinstance(model, AcceleratedModel):
        if len(modules) and isinstance(modules[0], PackedTransformer):
            return model
        restore(model)  # its first module was exchanged since
    try:
        check_version(sentence_transformers.__version__)
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling
        from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

        if not len(modules):
            raise Refused("it has no modules")
        first: Any = modules[0]
        if not isinstance(first, PackedTransformer):  # or another accelerated model's as well
            check_first(first, (Transformer, MLMTransformer))
        with set_aside(modules):
            borrowed = Borrowed(first.model, has_head=has_head(first))
            try:
                check_behind(modules)
            except Refused:
                if not isinstance(first, PackedTransformer):
                    take_away(borrowed.model)  # which has stood under a head
                raise
    except Refused as reason:
        warn(f"pyenc.accelerate leaves this {kinds[0]} as it is: {reason}")
        return model
    if borrowed.encoder.device.type == "cpu":
        tell_missing()
    first.__dict__["_pyenc"] = FirstSlot(borrowed)
    if not isinstance(first, PackedTransformer):
        put(first, PackedTransformer)
    second = modules[1] if len(modules) > 1 else None
    if type(second) is Pooling:
        put(second, PackedPooling)
    elif type(second) is SpladePooling:
        put(second, PackedSplade)
    plain = type(model) is getattr(sentence_transformers, "SparseEncoder", None)
    put(model, AcceleratedSparse if plain else AcceleratedModel)
    return model
