"""State that others own: torch's global defaults, generators and modes change no answer, and are
left as they were found."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyenc
from pyenc.ops import (
    ALiBi,
    DistanceRows,
    RelativePositionBias,
    add_layer_norm,
    add_rms_norm,
    alibi_slopes,
    attention,
    computed_share,
    disentangled_attention,
    embedding_norm,
    extension,
    gated_activation,
    gated_linear,
    linear,
    masked_mean_pool,
    rms_norm_rotary,
    rotary,
    segment_mean,
)
from tests.conftest import GOLDEN

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("cpu", "torch", "reference")
OPS_BACKENDS = ("auto", *BACKENDS)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Callable[[], Any]] = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "a device's context": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "numpy's errors": lambda: np.errstate(all="raise"),
}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float32, device="cpu")


def same(before: list[Any], after: list[Any]) -> None:
    assert len(before) == len(after)
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        assert type(a) is type(b), i
        if isinstance(a, Tensor):
            assert (a.dtype, a.device) == (b.dtype, b.device), i
            assert torch.equal(a, b), i
        else:
            assert np.array_equal(a, b), i
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None), i


# ---- the encoder ------------------------------------------------------------------------------


def encoded(golden: str, backend: str) -> list[Any]:
    """Vectors, token states, hidden states and gradients of a checkpoint loaded anew."""
    encoder = pyenc.load(GOLDEN / golden, device="cpu", backend=backend)
    texts = ["the sky is blue", "", "a quick brown fox " * 10]
    answers: list[Any] = [encoder.encode(texts), encoder.encode(texts[0])]
    answers.append(encoder.encode(texts, normalize=True, truncate_dim=20, convert_to_tensor=True))
    answers += [row.vectors for row in encoder.encode(texts, output="tokens")]
    model = encoder.model
    ids = torch.arange(5, 45, dtype=torch.int64, device="cpu").view(2, 20)
    mask = torch.ones(2, 20, dtype=torch.int64, device="cpu")
    mask[0, 15:], mask[1, 3] = 0, 0
    for given in (None, mask):
        hidden = model(ids, given)
        hidden.square().sum().backward()
        answers.append(hidden.detach())
    answers += [p.grad for p in model.parameters() if p.grad is not None]
    return answers


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("golden", ["jina_qk_h6", "bert_cls_h2"])
def test_load_and_encode(golden: str, backend: str) -> None:
    if backend == "cpu" and extension.why_missing():
        pytest.skip(extension.why_missing())
    before = encoded(golden, backend)
    for state in STATES.values():
        with state():
            after = encoded(golden, backend)
        same(before, after)


def test_poolings_and_saving(tmp_path: Path) -> None:
    def answers(to: Path) -> list[Any]:
        found = []
        for pooling in ("cls", "max", "lasttoken"):
            encoder = pyenc.load(GOLDEN / "bert_mean_h4", device="cpu", pooling=pooling)
            found.append(encoder.encode(["the sky", "", "a"], prompt="why: "))
            found.append(encoder.encode("the sky", instruction="why: "))
            encoder.save(to)
            found.append(pyenc.load(to, device="cpu").encode("the sky"))
        return found

    before = answers(tmp_path / "before")
    for name in ("float64", "float16", "meta"):
        with STATES[name]():
            after = answers(tmp_path / name)
        same(before, after)
        for path in (tmp_path / "before").rglob("*"):
            if path.is_file():
                assert (
                    path.read_bytes()
                    == (tmp_path / name / path.relative_to(tmp_path / "before")).read_bytes()
                )


# ---- the ops ----------------------------------------------------------------------------------

LENGTHS = (5, 1, 0, 70, 1)


def lengths() -> Tensor:
    bounds = np.cumsum([0, *LENGTHS])
    return torch.from_numpy(bounds)


def biases() -> dict[str, Any]:
    return {
        "none": None,
        "alibi": ALiBi(alibi_slopes(3)),
        "t5": RelativePositionBias(random(8, 3), max_distance=32),
        "dense": random(3, 70, 70),
    }


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


def with_gradients(run: Callable[..., Tensor], *inputs: Tensor) -> list[Any]:
    given = leaves(*inputs)
    out = run(*given)
    out.square().sum().backward()
    return [out.detach(), *(t.grad for t in given)]


def attention_calls(backend: str) -> list[Callable[[], list[Any]]]:
    qkv = [random(sum(LENGTHS), 3, 8) for _ in range(3)]
    calls = []
    for name, bias in biases().items():
        dense = name == "dense" and backend == "cpu"  # its gradient is torch's
        for options in ({}, {"window": (3, 4)}, {"positions": True}, {"skip_eps": 0.0}):
            if options.get("positions") and (dense or name == "none"):
                continue
            options = dict(options)
            if options.pop("positions", False):
                spread = [np.arange(n) * 2 for n in LENGTHS]
                options["positions"] = torch.from_numpy(np.concatenate(spread))

            def call(bias: Any = bias, options: dict[str, Any] = options) -> list[Any]:
                def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                    out = attention(q, k, v, lengths(), bias=bias, backend=backend, **options)
                    assert isinstance(out, Tensor)
                    return out

                return with_gradients(run, *qkv)

            calls.append(call)
    return calls


def other_calls(backend: str) -> list[Callable[[], list[Any]]]:
    x, y, w, b = random(77, 16), random(77, 16), random(16), random(16)
    wide, mask = random(24, 16), torch.ones(7, 11, dtype=torch.int64, device="cpu")
    mask[2, 4:], mask[3] = 0, 0
    angles = torch.arange(80 * 4, dtype=torch.float32, device="cpu").view(80, 4)
    at = torch.from_numpy(np.concatenate([np.arange(n) for n in LENGTHS]))
    weights = torch.rand(77, dtype=torch.float32, device="cpu")
    heads, positions = random(77, 2, 8), random(8, 2, 8)
    rows, table = random(7, 11, 16), random(99, 16)

    def norm(f: Any) -> Callable[..., Tensor]:
        return lambda *args: f(*args, 1e-6, backend=backend)[0]

    return [
        lambda: with_gradients(norm(add_layer_norm), x, y, w, b),
        lambda: with_gradients(norm(add_rms_norm), x, y, w),
        lambda: with_gradients(
            lambda t, s: embedding_norm(at, t, s, None, 1e-6, backend=backend), table, w
        ),
        lambda: with_gradients(lambda g, v: gated_activation(g, v, "gelu", backend=backend), x, y),
        lambda: with_gradients(
            lambda a, c: gated_linear(a, c, None, "silu", backend=backend), x, wide
        ),
        lambda: with_gradients(lambda a, c: linear(a, c, None, "gelu", backend=backend), x, wide),
        lambda: with_gradients(
            lambda a: rotary(a, angles.cos(), angles.sin(), at, backend=backend), heads
        ),
        lambda: with_gradients(
            lambda a, s: rms_norm_rotary(
                a, s, angles.cos(), angles.sin(), at, 1e-6, k_weight=s, k_heads=1, backend=backend
            ),
            heads,
            w[: heads.shape[2]],
        ),
        lambda: with_gradients(
            lambda a, c: disentangled_attention(
                a, a, a, lengths(), position_keys=c, position_queries=c,
                rows=DistanceRows(4, 4, 16), backend=backend,
            ),
            heads, positions,
        ),
        lambda: with_gradients(
            lambda a, c: segment_mean(a, lengths(), c, normalize=True, backend=backend), x, weights
        ),
        lambda: with_gradients(lambda a: masked_mean_pool(a, mask, backend=backend), rows),
    ]  # fmt: skip


@pytest.mark.parametrize("which", ["attention", "others"])
@pytest.mark.parametrize("backend", OPS_BACKENDS)
def test_every_op(which: str, backend: str) -> None:
    if backend == "cpu" and extension.why_missing():
        pytest.skip(extension.why_missing())
    calls = (attention_calls if which == "attention" else other_calls)(backend)
    for call in calls:
        before = call()
        for state in STATES.values():
            with state():
                after = call()
            same(before, after)


def test_slopes_and_shares() -> None:
    q, k, v = (random(77, 3, 8) for _ in range(3))

    def answers() -> list[Any]:
        share = computed_share(q, k, v, lengths(), bias=ALiBi(alibi_slopes(3)))
        return [alibi_slopes(6), alibi_slopes(12), share]

    before = answers()
    for state in STATES.values():
        with state():
            after = answers()
        same(before, after)


def test_dropout_has_the_same_mask() -> None:
    def answer() -> list[Any]:
        torch.manual_seed(3)
        q = torch.ones(40, 2, 8, dtype=torch.float32, device="cpu")
        bounds = torch.from_numpy(np.array([0, 40]))
        v = torch.arange(640, dtype=torch.float32, device="cpu").view(40, 2, 8)
        out = attention(q, q, v, bounds, dropout_p=0.4, backend="torch")
        return [out]

    before = answer()
    for state in STATES.values():
        with state():
            after = answer()
        same(before, after)


# ---- what is left as it was -------------------------------------------------------------------


def whole_state() -> dict[str, Any]:
    return {
        "torch's generator": torch.random.get_rng_state().tolist(),
        "numpy's generator": str(np.random.get_state()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "numpy's errors": np.geterr(),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "mkldnn": torch.backends.mkldnn.enabled,
        "precision": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "printing": torch._tensor_str.PRINT_OPTS.precision,
    }


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_others_state_is_left_alone(backend: str, tmp_path: Path) -> None:
    encoded("jina_geglu_h4", backend)  # what is made once a process has been
    del os.environ["PYTEST_CURRENT_TEST"]
    before = whole_state()
    encoded("jina_geglu_h4", backend)
    pyenc.load(GOLDEN / "bert_mean_h4", backend=backend).save(tmp_path)
    after = whole_state()
    for name in before:
        assert before[name] == after[name], name


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("backend", BACKENDS)
def test_modes_of_gradients(backend: str, mode: Any) -> None:
    """The vectors are the same whatever the mode, at load and at encode."""
    folder, texts = GOLDEN / "jina_geglu_h4", ["the sky is blue", "a quick brown fox " * 20]
    right = pyenc.load(folder, backend=backend).encode(texts)
    with mode():
        encoder = pyenc.load(folder, backend=backend)
        within = encoder.encode(texts)
    assert (within == right).all()
    assert (encoder.encode(texts) == right).all()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_what_was_loaded_without_gradients_is_trained(mode: Any) -> None:
    """An encoder does not keep the mode that it was loaded in."""
    ids = torch.tensor([[5, 9, 7]])

    def gradient(encoder: pyenc.Encoder) -> Tensor:
        encoder(ids).square().sum().backward()
        found = encoder.embeddings.word.weight.grad
        assert found is not None
        return found

    right = gradient(pyenc.load(GOLDEN / "jina_geglu_h4").model)
    with mode():
        encoder = pyenc.load(GOLDEN / "jina_geglu_h4")
        encoder.encode(["the sky is blue"])
    assert torch.equal(gradient(encoder.model), right)
