"""Special tokens around a text where a checkpoint's files say two things of them.

transformers 4 built what is around a text of Llama's tokenizers from `add_bos_token` and
`add_eos_token` of `tokenizer_config.json`; transformers 5 passes over these and takes
`tokenizer.json`, which published files of that time contradict (e5-mistral-7b-instruct's ends no
text). A model was trained with the former, and the last token's state is its vector.

So it is with gte-Qwen2, whose tokenizer is code of its own, which is not run: it ends a text by
`add_eos_token`, takes no notice of `add_bos_token`, and overwrites what `tokenizer.json` has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, processors

from .tokenizer_settings import Settings

KEYS = {"add_bos_token": ("bos_token", "<s>"), "add_eos_token": ("eos_token", "</s>")}
"""What a setting adds, and Llama's where no file names it."""

END = "<|endoftext|>"
"""Qwen 2's, where no file names it."""

GTE = "tokenization_qwen.Qwen2Tokenizer"
"""gte-Qwen2's class, in copies of another repository's name before it; the fast one is `Fast`."""


@dataclass(frozen=True)
class Whose:
    """Whose files contradict each other."""

    tokens: Mapping[str, str]
    """Those of `KEYS` that count -> the token where no file names it."""
    followed: str
    """For the warning: who takes what is taken here, and who does not."""


OF_LLAMA = Whose(
    {key: token for key, (_, token) in KEYS.items()},
    "transformers 4 did, which these files are from; transformers 5 takes the latter",
)
GTE_QWEN2 = Whose(
    {"add_eos_token": END},
    "code of theirs for the tokenizer does (tokenization_qwen), which is not run; transformers "
    "takes the latter without it",
)


def names_gte(named: object) -> bool:
    """Does an `auto_map` of a tokenizer name gte-Qwen2's class?"""
    said = named.get("AutoTokenizer") if isinstance(named, Mapping) else named
    names = said if isinstance(said, list) else [said]
    return any(str(name).rpartition("--")[2].removesuffix("Fast") == GTE for name in names)


def settle(tokenizer: Tokenizer, settings: Settings, whose: Whose) -> str:
    """Puts around every text what `tokenizer_config.json` says, where it says it.

    Args:
        tokenizer: as `tokenizer.json` has it; changed where the files disagree.
        settings: what the files say.
        whose: files these are.

    Returns:
        What the files disagree about, for a warning; empty where they agree or are silent.

    Raises:
        CheckpointError: a token is to be added that there is none of, or `tokenizer_args` has a
            setting of which no notice is taken.
    """
    for key in settings.told & KEYS.keys() - whose.tokens.keys():
        raise settings.fault(key, "the tokenizer's own class takes no notice of it; expected none")
    # sentence-transformers hands them on, and transformers follows.
    if settings.told & KEYS.keys():
        return ""
    encoding = tokenizer.encode("a")
    wanted, tokens, disputed = {}, {}, []
    for key, at in zip(KEYS, (0, -1), strict=True):
        name, default = KEYS[key]
        token = settings.get(name, whose.tokens.get(key, default))
        number = None if token is None else tokenizer.token_to_id(str(token))
        ends = bool(encoding.special_tokens_mask[at]) if encoding.ids else False
        has = ends and encoding.ids[at] == number
        said: Any = settings.get(key) if key in whose.tokens else None
        wanted[key], tokens[key] = has if said is None else said, (str(token), number)
        if wanted[key] != has:
            if number is None:
                raise settings.fault(key, f"true, but {name} is {token!r}, no token there is")
            disputed.append(f"{key} {str(said).lower()}")
    if not disputed:
        return ""
    first, last = (tokens[key] if wanted[key] else None for key in KEYS)
    pieces = [*([f"{first[0]}:0"] if first else []), "$A:0", *([f"{last[0]}:0"] if last else [])]
    around = [token for token in (first, last) if token is not None]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=pieces, special_tokens=list(dict(around).items())
    )
    return (
        f"tokenizer_config.json says {' and '.join(disputed)}, and tokenizer.json otherwise: the "
        f"former is taken, as {whose.followed}"
    )
