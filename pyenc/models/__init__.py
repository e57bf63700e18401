"""One `Encoder`, one `EncoderConfig`, and a small file for each checkpoint family."""

from .config import EncoderConfig, HeadConfig
from .encoder import Encoder

__all__ = ["Encoder", "EncoderConfig", "HeadConfig"]
