"""One `Encoder`, one `EncoderConfig`, and a small file for each checkpoint family."""

from .config import EncoderConfig, HeadConfig
from .encoder import Encoder
from .position import register_position

__all__ = ["Encoder", "EncoderConfig", "HeadConfig", "register_position"]
