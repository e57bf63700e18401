"""pplx-embed's last module: the whole numbers next to 127 tanh(x), against numpy by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyenc
from pyenc.text.module_list import PPLXS
from pyenc.text.pooling import tanh_bytes
from tests.conftest import GOLDEN
from tests.text.test_recipe import write
from tests.text.test_recipe_modules import listed, refused

TEXTS = ["the sky", "", "a quick brown fox jumps over the lazy dog", "ok"]
TYPE = {"model_type": "bidirectional_pplx_qwen3", "architectures": ["PPLXQwen3Model"]}


@pytest.fixture
def pplx(tmp_path: Path) -> Path:
    """A golden Qwen 3 as pplx-embed is published: mean, then its own module."""
    shutil.copytree(GOLDEN / "qwen3_embed_like_h4", tmp_path / "pplx")
    edit(tmp_path / "pplx", **TYPE)
    write(tmp_path / "pplx/modules.json", listed("Transformer", "Pooling", PPLXS))
    pooling = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}
    write(tmp_path / "pplx/1_Pooling/config.json", pooling)
    return tmp_path / "pplx"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    write(path, json.loads(path.read_text()) | changes)


def plain(folder: Path, **options: Any) -> np.ndarray:
    """Vectors of the same weights without that module."""
    write(folder / "modules.json", listed("Transformer", "Pooling"))
    vectors: np.ndarray = pyenc.load(folder, dtype="float32").encode(TEXTS, **options)
    write(folder / "modules.json", listed("Transformer", "Pooling", PPLXS))
    return vectors


def test_vectors(pplx: Path, tmp_path: Path) -> None:
    encoder = pyenc.load(pplx, dtype="float32")
    assert not encoder.model.config.causal
    got = encoder.encode(TEXTS)
    assert got.dtype == np.float32
    wide = 127 * np.tanh(plain(pplx).astype(np.float64))
    # A mean that is off by its last bits may go to the other side of a half.
    clear = np.abs(wide - np.floor(wide) - 0.5) > 1e-3
    assert clear.mean() > 0.9
    assert np.array_equal(got[clear], np.round(wide)[clear])
    assert np.array_equal(got, got.astype(np.int8))
    assert np.abs(got).max() > 20
    encoder.save(tmp_path / "saved")
    assert np.array_equal(pyenc.load(tmp_path / "saved", dtype="float32").encode(TEXTS), got)


def test_what_is_asked_besides(pplx: Path) -> None:
    """Unit length after it, by argument and by module; fewer dimensions; token states stay."""
    encoder = pyenc.load(pplx, dtype="float32")
    got = encoder.encode(TEXTS)
    unit = got / np.maximum(np.linalg.norm(got, axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(encoder.encode(TEXTS, normalize=True), unit, atol=1e-6)
    assert np.array_equal(encoder.encode(TEXTS, truncate_dim=16), got[:, :16])
    states, _ = encoder.encode(TEXTS[0], output="tokens")
    assert not np.array_equal(states, np.round(states))
    write(pplx / "modules.json", listed("Transformer", "Pooling", PPLXS, "Normalize"))
    again = pyenc.load(pplx, dtype="float32").encode(TEXTS)
    np.testing.assert_allclose(again, unit, atol=1e-6)


def test_numbers() -> None:
    x = torch.tensor([0.0, -0.0, 0.5 / 127, 0.6 / 127, -0.001, 1.0, -40.0, 1e9, float("nan")])
    right = [0.0, 0.0, 0.0, 1.0, 0.0, 97.0, -127.0, 127.0]
    assert tanh_bytes(x)[:-1].tolist() == right
    assert tanh_bytes(x)[-1].isnan()
    assert tanh_bytes(x.double()).dtype == torch.float64


def test_gradient_is_that_of_tanh() -> None:
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    share = torch.randn(3, 7, dtype=torch.float64)
    made = tanh_bytes(x)
    torch.testing.assert_close(made, (127 * x.detach().tanh()).round())
    (made * share).sum().backward()
    torch.testing.assert_close(x.grad, share * (1 - x.detach().tanh() ** 2))


def test_refused(pplx: Path) -> None:
    write(pplx / "modules.json", listed("Transformer", "Pooling", PPLXS, "LayerNorm"))
    refused(pplx, f"LayerNorm after {PPLXS} is not served")
    write(pplx / "modules.json", listed("Transformer", PPLXS))
    refused(pplx, "expected one Pooling, after the Transformer")
    write(pplx / "modules.json", listed("Transformer", "Pooling", PPLXS))
    write(pplx / "2_FlexibleQuantizer/config.json", {"scale": 2.0})
    refused(pplx, "scale: an unknown setting; known: none")
    write(pplx / "2_FlexibleQuantizer/config.json", {})
    edit(pplx, model_type="qwen3")
    refused(pplx, f"module {PPLXS!r} is not served beside model_type 'qwen3'")


def test_verify_compares_what_is_not_rounded(pplx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And stored vectors as they are."""
    from pyenc.cli import verify
    from pyenc.cli.main import main

    seen: list[verify.Run] = []
    compare = verify.compare
    monkeypatch.setattr(verify, "compare", lambda *runs: seen.extend(runs) or compare(*runs))
    texts = pplx.parent / "texts.txt"
    texts.write_text("\n".join(TEXTS[2:]))
    assert main(["verify", str(pplx), "--texts", str(texts)]) == 0
    assert all(not np.array_equal(run.pooled, np.round(run.pooled)) for run in seen)
    vectors = pyenc.load(pplx, dtype="float32").encode(TEXTS[2:])
    np.save(pplx.parent / "vectors.npy", vectors)
    stored = ["--against", str(pplx.parent / "vectors.npy")]
    assert main(["verify", str(pplx), "--texts", str(texts), "--dtype", "float32", *stored]) == 0
    assert np.array_equal(seen[-1].pooled, np.round(seen[-1].pooled))
