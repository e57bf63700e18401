"""`Encoder`: every layout of the same tokens agrees; bad input is named; training works."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.loading import load_checkpoint
from pyenc.models import (
    Convolution,
    Disentangled,
    Encoder,
    EncoderConfig,
    Experts,
    feed_forward,
    packing,
    straight_cpu,
)
from pyenc.models import encoder as encoder_module
from pyenc.models.rotary import Rotary
from tests.conftest import GOLDEN

ALIBI = EncoderConfig(
    vocab_size=50, hidden_size=24, num_layers=2, num_heads=3, intermediate_size=20,
    position="alibi", max_length=64, type_vocab_size=2, gated=True, up_bias=False,
)  # fmt: skip
ABSOLUTE = dataclasses.replace(
    ALIBI, position="absolute", num_positions=40, gated=False, up_bias=True, activation="silu"
)


COUNTED = dataclasses.replace(
    ABSOLUTE, num_positions=42, padding_id=1, relative_buckets=8, relative_max_distance=20
)
TURNED = dataclasses.replace(
    ALIBI,
    position="rotary",
    rotary=Rotary(1000.0, dynamic_factor=2.0, trained_length=12),
    log_length=9,
)
PRE_NORM = dataclasses.replace(
    ALIBI,
    position="relative",
    relative_buckets=8,
    relative_max_distance=20,
    head_size=10,
    scale=1.0,
    norm="rms",
    norm_first=True,
    embedding_norm=False,
    wide_residual=True,
)
WINDOWS = dataclasses.replace(
    ALIBI,
    position="rotary",
    rotary=Rotary(1000.0),
    local_rotary=Rotary(50.0),
    window=2,
    local=(True, False),
    norm_first=True,
    first_norm=False,
    norm_bias=False,
)
MIXTURE = dataclasses.replace(
    ABSOLUTE, position="rotary", num_positions=0, rotary=Rotary(1000.0),
    experts=Experts(count=5, each=2, layers=(False, True)),
)  # fmt: skip
DISTANCES = dataclasses.replace(
    ALIBI, position="disentangled", disentangled=Disentangled(8, 8, 20, norm=True),
    convolution=Convolution(3, 3),
)  # fmt: skip
OWN_DISTANCES = dataclasses.replace(
    ABSOLUTE, position="disentangled", num_positions=0, norm_first=True, head_size=10,
    disentangled=Disentangled(5, content_to_position=False, shared=False),
)  # fmt: skip
SHAPES = {
    "alibi": ALIBI,
    "absolute": ABSOLUTE,
    "counted": COUNTED,
    "turned": TURNED,
    "pre_norm": PRE_NORM,
    "windows": WINDOWS,
    "mixture": MIXTURE,
    "distances": DISTANCES,
    "own_distances": OWN_DISTANCES,
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    encoder = Encoder(request.param).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def rows(lengths: list[int]) -> list[Tensor]:
    return [torch.randint(0, 50, (n,)) for n in lengths]


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


def test_bad_input_is_named(encoder: Encoder) -> None:
    ids = torch.zeros(2, 5, dtype=torch.long)
    high, low = ids.clone(), ids.clone()
    high[1, 3], low[0, 2] = 50, -1
    for given, message in (
        ((high,), "token id 50 at packed token 8 is out of range.* 0 to 49"),
        ((low,), "token id -1 at packed token 2"),
        ((ids, None, ids + 2), "token type 2 .* 0 to 1"),
        ((ids, torch.ones(2, 4)), r"attention_mask must be a tensor shaped as input_ids, \(2, 5\)"),
        ((ids, torch.full((2, 5), -10000.0)), "zeros and ones only"),
        ((ids.float(),), "must be integers"),
        ((ids.short(),), "must be integers, int32 or int64, got torch.int16"),
        ((ids.numpy(),), "input_ids must be a tensor, got ndarray"),
        ((ids, None, ids.float()), "token_type_ids must be integers"),
        ((ids[0],), r"must be \(B, N\)"),
    ):
        with pytest.raises(InputError, match=message):
            encoder(*given)


@pytest.mark.parametrize(
    ("ids", "bounds", "message"),
    [
        (torch.zeros(4).long(), [0, 5], "ends at 5, but there are 4 packed tokens"),
        (torch.zeros(4).long(), [0, 3, 2, 4], "decreases from 3 to 2"),
        (torch.zeros(4).long(), [-1, 4], "must start at 0"),
        (torch.zeros(4), [0, 4], "input_ids must be integers, int32 or int64"),
        (torch.zeros(2, 2).long(), [0, 4], r"input_ids must be \(T,\)"),
    ],
)
def test_bad_packed_input_is_named(
    encoder: Encoder, ids: Tensor, bounds: list[int], message: str
) -> None:
    for take in (encoder.forward_packed, encoder.check):
        with pytest.raises(InputError, match=message):
            take(ids, torch.tensor(bounds))


@torch.no_grad()
def test_checked_is_looked_at_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, bounds = torch.randint(0, 50, (9,)), torch.tensor([0, 4, 9])
    with pytest.raises(InputError, match="token id 50 at packed token 1"):
        encoder.check(torch.tensor([3, 50]), torch.tensor([0, 2]))
    if encoder.config.position == "absolute":
        with pytest.raises(InputError, match=r"position 4[02] at packed token 40"):
            encoder.check(torch.zeros(41).long(), torch.tensor([0, 41]))
    with pytest.raises(InputError, match="token type 9 at packed token 2"):
        encoder.check(ids, bounds, token_type_ids=torch.tensor([0, 1, 9] * 3))
    if encoder.config.position == "absolute":
        with pytest.raises(InputError, match="position 4000 at packed token 2"):
            encoder.check(ids[:3], torch.tensor([0, 3]), position_ids=torch.tensor([0, 1, 4000]))
    expected = encoder.forward_packed(ids, bounds)
    encoder.check(ids, bounds)

    def looked(*args: object, **kwargs: object) -> None:
        raise AssertionError("values were looked at")

    monkeypatch.setattr(encoder_module, "check_ranges", looked)
    monkeypatch.setattr(packing, "sequence_bounds", looked)
    assert torch.equal(encoder.forward_packed(ids, bounds, checked=True), expected)


def test_garbage_under_the_mask_is_never_looked_up(encoder: Encoder) -> None:
    ids = torch.full((1, 4), 10**6)
    ids[0, :2] = 3
    assert torch.isfinite(encoder(ids, torch.tensor([[1, 1, 0, 0]]))).all()


def test_beyond_the_position_table() -> None:
    encoder = Encoder(ABSOLUTE)
    with pytest.raises(InputError, match=r"position 40 .* 0 to 39"):
        encoder(torch.zeros(1, 41, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 25}, "hidden_size 25 is not a multiple of num_heads 3"),
        ({"num_layers": 0}, "num_layers must be positive"),
        ({"activation": "elu"}, "unknown activation 'elu'"),
        ({"position": "rope"}, "unknown position"),
        ({"position": "absolute"}, "need num_positions"),
        ({"hidden_dropout": 1.0}, r"hidden_dropout must be in \[0, 1\)"),
        ({"position": "rotary"}, 'position "rotary" needs the field rotary'),
        ({"rotary": Rotary(1.0)}, 'position "rotary" needs the field rotary'),
        ({"position": "rotary", "rotary": Rotary(9.0), "head_size": 5}, "rotary needs even heads"),
        (
            {"position": "rotary", "head_size": 2, "rotary": Rotary(9.0, 1.0, 2.0, 8)},
            "dynamic rotary scaling needs heads of 4",
        ),
        ({"position": "relative"}, "relative positions need relative_buckets"),
        ({"relative_buckets": 8}, "relative_buckets 8 must be .* not beside alibi"),
        ({"position": "relative", "relative_buckets": 6}, "must be a multiple of 4"),
        ({"local": (True, False)}, "local layers need a window"),
        ({"local": (True,), "window": 4}, "local names 1 of 2 layers"),
        ({"padding_id": -1}, "padding_id must not be negative"),
        ({"position": "disentangled"}, 'position "disentangled" needs the field disentangled'),
        ({"disentangled": Disentangled(8)}, 'position "disentangled" needs the field disentangled'),
        *[
            (
                {"position": "disentangled", "disentangled": Disentangled(8), **beside},
                f'{next(iter(beside))} .* is not served beside position "disentangled"',
            )
            for beside in (
                {"causal": True},
                {"local": (True, False), "window": 3},
                {"qk_norm": True},
                {"head_norm": True},
                {"num_kv_heads": 1},
                {"log_length": 9},
            )
        ],
        (
            {"convolution": Convolution(3, 5)},
            "hidden_size 24 is not a multiple of the convolution's groups 5",
        ),
        ({"convolution": Convolution(3), "norm_first": True}, "a convolution goes without norm_"),
        ({"log_length": 1}, "log_length must be at least 2"),
        *[({"norm_eps": e}, "norm_eps must be finite") for e in (-1e-12, math.nan, math.inf)],
    ],
)
def test_impossible_configs(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(ALIBI, **change)  # type: ignore[arg-type]


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
