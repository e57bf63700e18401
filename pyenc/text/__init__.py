"""Text in, vectors out: tokenising, batching, encoding, pooling."""

from .recipe import Recipe
from .text_encoder import TextEncoder, TokenVectors, TruncationWarning, load
from .tokenizer import TextTokenizer

__all__ = [
    "Recipe",
    "TextEncoder",
    "TextTokenizer",
    "TokenVectors",
    "TruncationWarning",
    "load",
]
