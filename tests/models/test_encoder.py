"""`Encoder`: every layout of the same tokens agrees; training works."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from pyenc.loading import load_checkpoint
from pyenc.models import Encoder, feed_forward, packing, straight_cpu
from pyenc.models.rotary import Rotary
from tests.conftest import GOLDEN
from tests.models.shapes import ABSOLUTE, COUNTED, SHAPES, TURNED, rows

COMPILED = {name: SHAPES[name] for name in SHAPES if name not in ("alibi", "absolute")}
"""Those that `test_compile.py` does not compile as whole families."""


def padded(
    texts: list[Tensor], left: bool = False, extra: int = 0, fill: int | None = None
) -> tuple[Tensor, Tensor]:
    width = max(len(t) for t in texts) + extra
    ids = torch.randint(0, 50, (len(texts), width))  # garbage where there is padding
    if fill is not None:
        ids.fill_(fill)
    mask = torch.zeros_like(ids)
    for i, text in enumerate(texts):
        place = slice(width - len(text), width) if left else slice(0, len(text))
        ids[i, place], mask[i, place] = text, 1
    return ids, mask


@torch.no_grad()
def test_layouts_agree(encoder: Encoder) -> None:
    texts = rows([7, 1, 20, 7, 13])
    alone = [encoder(text[None])[0] for text in texts]
    packed = encoder.forward_packed(
        torch.cat(texts), torch.tensor([0, 7, 8, 28, 35, 48], dtype=torch.int32)
    )
    ids, mask = padded(texts, extra=3)
    right = encoder(ids, mask)
    order = [3, 0, 4, 2, 1]
    shuffled = encoder(ids[order], mask[order])
    for i, (text, expected) in enumerate(zip(texts, alone, strict=True)):
        start = sum(len(t) for t in texts[:i])
        for got in (
            packed[start : start + len(text)],
            right[i, : len(text)],
            shuffled[order.index(i), : len(text)],
        ):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_left_padding(encoder: Encoder) -> None:
    """Relative positions do not see it; absolute ones count columns, as the published models do."""
    texts = rows([9, 4])
    ids, mask = padded(texts, left=True, fill=encoder.config.padding_id)
    got = encoder(ids, mask)
    for i, text in enumerate(texts):
        positions = torch.arange(9 - len(text), 9)
        alone = encoder.forward_packed(text, torch.tensor([0, len(text)]), positions=positions)
        torch.testing.assert_close(got[i, 9 - len(text) :], alone, rtol=0, atol=1e-5)
        if encoder.config.position == "alibi":
            plain = encoder(text[None])[0]
            torch.testing.assert_close(alone, plain, rtol=0, atol=1e-5)


@torch.no_grad()
def test_positions_are_counted_before_masked_tokens_go() -> None:
    """RoBERTa's rule: an id that is masked and is no padding takes a position, padding never."""
    encoder = Encoder(COUNTED).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.tensor([[1, 7, 8, 1, 9, 1], [5, 6, 7, 8, 9, 4]])
    mask = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    got = encoder(ids, mask)
    alone = encoder.forward_packed(
        torch.tensor([7, 1, 9]),
        torch.tensor([0, 3]),
        positions=torch.tensor([1, 3, 4]),
        position_ids=torch.tensor([2, 1, 4]),
    )
    torch.testing.assert_close(got[0, [1, 3, 4]], alone, rtol=0, atol=1e-5)
    counted = packing.count_from_padding(
        torch.tensor([1, 7, 8, 5, 1]), torch.tensor([0, 3, 3, 5]), 1
    )
    assert counted.tolist() == [1, 2, 3, 2, 1]


@torch.no_grad()
def test_log_length_scaling_is_a_factor_of_the_scores() -> None:
    """Of queries by log(n) / log(length): the same as a scale of the scores, text by text."""
    plain = dataclasses.replace(TURNED, log_length=0, rotary=Rotary(1000.0))
    torch.manual_seed(3)
    encoder = Encoder(plain).double().eval()
    texts = rows([2, 9, 30])
    for at_least_one in (False, True):
        config = dataclasses.replace(plain, log_length=9, log_length_at_least_one=at_least_one)
        scaled = Encoder(config).double().eval()
        scaled.load_state_dict(encoder.state_dict())
        ids, mask = padded(texts)
        got = scaled(ids, mask)
        for i, text in enumerate(texts):
            factor = math.log(len(text)) / math.log(9)
            factor = max(factor, 1.0) if at_least_one else factor
            by_hand = Encoder(dataclasses.replace(plain, scale=factor * plain.head_dim**-0.5))
            by_hand.double().eval().load_state_dict(encoder.state_dict())
            off = (by_hand(text[None])[0] - got[i, : len(text)]).abs().max()
            assert off < 1e-6  # the factor is made in float32
            assert factor == 1 or (encoder(text[None])[0] - got[i, : len(text)]).abs().max() > 1e-4


@torch.no_grad()
def test_all_padding_rows_are_zeros(encoder: Encoder) -> None:
    ids = torch.zeros(3, 5, dtype=torch.long)
    mask = torch.tensor([[0] * 5, [1, 1, 0, 0, 0], [0] * 5])
    got = encoder(ids, mask)
    assert torch.equal(got[[0, 2]], torch.zeros(2, 5, 24))
    assert got[1, :2].abs().min() > 0
    assert torch.equal(encoder(ids, torch.zeros_like(ids)), torch.zeros(3, 5, 24))


@torch.no_grad()
def test_nothing_at_all(encoder: Encoder) -> None:
    assert encoder(torch.zeros(0, 4, dtype=torch.long)).shape == (0, 4, 24)
    assert encoder(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 24)


def test_garbage_under_the_mask_is_never_looked_up(encoder: Encoder) -> None:
    ids = torch.full((1, 4), 10**6)
    ids[0, :2] = 3
    assert torch.isfinite(encoder(ids, torch.tensor([[1, 1, 0, 0]]))).all()


def test_every_parameter_gets_the_gradient_of_the_dense_oracle(encoder: Encoder) -> None:
    ids, mask = padded(rows([6, 11, 1]))
    encoder = encoder.double()
    grads = []
    for backend in (None, "reference"):
        encoder.backend = backend
        loss = encoder(ids, mask).pow(2).mean()
        grads.append(torch.autograd.grad(loss, list(encoder.parameters())))
    for (name, _), a, b in zip(encoder.named_parameters(), *grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)


def test_training_applies_dropout_and_eval_does_not() -> None:
    config = dataclasses.replace(ABSOLUTE, hidden_dropout=0.3, attention_dropout=0.3)
    encoder, ids = Encoder(config), torch.randint(0, 50, (2, 12))
    torch.manual_seed(1)
    first = encoder.train()(ids)
    torch.manual_seed(1)
    assert torch.equal(encoder(ids), first)
    assert not torch.equal(encoder(ids), first)
    encoder.eval()
    assert torch.equal(encoder(ids), encoder(ids))


@pytest.mark.parametrize("encoder", COMPILED.values(), ids=COMPILED, indirect=True)
@torch.no_grad()
def test_packed_compiles_without_a_graph_break(encoder: Encoder) -> None:
    torch.compiler.reset()  # one function has so many graphs and no more, of all configs together
    ids, bounds = torch.randint(0, 50, (19,)), torch.tensor([0, 12, 19])
    compiled = torch.compile(encoder.forward_packed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids, bounds), encoder.forward_packed(ids, bounds))


@pytest.mark.parametrize("by_parts", [False, True])
@torch.no_grad()
def test_feed_forward_a_few_rows_at_a_time(
    encoder: Encoder, by_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them where products take weights apart in every call."""
    monkeypatch.setattr(straight_cpu, "_serves", lambda *_: False)  # which asks no module
    monkeypatch.setattr(feed_forward, "by_parts", lambda *_: by_parts)
    monkeypatch.setattr(straight_cpu, "CPU_BYTES", 0)  # layers that go straight take all at once
    ids, mask = padded(rows([9, 30, 2]))
    made: list[int] = []
    rows_of = feed_forward.FeedForward.rows

    def counted(
        self: feed_forward.FeedForward, x_TC: torch.Tensor, backend: str | None
    ) -> torch.Tensor:
        made.append(len(x_TC) * self.width * x_TC.element_size())
        return rows_of(self, x_TC, backend)

    monkeypatch.setattr(feed_forward.FeedForward, "rows", counted)
    whole = encoder(ids, mask)
    layers = sum(isinstance(m, feed_forward.FeedForward) for m in encoder.modules())
    assert len(made) == layers
    few, many, a_row = made[0] // 12, made[0] // 5, made[0] // 41
    monkeypatch.setattr(feed_forward, "CPU_BYTES", few)
    monkeypatch.setattr(feed_forward, "PARTS_BYTES", many)
    made.clear()
    torch.testing.assert_close(encoder(ids, mask), whole, rtol=0, atol=1e-5)
    most, times = (many, 5) if by_parts else (few, 12)
    assert times <= len(made) / layers <= times + 2
    assert max(made) - min(made) <= a_row
    assert max(made) <= most + a_row


def test_no_buffers(encoder: Encoder) -> None:
    """Buffers come back as garbage when a model is built on the meta device."""
    assert list(encoder.buffers()) == []


@torch.no_grad()
def test_many_threads_share_one_encoder() -> None:
    from concurrent.futures import ThreadPoolExecutor

    encoder = load_checkpoint(GOLDEN / "jina_geglu_h4").encoder
    ids = [torch.randint(0, 128, (2, n)) for n in range(1, 17)]
    expected = [encoder(x) for x in ids]

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return encoder(x)

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(a, b) for a, b in zip(pool.map(run, ids), expected, strict=True))
