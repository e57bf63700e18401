"""The student: the teacher's layers, with a bias by distance in the place of the position table.

Symmetric ALiBi would give a text read backwards the same vector, so a layer's heads have a slope
for each side and a number for each near distance: `TableALiBi`, learned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pyenc import Encoder

MAX_LENGTH = 8192
"""Tokens a text may have by the config's word; ALiBi itself has no limit."""

POSITION: dict[str, Any] = {
    "position": "table_alibi", "position_fields": {"reach": 64}, "position_per_layer": True,
    "num_positions": 0,
}  # fmt: skip
"""What the student's config has otherwise; `write_difference` takes it as it is."""


def without_table(teacher: Encoder, max_length: int = MAX_LENGTH) -> Encoder:
    """An encoder with the teacher's weights, ALiBi with the published slopes and a table of zeros
    in each layer, and the mean of its position table, which every token had in common, added to the
    token types.

    In float32 and without dropout, which is for labels that are few, not for a teacher that answers
    everything.
    """
    config = replace(
        teacher.config, **POSITION, max_length=max_length,
        hidden_dropout=0.0, attention_dropout=0.0, pooler=False,
    )  # fmt: skip
    student = Encoder(config)
    state = {n: t for n, t in teacher.state_dict().items() if not n.startswith("pooler.")}
    mean = state.pop("embeddings.position.weight").mean(0)
    state["embeddings.token_type.weight"] = state["embeddings.token_type.weight"] + mean
    for name, tensor in student.state_dict().items():
        if is_position(name):
            state[name] = tensor
    student.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    return student


def is_position(name: str) -> bool:
    """Whether a parameter, by its name, is a position's, which the teacher has not."""
    return ".position_bias." in name


def trained(student: Encoder) -> dict[str, torch.nn.Parameter]:
    """What is trained: all but the word embeddings, which are most of the weights and stay the
    teacher's; the others have their gradients switched off."""
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name != "embeddings.word.weight")
    return {n: p for n, p in student.named_parameters() if p.requires_grad}
