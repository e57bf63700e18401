"""Whether two tokenizers of the tokenizers library make the same tokens, seen by what they say of
themselves."""

from __future__ import annotations

import json
import math
from typing import Any

RULES = ("added_tokens", "normalizer", "pre_tokenizer", "model")
"""Parts of a tokenizer that decide the tokens of a text, without those around it."""


def one_rule(first: str, second: str) -> bool:
    """Whether two `tokenizer.json` have the same rules."""
    a, b = json.loads(first), json.loads(second)
    return all(_alike(a[key], b[key]) for key in RULES)


def _alike(a: Any, b: Any) -> bool:
    """Whether two JSON values are one, but for how the library rounds scores that it reads."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    return bool(a == b)
