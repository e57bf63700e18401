"""One `Encoder`, one `EncoderConfig`, and a small file for each checkpoint family."""

from .config import EncoderConfig
from .convolution import Convolution
from .disentangled import Disentangled
from .encoder import Encoder
from .experts import Experts
from .head_config import HeadConfig
from .position import register_position
from .rotary import Rotary
from .rotary_scaling import RotaryScaling
from .table_alibi import NAME, TableALiBi

__all__ = [
    "Convolution",
    "Disentangled",
    "Encoder",
    "EncoderConfig",
    "Experts",
    "HeadConfig",
    "Rotary",
    "RotaryScaling",
    "TableALiBi",
    "register_position",
]

register_position(NAME, TableALiBi)
