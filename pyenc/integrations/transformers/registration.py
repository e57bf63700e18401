"""`register` and `unregister`: what is put into transformers, and taken out again.

Public ground: `AutoConfig.register`, `register` of `AutoModel`, `AutoModelForMaskedLM` and
`AutoModelForSequenceClassification` for the `model_type` "pyenc", and `register` of the two
attention interfaces. Three things have none:

- what a folder is that calls itself "bert". `AutoConfig.from_pretrained`, a public class method, is
  where each way of loading by name asks for that; a function of ours is put in its place, which
  asks `deciding` first and hands on what is not ours, with all arguments;
- taking a `model_type` out again (`_extra_content` of the mappings, `_model_mapping`);
- taking an attention out again (`_global_mapping`).

Where a later transformers has other names, what cannot be taken out stays, with a warning: the
names are "pyenc", and do nothing where nobody asks for them.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from ...callers import stacklevel
from ...errors import PyencError
from ...loading.own_type import OWN_TYPE
from . import arguments
from .attention import NAME, attention_forward
from .classifier import PyencForSequenceClassification
from .config import PyencConfig
from .configuring import configured
from .mask import padding_mask
from .model import PyencForMaskedLM, PyencModel
from .state import set_registered

_MODELS = (
    (AutoModel, PyencModel),
    (AutoModelForMaskedLM, PyencForMaskedLM),
    (AutoModelForSequenceClassification, PyencForSequenceClassification),
)

_lock = threading.RLock()
_before: Any = None
"""`AutoConfig.from_pretrained` as it was; None where nothing is registered."""


def register() -> None:
    """As of the package, which explains it."""
    global _before
    with _lock:
        if _before is not None:
            return
        AutoConfig.register(OWN_TYPE, PyencConfig, exist_ok=True)
        for auto, model in _MODELS:
            auto.register(PyencConfig, model, exist_ok=True)
        AttentionInterface.register(NAME, attention_forward)
        AttentionMaskInterface.register(NAME, padding_mask)
        _before = AutoConfig.__dict__["from_pretrained"]
        set_registered(register)
        AutoConfig.from_pretrained = _ours(_before)  # type: ignore[assignment,method-assign]


def unregister() -> None:
    """As of the package."""
    global _before
    with _lock:
        if _before is None:
            return
        before, _before = _before, None
        set_registered(None)
        if isinstance(AutoConfig.__dict__["from_pretrained"], _Ours):
            AutoConfig.from_pretrained = before  # type: ignore[method-assign]
        else:
            _stays("AutoConfig.from_pretrained, which something else has replaced since")
        _forget(CONFIG_MAPPING, OWN_TYPE)
        for auto, _ in _MODELS:
            _forget(getattr(auto, "_model_mapping", None), PyencConfig)
        for interface in (AttentionInterface, AttentionMaskInterface):
            known = getattr(interface, "_global_mapping", None)
            if not isinstance(known, dict) or known.pop(NAME, None) is None:
                _stays(f"the attention {NAME!r} in {interface.__name__}")


class _Ours(classmethod):  # type: ignore[type-arg]
    """To be known again, whatever else a class method is."""


def _ours(before: Any) -> _Ours:
    """What stands in the place of `AutoConfig.from_pretrained`."""

    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        found = None
        # Else it was kept by something that has been put over it, past `unregister`.
        if _before is before:
            given = {k: v for k, v in kwargs.items() if k not in arguments.NO_EFFECT}
            try:
                trusted = kwargs.get("trust_remote_code") is True
                found = configured(str(pretrained_model_name_or_path), given, trusted)
            except PyencError:
                raise
            except (OSError, ValueError):
                pass  # no config.json to be had: transformers says so in its own words
        if found is None:
            return before.__get__(None, cls)(pretrained_model_name_or_path, **kwargs)
        config, unused = found
        return (config, unused) if kwargs.get("return_unused_kwargs") else config

    return _Ours(from_pretrained)


def _forget(mapping: Any, key: Any) -> None:
    extra = getattr(mapping, "_extra_content", None)
    if not isinstance(extra, dict) or extra.pop(key, None) is None:
        _stays(f"{getattr(key, '__name__', key)} among what transformers knows")


def _stays(what: str) -> None:
    warnings.warn(
        f"pyenc.unregister: not taken out: {what} (made for transformers 5.24); it does nothing by "
        "itself",
        stacklevel=stacklevel(),
    )
