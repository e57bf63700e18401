"""The student: the teacher's layers without its position table, with ALiBi in its place."""

from __future__ import annotations

from dataclasses import replace

import torch

from pyenc import Encoder

MAX_LENGTH = 8192
"""Tokens a text may have by the config's word; ALiBi itself has no limit."""


def without_table(teacher: Encoder, max_length: int = MAX_LENGTH) -> Encoder:
    """An encoder with the teacher's weights, symmetric ALiBi with the published slopes, and the
    mean of its position table, which every token had in common, added to the token types.

    In float32 and without dropout, which is for labels that are few, not for a teacher that answers
    everything.
    """
    config = replace(
        teacher.config, position="alibi", num_positions=0, max_length=max_length,
        hidden_dropout=0.0, attention_dropout=0.0, pooler=False,
    )  # fmt: skip
    student = Encoder(config)
    state = {n: t for n, t in teacher.state_dict().items() if not n.startswith("pooler.")}
    mean = state.pop("embeddings.position.weight").mean(0)
    state["embeddings.token_type.weight"] = state["embeddings.token_type.weight"] + mean
    student.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    return student


def trained(student: Encoder) -> dict[str, torch.nn.Parameter]:
    """What is trained: all but the word embeddings, which are most of the weights and stay the
    teacher's; the others have their gradients switched off."""
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name != "embeddings.word.weight")
    return {n: p for n, p in student.named_parameters() if p.requires_grad}
