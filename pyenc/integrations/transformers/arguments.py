"""What `from_pretrained` is given: honoured, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...errors import InputError
from .config import PyencConfig

HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Where a checkpoint comes from."""

NO_EFFECT: dict[str, str] = {
    "_commit_hash": "", "_from_auto": "", "_from_pipeline": "", "_configuration_file": "",
    "trust_remote_code": "there is no remote code here to trust",
    "code_revision": "the same",
    "low_cpu_mem_usage": "weights are held once in any case",
    "use_cache": "an encoder has none",
}  # fmt: skip
"""Taken with any value, since no value changes anything."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_safetensors": (None, True),
    "weights_only": (None, True),
    "ignore_mismatched_sizes": (None, False),
    "attn_implementation": (None, "pyenc"),
    "output_attentions": (None, False),
}
"""Values that ask for what is done anyway; others are refused. Of all other names: None, False and
what is empty."""

WHY = {
    "attn_implementation": "the attention of these models is pyenc's own",
    "output_attentions": "the attention weights are never made",
    "quantization_config": "quantised weights are not served",
    "state_dict": "the tensors are the checkpoint's",
    "device_map": "a model is not split; name one device",
    "proxies": "set HTTPS_PROXY",
    "adapter_kwargs": "adapters are not served: merge them first",
    "ignore_mismatched_sizes": "a tensor of another shape is another model's",
    "weights_only": "no code of a checkpoint is ever run",
    "use_safetensors": "safetensors are taken where there are any",
}


def refuse(name: str, value: object) -> InputError:
    """The error about an argument that is not served."""
    why = f": {WHY[name]}" if name in WHY else ""
    return InputError(
        f"{name}={value!r:.80} is not served by a model of pyenc's{why} (after pyenc.unregister() "
        "transformers takes the checkpoint as it did before)"
    )


def check_rest(rest: Mapping[str, Any]) -> None:
    """No argument is left that would change something.

    Raises:
        InputError: one is; it is named.
    """
    for name, value in rest.items():
        if name in NO_EFFECT:
            continue
        if name == "adapter_kwargs" and isinstance(value, dict):
            # transformers puts in where an adapter would be looked for, and where it found one.
            if "_adapter_model_path" in value:
                raise refuse(name, value)
            continue
        neutral = NEUTRAL.get(name, (None, False))
        if not any(value is each or value == each for each in neutral) and value not in ({}, ""):
            raise refuse(name, value)


def wanted_device(device_map: object) -> str | torch.device:
    """The device of a `device_map` that names one; without it the CPU, as in transformers.

    Raises:
        InputError: it asks for several, or for a choice.
    """
    if device_map is None:
        return "cpu"
    if isinstance(device_map, Mapping):
        places = set(map(str, device_map.values()))
        if set(device_map) != {""} or len(places) != 1:
            raise refuse("device_map", device_map)
        device_map = device_map[""]
    if isinstance(device_map, int) and not isinstance(device_map, bool):
        return f"cuda:{device_map}"
    if isinstance(device_map, torch.device):
        return device_map
    if not isinstance(device_map, str) or device_map.startswith(("auto", "balanced", "sequential")):
        raise refuse("device_map", device_map)
    return device_map


def wanted_dtype(given: Mapping[str, Any], config: PyencConfig) -> str | torch.dtype:
    """The dtype by transformers' rule: what is said, else what config.json says, else the weights'.

    Raises:
        InputError: it is none of a whole model.
    """
    dtype = given.get("dtype")
    if dtype is None:
        dtype = given.get("torch_dtype")
    if dtype in (None, "auto"):
        dtype = config.dtype
    if dtype is None:
        return "auto"
    if not isinstance(dtype, str | torch.dtype):
        raise refuse("dtype", dtype)
    return dtype
