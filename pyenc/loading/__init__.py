"""Loading published checkpoints strictly and safely, and writing them back under their names."""

from .checkpoint import Checkpoint, load_checkpoint
from .files import read_json
from .hub import resolve
from .own_type import read_config
from .save import original_tensors, own_checkpoint, save_checkpoint
from .target import check_device

__all__ = [
    "Checkpoint",
    "check_device",
    "load_checkpoint",
    "original_tensors",
    "own_checkpoint",
    "read_config",
    "read_json",
    "resolve",
    "save_checkpoint",
]
