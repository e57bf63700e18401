"""mteb: a checkpoint as one of its encoders, and the scores of a model card computed again."""

from .card import CardResult, read_card
from .encoder import PyencEncoder, model_meta
from .rerun import NotRun, Rerun, rerun

__all__ = [
    "CardResult",
    "NotRun",
    "PyencEncoder",
    "Rerun",
    "model_meta",
    "read_card",
    "rerun",
]
