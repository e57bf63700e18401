"""One `Encoder`, one `EncoderConfig`, and a small file for each checkpoint family."""

from .config import EncoderConfig
from .encoder import Encoder

__all__ = ["Encoder", "EncoderConfig"]
