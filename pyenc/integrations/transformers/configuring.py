"""From a name to the configuration of what pyenc serves, with the arguments that came with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ...loading.own_type import OWN_TYPE
from . import arguments
from .config import PyencConfig, own_config
from .deciding import decide


def configured(
    name: str, given: Mapping[str, Any], trusted: bool = False
) -> tuple[PyencConfig, dict[str, Any]] | None:
    """The configuration of a checkpoint that pyenc serves, and what of the arguments is left.

    Args:
        name: folder or Hub name.
        given: of `AutoConfig.from_pretrained`.
        trusted: whether remote code may take what pyenc refuses.

    Raises:
        CheckpointError: as of `decide`.
        InputError: an argument that asks for what these models have not.
    """
    hub = {key: given[key] for key in arguments.HUB if given.get(key) is not None}
    said, rest = PreTrainedConfig.get_config_dict(name, **{**given, **hub})
    if said.get("model_type") == OWN_TYPE:
        config, unused = PyencConfig.from_dict(
            said, **{**rest, "return_unused_kwargs": True, "name_or_path": name}
        )
        return config, unused
    found = decide(name, said, hub, trusted)
    if found is None:
        return None
    if rest.get("attn_implementation") not in arguments.NEUTRAL["attn_implementation"]:
        raise arguments.refuse("attn_implementation", rest["attn_implementation"])
    rest.pop("return_unused_kwargs", None)
    return own_config(said, found[1], **{**rest, "name_or_path": name})
