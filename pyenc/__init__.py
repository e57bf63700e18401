"""pyenc: published long-context text encoders, fast, without remote code.

>>> import pyenc
>>> encoder = pyenc.load("jinaai/jina-embeddings-v2-small-en")
>>> vectors = encoder.encode(["a text", "another"])          # numpy (2, 512) float32
>>> hidden = encoder.model(input_ids, attention_mask)        # torch (B, N, C)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    BackendError,
    CheckpointError,
    InputError,
    MissingPackageError,
    PyencError,
    UnknownArchitectureError,
    WorkerError,
)
from .forking import ForkWarning

if TYPE_CHECKING:
    from .integrations.accelerate import accelerate as accelerate
    from .integrations.borrowed.refusals import AccelerationWarning as AccelerationWarning
    from .integrations.transformers import register as register
    from .integrations.transformers import unregister as unregister
    from .models import Encoder, EncoderConfig
    from .ops import use_backend
    from .ops.extension import ExtensionWarning
    from .text import (
        AssumptionWarning,
        CalibrationWarning,
        EncoderPool,
        LongWordWarning,
        PromptWarning,
        TextEncoder,
        TokenVectors,
        TruncationWarning,
        load,
        quantize,
    )

__version__ = "0.1.0"

__all__ = [
    "AssumptionWarning",
    "BackendError",
    "CalibrationWarning",
    "CheckpointError",
    "Encoder",
    "EncoderConfig",
    "EncoderPool",
    "ExtensionWarning",
    "ForkWarning",
    "InputError",
    "LongWordWarning",
    "MissingPackageError",
    "PromptWarning",
    "PyencError",
    "TextEncoder",
    "TokenVectors",
    "TruncationWarning",
    "UnknownArchitectureError",
    "WorkerError",
    "__version__",
    "load",
    "quantize",
    "use_backend",
]

# What stands on an optional package is not in __all__: `import *` must not need it.
# Imported when first asked for: `pyenc --help` and a mistyped option must not wait for torch.
_LAZY = {
    "AccelerationWarning": ".integrations.borrowed.refusals",
    "AssumptionWarning": ".text",
    "CalibrationWarning": ".text",
    "Encoder": ".models",
    "EncoderConfig": ".models",
    "EncoderPool": ".text",
    "ExtensionWarning": ".ops.extension",
    "LongWordWarning": ".text",
    "PromptWarning": ".text",
    "TextEncoder": ".text",
    "TokenVectors": ".text",
    "TruncationWarning": ".text",
    "accelerate": ".integrations.accelerate",
    "load": ".text",
    "quantize": ".text",
    "register": ".integrations.transformers",
    "unregister": ".integrations.transformers",
    "use_backend": ".ops",
}


def __getattr__(name: str) -> object:
    if name in ("loading", "models", "ops", "text"):
        return import_module(f".{name}", __name__)
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LAZY})
