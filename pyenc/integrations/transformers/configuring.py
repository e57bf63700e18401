"""From a name to the configuration of what pyenc serves, with the arguments that came with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import cached_file

from ...errors import UnknownArchitectureError
from ...loading.own_type import OWN_TYPE, POSITIONS, leaves_limit, published
from ...models.families import ConfigFile
from . import arguments
from .config import COMMON, PyencConfig, own_config
from .deciding import decide, recognised
from .labels import KEYS

SENTENCE_CONFIG = "sentence_bert_config.json"
"""The file of sentence-transformers that stands beside every `config.json` it saves."""


def configured(
    name: str, given: Mapping[str, Any], trusted: bool = False
) -> tuple[PyencConfig, dict[str, Any]] | None:
    """The configuration of a checkpoint that pyenc serves, and what of the arguments is left.

    Args:
        name: folder or Hub name.
        given: of `AutoConfig.from_pretrained`.
        trusted: whether remote code may take what pyenc refuses.

    Raises:
        CheckpointError: as of `decide`, or a folder of pyenc's own type is not what it says.
        InputError: an argument that asks for what these models have not.
    """
    hub = {key: given[key] for key in arguments.HUB if given.get(key) is not None}
    said, rest = PreTrainedConfig.get_config_dict(name, **{**given, **hub})
    own = said.get("model_type") == OWN_TYPE
    inner = published(said, f"{name}: config.json") if own else said
    found = recognised(name, inner, hub) if own else decide(name, inner, hub, trusted)
    if found is None:
        if own:
            raise UnknownArchitectureError(f"{name}: its tensors are of no family that pyenc knows")
        return None
    if rest.get("attn_implementation") not in arguments.NEUTRAL["attn_implementation"]:
        raise arguments.refuse("attn_implementation", rest["attn_implementation"])
    rest.pop("return_unused_kwargs", None)
    family, bare = found
    free = leaves_limit(said) and POSITIONS not in rest and _limited_beside(name, hub)
    # What is said over config.json is said over the published one, and looked at as that is.
    own = {*COMMON, *KEYS}
    inner = inner | {key: rest.pop(key) for key in list(rest) if key in inner and key not in own}
    shape = family.shape(ConfigFile(f"{name}: config.json", inner), bare)
    return own_config(inner, shape, said, capped=not free, **{**rest, "name_or_path": name})


def _limited_beside(name: str, hub: Mapping[str, Any]) -> bool:
    """Whether sentence-transformers saved the folder: its tokenizer's limit is the model's then.

    A tokenizer that was saved by itself has its published one, which may be none at all.
    """
    found = cached_file(
        name,
        SENTENCE_CONFIG,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return found is not None
