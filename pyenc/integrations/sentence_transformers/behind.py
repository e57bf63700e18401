"""What stands behind the first module of a model, and whether it reads states of padding.

Those are zeros of an accelerated model, and of a plain one what its layers made of padding.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

from ..borrowed.classes import Standing, as_own, stands_for
from ..borrowed.probe import evaluating
from ..borrowed.refusals import Refused
from .refusals import LAST

BY_MASK = frozenset({
    "Dense", "Dropout", "HierarchicalTokenPooling", "LambdaTokenPooling", "LayerNorm", "LogitScore",
    "LSTM", "MultiVectorMask", "Normalize", "Pooling", "SparseAutoEncoder", "SpladePooling",
    "WeightedLayerPooling", "WordWeights",
})  # fmt: skip
"""Modules of sentence-transformers that take each state by itself, leave out what is masked, or
read the last place, which is a token's wherever a language model's logits are of packed states."""

TEXTS = ["a", "a longer text of a few words more than the first"]


class Behind:
    """The modules behind a first one as they were last looked at; kept, for it is asked for at
    every call."""

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []
        self._fault = ""

    def fault(self, model: Any) -> str:
        """Why they are not to be given packed states, "" where they are."""
        behind = list(model)[1:]
        if all(map(_goes_by_mask, behind)):
            return ""
        if len(behind) != len(self._modules) or not all(map(operator.is_, behind, self._modules)):
            try:
                check_behind(model)
                self._fault = ""
            except Refused as reason:
                self._fault = str(reason)
            self._modules = behind
        return self._fault


def check_behind(model: Any) -> None:
    """The modules behind the first one of a model answer the same to other states of padding.

    Raises:
        Refused: they do not, or they cannot be asked.
    """
    behind = list(model)[1:]
    strange = [module for module in behind if not _goes_by_mask(module)]
    if not strange:
        return
    kind = type(strange[0]).__name__
    if model[0].transformer_task == LAST:
        raise Refused(
            f"its {kind} reads a language model's logits: of LogitScore alone is known that it "
            "reads those of the last place"
        )
    try:
        same = _answers_alike(model, behind)
    except Exception as error:
        raise Refused(
            f"its {kind} cannot be run on states of two short texts, to see whether it reads those "
            f"of padding: {type(error).__name__}: {error}"
        ) from error
    if not same:
        raise Refused(f"its {kind} reads states of padding, which are zeros where pyenc makes them")


def _goes_by_mask(module: nn.Module) -> bool:
    kind = stands_for(type(module))[1] if isinstance(module, Standing) else type(module)
    known = kind.__module__.partition(".")[0] == "sentence_transformers"
    return known and kind.__name__ in BY_MASK


@torch.inference_mode()
def _answers_alike(model: Any, behind: list[nn.Module]) -> bool:
    """Whether zeros in the place of states of padding change nothing."""
    with evaluating(model), torch.autocast(model.device.type, enabled=False):
        features = {
            name: value.to(model.device) if isinstance(value, Tensor) else value
            for name, value in model.preprocess(TEXTS).items()
        }
        features = as_own(model[0]).forward(features)
        mask = features["attention_mask"].bool()
        states: Tensor = features["token_embeddings"]
        answers = []
        for given in (states.clone(), states * mask[..., None].to(states.dtype)):
            answer = features | {"token_embeddings": given, "attention_mask": mask.long()}
            for module in behind:
                answer = module.forward(answer)
            answers.append(answer)
    one, other = answers
    return one.keys() == other.keys() and all(
        _alike(one[name], other[name], mask if name == "token_embeddings" else None) for name in one
    )


def _alike(one: Any, other: Any, mask: Tensor | None) -> bool:
    """Whether two features are equal but for the last places; of states those of tokens."""
    if not isinstance(one, Tensor) or not one.is_floating_point():
        return True
    if one.shape != other.shape:
        return False
    if mask is not None and one.shape[: mask.ndim] == mask.shape:
        one, other = one[mask], other[mask]
    allowed = 64 * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=allowed, atol=allowed, equal_nan=True)
