"""Text in, vectors out: tokenising, batching, encoding, pooling."""

from .arguments import PromptWarning
from .assumed import AssumptionWarning
from .encoding import TokenVectors
from .limits import TruncationWarning
from .load import load
from .long_pieces import LongWordWarning
from .precision import CalibrationWarning, quantize
from .processes import EncoderPool
from .recipe import Recipe
from .text_encoder import TextEncoder
from .tokenizer import TextTokenizer

__all__ = [
    "AssumptionWarning",
    "CalibrationWarning",
    "EncoderPool",
    "LongWordWarning",
    "PromptWarning",
    "Recipe",
    "TextEncoder",
    "TextTokenizer",
    "TokenVectors",
    "TruncationWarning",
    "load",
    "quantize",
]
