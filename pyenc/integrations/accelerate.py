"""`pyenc.accelerate`: a loaded model goes on under its own API, its tokens packed."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

Model = TypeVar("Model")


def accelerate(model: Model) -> Model:
    """Run the encoder of a model of sentence-transformers, or of transformers, on pyenc; all else
    of it stays as it is.

    The model that is given is changed and returned. Nothing is held twice: the encoder computes
    with the very parameters that the model has, and what is done to them later (an optimizer,
    `load_state_dict`, `.to`, `.half`) counts. `model.restore()` undoes it. A copy of the model is
    accelerated as well; to accelerate it twice is to accelerate it once.

    A model of sentence-transformers goes on tokenizing, pooling, ranking, saving and training by
    its own code (`pyenc.integrations.sentence_transformers.accelerate` has the whole account).

    A model of transformers (`BertModel`, `XLMRobertaForSequenceClassification`, ...) goes on being
    called as it was, `model(input_ids, attention_mask)` and so in pipelines, trainers and other
    libraries; `generate` is its own code. Its `last_hidden_state` is exact zeros where there is
    padding, and what a head makes of padding is made of those; a pooler and a head are its own
    code. A loss of labels of padding is its own code's; a head that reads states of padding, or is
    nothing but zeros, is refused.

    What is run by the model's own code as before: dropout in training, embeddings or positions of
    one's own, masks that are no zeros and ones, a cache, `output_hidden_states` and attentions,
    torch.compile, batches too small to gain, and, with one warning, a model with hooks on its
    layers or other modules than its config says.

    Args:
        model: a `SentenceTransformer`, `CrossEncoder`, `SparseEncoder` or `MultiVectorEncoder` of
            sentence-transformers 6.x, or a `PreTrainedModel` of transformers, of one of the
            families that `pyenc models` lists.

    Returns:
        The same object. Where it cannot be accelerated it is left as it was, with one
        `AccelerationWarning` that says why.

    Raises:
        InputTypeError: it is none of these.
        MissingPackageError: sentence-transformers is not installed, and the model is none of
            transformers.
    """
    if is_of_transformers(model):
        from .borrowed.whole import accelerate_whole

        return accelerate_whole(model)  # type: ignore[no-any-return]
    from .sentence_transformers import accelerate as accelerate_theirs

    theirs: Any = model
    return accelerate_theirs(theirs)  # type: ignore[no-any-return]


def is_of_transformers(model: object) -> bool:
    """Whether it is a model of transformers, which is not imported to tell: who made one has it."""
    transformers = sys.modules.get("transformers")
    kind = getattr(transformers, "PreTrainedModel", None)
    return kind is not None and isinstance(model, kind)
