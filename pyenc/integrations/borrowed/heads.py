"""Heads of transformers models (rerankers', masked LMs'): their own code, on packed states.

The model beneath a head (`model.bert`) stands under `Handed`, and answers with the states that it
is handed; head, pooler, loss and whatever else the whole model does with them are run as they are.

Shapes: B rows, N padded length, C channels, V words.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ...models import Encoder
from .classes import Standing, as_own, own_arguments, put, take_away
from .handed import Answer, Given, Handed, handing
from .probe import evaluating, unrounded
from .refusals import Refused

LOGITS = ("logits", "start_logits", "end_logits")
"""What heads make of states."""


class Head:
    """What a transformers model is beside the one beneath it.

    Args:
        whole: the model.
        model: the one beneath its head, which is made to stand under `Handed`.
        encoder: of pyenc, on the parameters of the one beneath.
        answer: of the one beneath to some texts, by its own code.

    Raises:
        Refused: the head asks for what the encoder does not give. The one beneath is as it was.
    """

    def __init__(self, whole: nn.Module, model: nn.Module, encoder: Encoder, answer: Any) -> None:
        self.whole, self.model = whole, model
        layers = {module for module in model.modules() if module is not model}
        self.modules = [m for m in whole.modules() if m is not whole and m not in layers]
        """Whose hooks are run on what the head makes, and the one beneath it."""
        self.names = own_arguments(model)
        self.answer = Answer(model, answer)
        self._reads_first = False
        """Whether it reads the first state of each row, be that one of padding."""
        self._padding: int | None = None
        """The id by which it tells padding from tokens; None where it does not ask the ids."""
        self.by_place = False
        """Whether it makes logits of each state by itself, wherever that stands."""
        if type(whole).__name__.endswith("ForMultipleChoice"):
            raise Refused(f"each row of {type(whole).__name__} is several texts")
        stood = isinstance(model, Handed)
        if isinstance(model, Standing) and not stood:
            raise Refused(
                f"what is beneath the head, {type(model).__name__}, is accelerated by itself: "
                "restore() it first"
            )
        if not stood:
            put(model, Handed)
        try:
            self._check(whole, encoder, answer)
        except BaseException as error:
            if not stood:
                take_away(model)
            if isinstance(error, Refused) or not isinstance(error, Exception):
                raise
            raise Refused(
                f"{type(whole).__name__} cannot be run on states of two short texts: {error}"
            ) from error

    def reads_tokens(self, ids: Tensor, mask: Tensor) -> bool:
        """Whether the states that it reads of ids under a mask (B, N) are of tokens, not of
        padding."""
        if self._padding is not None:
            words, real = ids != self._padding, mask.bool()
            # Those within a text are passed over, and what it finds is a token still; of a row of
            # nothing else it reads the first.
            if bool((words & ~real).any()) or not bool((words.any(1) | real[:, 0]).all()):
                return False
        return not self._reads_first or bool(mask[:, :1].all())

    def given(self, features: dict[str, Any], states_BNC: Tensor) -> AbstractContextManager[Given]:
        """In this thread the model beneath answers to these features with these states."""
        return handing(Given(self, features, states_BNC))

    @torch.inference_mode()
    def _check(self, whole: Any, encoder: Encoder, answer: Any) -> None:
        """The model beneath answers with states alone, and what its pooler makes of them; of their
        states the head reads no other than those of tokens."""
        with evaluating(whole), unrounded(encoder):
            self.answer.check(answer)
            reads = self._reads_padding(whole, encoder, first_is_token=True)
            if reads and (found := padding_of(whole)) is not None:
                self._padding = found
                reads = self._reads_padding(whole, encoder, first_is_token=True)
            if reads:
                raise Refused(
                    f"the head of {type(whole).__name__} reads states of padding, or looks for a "
                    "token by another id than that of padding, or makes one number of a place"
                )
            if not self._reads_tokens(whole, encoder):
                raise Refused(
                    f"the head of {type(whole).__name__} answers the same to whatever states, as "
                    "one of zeros does, so that nothing is known of which it reads; accelerate it "
                    "once its weights are there"
                )
            self._reads_first = self._reads_padding(whole, encoder, first_is_token=False)
            self.by_place = self._is_by_place(whole, encoder)

    def _reads_padding(self, whole: Any, encoder: Encoder, *, first_is_token: bool) -> bool:
        """Whether other states of padding give another answer.

        Of the second row a single token is no padding, and no id is that of padding unless the head
        goes by it: who looks for a place by the ids, or always at the same one, finds padding
        there.
        """
        features, states_BNC = _made_up(whole, encoder, first_is_token, self._padding)
        mask = features["attention_mask"]
        zeros_BNC = states_BNC * mask[..., None].to(encoder.dtype)
        answers = (self._logits(whole, features, states) for states in (states_BNC, zeros_BNC))
        # Where each place has its own, those of tokens.
        pairs = zip(*(_of_tokens(answer, mask.bool()) for answer in answers), strict=True)
        return not all(_near(one, other, 4) for one, other in pairs)

    def _reads_tokens(self, whole: Any, encoder: Encoder) -> bool:
        """Whether other states of tokens give another answer, in each of what it makes."""
        features, states_BNC = _made_up(whole, encoder, True, self._padding)
        one, other = (self._logits(whole, features, s) for s in (states_BNC, states_BNC.roll(1, 2)))
        return all(not torch.equal(each, other[name]) for name, each in one.items())

    def _is_by_place(self, whole: Any, encoder: Encoder) -> bool:
        """Whether packed states give the logits that padded ones do."""
        features, states_BNC = _made_up(whole, encoder, True, None)
        real = features["attention_mask"].bool()
        padded = self._logits(whole, features, states_BNC).get("logits")
        if padded is None or padded.ndim != 3:
            return False
        try:
            packed = self._logits(whole, features, states_BNC[real][None])["logits"]
        except Exception:  # it looks at shapes; what it raises is its own
            return False
        right = padded[real][None]
        return packed.shape == right.shape and _near(packed, right, 64)

    def _logits(self, whole: Any, features: dict[str, Tensor], states: Tensor) -> dict[str, Tensor]:
        with self.given(features, states) as given:
            answer = as_own(whole).forward(**features, return_dict=True)
        if not given.taken:
            raise Refused(
                f"{type(whole).__name__} does not hand on its features as they are to what is "
                "beneath its head"
            )
        named = {name: getattr(answer, name, None) for name in LOGITS}
        logits = {name: each for name, each in named.items() if isinstance(each, Tensor)}
        if not logits:
            raise Refused(f"{type(answer).__name__} has none of {', '.join(LOGITS)}")
        if not all(bool(each.isfinite().all()) for each in logits.values()):
            raise Refused(
                f"the head of {type(whole).__name__} makes numbers of two short texts, or of the "
                "zeros of their padding, that are not finite"
            )
        return logits


def _of_tokens(logits: dict[str, Tensor], mask: Tensor) -> list[Tensor]:
    """Those of tokens of what each place has its own of: (B, N, V), and where spans begin and end,
    (B, N); the others as they are."""
    return [
        each[mask] if each.ndim == 3 or name != LOGITS[0] else each for name, each in logits.items()
    ]


def padding_of(whole: Any) -> int | None:
    """The id of padding by a model's config, if it has one."""
    found = getattr(whole.config.get_text_config(), "pad_token_id", None)
    return found if isinstance(found, int) else None


def _made_up(
    whole: Any, encoder: Encoder, first_is_token: bool, padding: int | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Features of two or three short texts, padded, and states (B, N, C) for them.

    Args:
        padding: the id where the mask is zero, and of the third text; None for one that is a
            word's.
    """
    config = encoder.config
    rows = [[1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    if padding is not None and first_is_token:
        rows.append(rows[-1])  # whose one token has that id too
    mask = torch.tensor(rows, dtype=torch.long, device=encoder.device)[:, : config.max_length]
    if not first_is_token:
        mask = mask.flip(1)
    last = config.vocab_size - 1
    word = 0 if padding_of(whole) == last else last
    ids = torch.full_like(mask, word)
    if padding is not None:
        ids = ids.masked_fill(mask == 0, padding)
        ids[2:] = padding
    features = {"input_ids": ids, "attention_mask": mask}
    numbers = torch.arange(mask.numel() * config.hidden_size, device=encoder.device) % 1013
    return features, numbers.float().sin().to(encoder.dtype).view(*mask.shape, -1)


def _near(one: Tensor, other: Tensor, places: int) -> bool:
    """Whether two answers differ by no more than some last places of their largest number: sums may
    end otherwise by where their numbers lie."""
    allowed = places * torch.finfo(one.dtype).eps * float(one.abs().max())
    return float((one - other).abs().max()) <= allowed


def beneath(whole: nn.Module) -> nn.Module:
    """The model beneath the head of a transformers model.

    Raises:
        Refused: there is none.
    """
    kind = type(whole).__name__
    if any(isinstance(module, Encoder) for module in whole.modules()):
        raise Refused(f"{kind} is pyenc's already")
    model = getattr(whole, "base_model", whole)
    if model is whole or not isinstance(model, nn.Module):
        raise Refused(f"{kind} does not say which model is beneath its head (base_model)")
    return model
