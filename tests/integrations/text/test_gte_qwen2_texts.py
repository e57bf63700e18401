"""Texts of gte-Qwen2, as published, beside sentence-transformers, which is told how they end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pyenc
from tests.integrations.text.test_last_tokens import NEAR, TEXTS, off
from tests.text.test_tokenizer_gte_qwen2 import published

sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")


def test_verbs(tmp_path: Path) -> None:
    folder = published(tmp_path)
    untold, theirs = (
        sentence_transformers.SentenceTransformer(
            str(folder), device="cpu", model_kwargs={"dtype": torch.float32}, processor_kwargs=told
        )
        for told in (None, {"add_eos_token": True})
    )
    with pytest.warns(pyenc.AssumptionWarning, match="add_eos_token"):
        ours = pyenc.load(folder)
    assert ours.max_length == theirs.max_seq_length == 32_768
    for verb in ("encode", "encode_query", "encode_document"):
        assert off(getattr(theirs, verb)(TEXTS), getattr(ours, verb)(TEXTS)) <= NEAR
    # Two of the same token see the same as one.
    some = [text for text in TEXTS if text not in ("", "<|endoftext|>")]
    apart = np.abs(untold.encode(some) - ours.encode(some)).max(1)
    assert apart.min() > 1e-2, "every vector is that of the token that ends its text"
    for limit in (1, 2, 17):
        theirs.max_seq_length = ours.max_length = limit
        assert off(theirs.encode(TEXTS), ours.encode(TEXTS)) <= NEAR
