"""Special tokens around a text where a checkpoint's files say two things of them.

transformers 4 built what is around a text of Llama's tokenizers from `add_bos_token` and
`add_eos_token` of `tokenizer_config.json`; transformers 5 passes over these and takes
`tokenizer.json`, which published files of that time contradict (e5-mistral-7b-instruct's ends no
text). A model was trained with the former, and the last token's state is its vector.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, processors

from .tokenizer_settings import Settings

KEYS = {"add_bos_token": ("bos_token", "<s>"), "add_eos_token": ("eos_token", "</s>")}
"""What a setting adds, and Llama's where no file names it."""


def settle(tokenizer: Tokenizer, settings: Settings) -> str:
    """Puts around every text what `tokenizer_config.json` says, where it says it.

    Returns:
        What the files disagree about, for a warning; empty where they agree or are silent.

    Raises:
        CheckpointError: a token is to be added that there is none of.
    """
    # sentence-transformers hands them on, and transformers follows.
    if settings.told & KEYS.keys():
        return ""
    encoding = tokenizer.encode("a")
    wanted, tokens, disputed = {}, {}, []
    for key, at in zip(KEYS, (0, -1), strict=True):
        name, default = KEYS[key]
        token = settings.get(name, default)
        number = None if token is None else tokenizer.token_to_id(str(token))
        ends = bool(encoding.special_tokens_mask[at]) if encoding.ids else False
        has = ends and encoding.ids[at] == number
        said: Any = settings.get(key)
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
        "former is taken, as transformers 4 did, which these files are from; transformers 5 takes "
        "the latter"
    )
