"""Models of transformers for these tests, each beside an accelerated copy."""

from __future__ import annotations

import copy
from typing import Any

import torch

import pyenc
from tests.conftest import GOLDEN
from tests.integrations.sentence_transformers.models import CHECKPOINTS, CLASSES, _class_folder

NAMES = (*CHECKPOINTS, *CLASSES)
NEAR = 1e-5
Pair = tuple[Any, Any]


def quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def base(name: str) -> Any:
    """A model without a head in float32, in eval mode, without a cache."""
    import transformers

    quiet()
    kind = transformers.T5EncoderModel if name.startswith("t5") else transformers.AutoModel
    folder = _class_folder(name, ()) if name in CLASSES else GOLDEN / name
    model = kind.from_pretrained(folder, dtype=torch.float32)
    model.config.use_cache = False
    return model.eval()


def headed(head: str, name: str = "bert_mean_h4", **said: Any) -> Any:
    """One with a head of random numbers; head: as transformers names it in its classes."""
    import transformers

    quiet()
    torch.manual_seed(7)
    kind = getattr(transformers, f"AutoModelFor{head}")
    model = kind.from_pretrained(
        GOLDEN / name, dtype=torch.float32, ignore_mismatched_sizes=True, **said
    )
    own = {id(parameter) for parameter in model.base_model.parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) not in own:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.config.use_cache = False
    return model.eval()


def both(plain: Any) -> Pair:
    """(plain, accelerated)."""
    return plain, pyenc.accelerate(copy.deepcopy(plain))


def batch(model: Any, *, left: bool = False) -> dict[str, torch.Tensor]:
    """Five rows: whole, short, one token, with a hole, and of two tokens far from one another."""
    words = model.config.get_text_config().vocab_size
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    ids = torch.randint(6, words, (5, 19))
    mask = torch.ones(5, 19, dtype=torch.long)
    mask[1, 9:] = mask[2, 1:] = mask[3, 4:7] = mask[4] = 0
    mask[4, 0] = mask[4, 8] = 1
    if left:
        mask = mask.flip(1)
    return {"input_ids": ids.masked_fill(mask == 0, padding or 0), "attention_mask": mask}


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one.double() - other.double()).abs().max())
