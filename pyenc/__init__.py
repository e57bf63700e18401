"""pyenc: published long-context text encoders, fast, without remote code.

>>> import pyenc
>>> encoder = pyenc.load("jinaai/jina-embeddings-v2-small-en")
>>> vectors = encoder.encode(["a text", "another"])          # numpy (2, 512) float32
>>> hidden = encoder.model(input_ids, attention_mask)        # torch (B, N, C)
"""

from .errors import (
    BackendError,
    CheckpointError,
    InputError,
    PyencError,
    UnknownArchitectureError,
)
from .models import Encoder, EncoderConfig
from .ops import use_backend
from .text import TextEncoder, TokenVectors, TruncationWarning, load

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CheckpointError",
    "Encoder",
    "EncoderConfig",
    "InputError",
    "PyencError",
    "TextEncoder",
    "TokenVectors",
    "TruncationWarning",
    "UnknownArchitectureError",
    "__version__",
    "load",
    "use_backend",
]
