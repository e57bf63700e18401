"""`torch.compile` takes a whole encoder as one graph, and nothing it answers changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.loading import load_checkpoint
from pyenc.models import Encoder
from pyenc.ops.linear import onednn as linear_onednn
from pyenc.ops.linear import packs as linear_packs
from tests.conftest import GOLDEN
from tests.oracle import assert_right

BATCHES = [[5, 1, 12], [3, 9, 2, 7]]

Compile = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


@pytest.fixture
def compiled(request: pytest.FixtureRequest) -> Iterator[Compile]:
    """torch.compile that takes a graph break for an error; without code where no test asks."""
    backend = getattr(request, "param", "aot_eager")
    torch._dynamo.reset()
    yield lambda function: torch.compile(function, fullgraph=True, backend=backend)
    torch._dynamo.reset()


def load(name: str) -> Encoder:
    return load_checkpoint(GOLDEN / name, skip_eps=0).encoder


def oracle_of(encoder: Encoder) -> Encoder:
    oracle = copy.deepcopy(encoder).double()
    oracle.backend = "reference"
    return oracle


def packed_batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randint(0, 100, (sum(lengths),)), bounds


def test_numbers_of_a_module_may_be_symbols() -> None:
    """As they are under dynamic=True: the scale of the scores, the factor of the embeddings."""
    encoder = load("gemma_embed_like_h3")
    encoder.layers = encoder.layers[:1]  # the others are like it, and each is traced for long
    torch._dynamo.reset()
    run = torch.compile(encoder.forward_packed, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in BATCHES:
        batch = packed_batch(lengths)
        with torch.no_grad():
            naive, oracle = (m.forward_packed(*batch) for m in (encoder, oracle_of(encoder)))
            assert_right(run(*batch), naive, oracle)
    torch._dynamo.reset()


def masked_batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Padding right, left, and a hole."""
    mask = (torch.arange(max(lengths) + 1) < torch.tensor(lengths)[:, None]).long()
    mask[1] = mask[1].flip(0)
    mask[-1, 1] = 0
    return torch.randint(0, 100, mask.shape), mask


def gradients(encoder: Encoder, hidden: Tensor) -> tuple[Tensor, ...]:
    used = [p for name, p in encoder.named_parameters() if not name.startswith("pooler")]
    torch.manual_seed(3)
    weight = torch.randn(hidden.shape, dtype=torch.float64).to(hidden.dtype)
    return torch.autograd.grad((hidden * weight).sum(), used, materialize_grads=True)


def check(
    encoder: Encoder, run: Callable[..., Tensor], method: str, batch: tuple[Tensor, ...]
) -> None:
    """Hidden states and every gradient, beside the float64 oracle."""
    models = (encoder, oracle_of(encoder))
    naive, oracle = (getattr(model, method)(*batch) for model in models)
    with torch.no_grad():
        assert_right(run(*batch), naive, oracle, what="without gradients")
    hidden = run(*batch)
    assert_right(hidden, naive, oracle, what="with gradients")
    grads = (
        gradients(*pair) for pair in ((encoder, hidden), (encoder, naive), (models[1], oracle))
    )
    for three in zip(*grads, strict=True):
        assert_right(*three, gradient=True)


INDUCTOR = pytest.param("jina_geglu_h4", "inductor", marks=pytest.mark.slow)
"""Traces what `aot_eager` does, and makes code of it."""


@pytest.mark.parametrize(
    ("name", "compiled"),
    [("jina_qk_h4", "aot_eager"), INDUCTOR],
    indirect=["compiled"],
)
def test_packed(name: str, compiled: Compile) -> None:
    encoder = load(name)
    run = compiled(encoder.forward_packed)
    check(encoder, run, "forward_packed", packed_batch(BATCHES[0]))
    batch = packed_batch(BATCHES[1])
    with torch.no_grad():
        naive, oracle = (m.forward_packed(*batch) for m in (encoder, oracle_of(encoder)))
        assert_right(run(*batch), naive, oracle, what="another length")


def test_token_logits(compiled: Compile) -> None:
    """Of rows, and of hidden states; into the embeddings by both ways."""
    encoder = load("mosaic_mlm_h4")
    batch = (torch.randint(0, 100, (2, 6)),)
    check(encoder, compiled(encoder.token_logits), "token_logits", batch)
    hidden = torch.randn(7, encoder.config.hidden_size)
    naive, oracle = encoder.logits(hidden), oracle_of(encoder).logits(hidden.double())
    assert_right(compiled(encoder.logits)(hidden), naive, oracle)


def test_rows_without_a_mask(compiled: Compile) -> None:
    """Of a plain encoder; `test_token_logits` takes such rows of a gated one."""
    encoder = load("bert_mean_h4")
    check(encoder, compiled(encoder), "forward", (torch.randint(0, 100, (3, 7)),))


def test_rows_under_a_mask(compiled: Compile) -> None:
    """How many tokens there are is then in the mask's values: a setting of torch's lets it in."""
    encoder = load("jina_geglu_h4")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        run = compiled(encoder)
        check(encoder, run, "forward", masked_batch(BATCHES[1]))
        ids, mask = masked_batch(BATCHES[0])
        with pytest.raises(RuntimeError, match="attention_mask must hold zeros and ones only"):
            run(ids, mask * -10000)


@pytest.mark.parametrize("name", ["bert_mean_h4", "nomic_ntk_h3"])
@torch.no_grad()
def test_exported_with_a_mask(name: str) -> None:
    """Token types that nobody gave, and turns by a text's length, held in a graph without end."""
    encoder = load(name)
    encoder.layers = encoder.layers[:1]
    sizes = {0: torch.export.Dim("rows", min=2), 1: torch.export.Dim("width", min=2)}
    exported = torch.export.export(encoder, masked_batch(BATCHES[0]), dynamic_shapes=(sizes, sizes))
    for lengths in BATCHES:
        batch = masked_batch(lengths)
        naive, oracle = encoder(*batch), oracle_of(encoder)(*batch)
        assert_right(exported.module()(*batch), naive, oracle)


@torch.no_grad()
def test_with_graph_breaks_where_torch_is_not_told() -> None:
    encoder, batch = load("jina_geglu_h4"), masked_batch(BATCHES[0])
    torch._dynamo.reset()
    run = torch.compile(encoder, backend="aot_eager")
    naive, oracle = encoder(*batch), oracle_of(encoder)(*batch)
    assert_right(run(*batch), naive, oracle)
    with pytest.raises(InputError, match="attention_mask must hold zeros and ones only"):
        run(batch[0], batch[1] * -10000)


@pytest.mark.parametrize(
    ("name", "compiled"),
    [("bert_mean_h4", "aot_eager"), INDUCTOR],
    indirect=["compiled"],
)
def test_training_steps(name: str, compiled: Compile) -> None:
    """Forward, backward and optimizer, twice, beside a twin that is not compiled."""
    trained = load(name)
    twin = copy.deepcopy(trained)
    ids, bounds = packed_batch(BATCHES[0])
    target = torch.randn(len(ids), trained.config.hidden_size)
    # Plain descent: Adam divides by what is only noise where a gradient is zero.
    for model in (trained, twin):
        run = compiled(model.forward_packed) if model is trained else model.forward_packed
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (run(ids, bounds) - target).square().mean().backward()
            optimizer.step()
    for (key, a), b in zip(trained.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=key)


def test_dropout_compiles(compiled: Compile) -> None:
    encoder = load_checkpoint(GOLDEN / "jina_geglu_h4").encoder.train()
    for part in encoder.modules():
        if hasattr(part, "dropout"):
            part.dropout = 0.2
    run, batch = compiled(encoder.forward_packed), packed_batch(BATCHES[0])
    first = run(*batch)
    assert not torch.equal(first, run(*batch))
    assert all(grad.isfinite().all() for grad in gradients(encoder, first))


@pytest.mark.skipif(
    linear_onednn.why_not(torch.float32) is not None,
    reason=str(linear_onednn.why_not(torch.float32)),
)
@pytest.mark.parametrize("name", ["bert_mean_h4", "jina_geglu_h4"])
def test_packed_weights(name: str, compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's linear layers are in the graph, and see that a training step changed the weights."""
    monkeypatch.setenv(linear_onednn.VARIABLE, "onednn")
    linear_packs.forget_all()
    encoder = load(name)
    run, batch = compiled(encoder.forward_packed), packed_batch(BATCHES[0])
    layers = [m for m in encoder.layers.modules() if isinstance(m, torch.nn.Linear)]
    size = sum(4 * m.weight.numel() for m in layers)
    for _ in range(2):
        check(encoder, run, "forward_packed", batch)
        assert linear_packs.held() == size
        encoder.zero_grad()
        run(*batch).square().mean().backward()
        torch.optim.SGD(encoder.parameters(), lr=0.1).step()
        assert linear_packs.held() == 0
