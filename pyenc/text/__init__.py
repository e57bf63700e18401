"""Text in, vectors out: tokenising, batching, encoding, pooling."""

from .assumed import AssumptionWarning
from .limits import TruncationWarning
from .load import load
from .long_pieces import LongWordWarning
from .recipe import Recipe
from .text_encoder import TextEncoder, TokenVectors
from .tokenizer import TextTokenizer

__all__ = [
    "AssumptionWarning",
    "LongWordWarning",
    "Recipe",
    "TextEncoder",
    "TextTokenizer",
    "TokenVectors",
    "TruncationWarning",
    "load",
]
