"""An accelerated model answers as the plain one, whatever it is asked through its own API."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers")

from pyenc.integrations.borrowed import batches
from pyenc.integrations.sentence_transformers import accelerate, modules
from tests.integrations.sentence_transformers.models import TEXTS, loaded

NEAR = 1e-5

Pair = tuple[Any, Any]


def off(a: Any, b: Any) -> float:
    a, b = (torch.as_tensor(np.asarray(x)).double() for x in (a, b))
    assert a.shape == b.shape
    return float((a - b).abs().max())


def is_accelerated(model: Any) -> bool:
    return isinstance(model[0], modules.PackedTransformer)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_vectors(pair: Pair, batch_size: int) -> None:
    plain, ours = pair
    assert is_accelerated(ours)
    assert not is_accelerated(plain)
    a, b = (m.encode(TEXTS, batch_size=batch_size) for m in (plain, ours))
    assert a.dtype == b.dtype
    assert off(a, b) <= NEAR


def test_the_encoder_is_ours(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a comparison of a model with itself: its own code is not run, and gives other bits."""
    plain, ours = pair

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model's own layers were run")

    children = [module for module in ours[0].model.modules() if module is not ours[0].model]
    first = next(module for module in children if isinstance(module, torch.nn.Linear))
    for kind in {type(first)}:
        monkeypatch.setattr(kind, "forward", never)
        if kind is torch.nn.Linear:  # pyenc's own layers are a subclass, with a forward of theirs
            break
    with torch.no_grad():
        ours[0](ours.preprocess(TEXTS))
    with pytest.raises(AssertionError):
        plain[0](plain.preprocess(TEXTS))


def test_verbs(pair: Pair) -> None:
    plain, ours = pair
    queries, documents = TEXTS[:3], TEXTS[3:]
    for verb, texts in (("encode_query", queries), ("encode_document", documents)):
        assert off(*(getattr(m, verb)(texts) for m in pair)) <= NEAR
    scores = [m.similarity(m.encode_query(queries), m.encode_document(documents)) for m in pair]
    assert off(*scores) <= NEAR
    assert off(*(m.encode(TEXTS[3]) for m in pair)) <= NEAR
    assert off(*(m.encode(TEXTS, normalize_embeddings=True, truncate_dim=7) for m in pair)) <= NEAR
    a, b = (m.encode(TEXTS, convert_to_tensor=True) for m in pair)
    assert isinstance(b, torch.Tensor)
    assert a.device == b.device
    assert a.dtype == b.dtype
    assert ours.encode([]).shape == plain.encode([]).shape


def test_token_embeddings(pair: Pair) -> None:
    theirs, ours = (m.encode(TEXTS, output_value="token_embeddings") for m in pair)
    left = pair[0].tokenizer.padding_side == "left"
    for text, a, b in zip(TEXTS, theirs, ours, strict=True):
        assert len(a) == len(b)
        if left:  # and left there, of the longest in the batch: not the text's
            tokens = int(pair[0].preprocess([text])["attention_mask"].sum())
            assert not b[:-tokens].any()
            a, b = a[-tokens:], b[-tokens:]
        assert off(a, b) <= 1e-4 * max(1.0, float(a.abs().max()))


def test_all_features(pair: Pair) -> None:
    try:
        theirs = pair[0].encode(TEXTS, output_value=None)
    except IndexError as error:  # in 6.0 and 6.1
        pytest.skip(f"this sentence-transformers cannot, plain: {error}")
    ours = pair[1].encode(TEXTS, output_value=None)
    for a, b in zip(theirs, ours, strict=True):
        assert a.keys() == b.keys()
        assert off(a["sentence_embedding"], b["sentence_embedding"]) <= NEAR
        assert torch.equal(a["input_ids"], b["input_ids"])
        assert not b["token_embeddings"][b["attention_mask"] == 0].any()


@pytest.mark.parametrize("include", [True, False])
def test_prompts(pair: Pair, include: bool) -> None:
    models = [copy.deepcopy(m) for m in pair]
    vectors = []
    for model in models:
        model.set_pooling_include_prompt(include)
        model.prompts = {"query": "find this: ", "document": ""}
        vectors.append(
            [
                model.encode_query(TEXTS),
                model.encode(TEXTS, prompt="another one, "),
                model.encode(TEXTS, prompt_name="document"),
            ]
        )
    for a, b in zip(*vectors, strict=True):
        assert off(a, b) <= NEAR
    if include:
        assert off(vectors[1][0], vectors[1][2]) > NEAR, "a prompt changes the vectors"


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precision(precision: str) -> None:
    plain = loaded("bert_mean_h4")
    ours = accelerate(copy.deepcopy(plain))
    texts = [f"{text} {i}" for i in range(20) for text in TEXTS]
    a, b = (m.encode(texts, precision=precision) for m in (plain, ours))
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    differing = (a != b).mean()
    # A value at the edge of a step may fall on the other side of it.
    assert differing < 0.01, differing
    if precision.endswith("int8"):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


POOLINGS = [
    "cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken",
    ("mean", "max"), ("cls", "mean", "weightedmean"), ("mean_sqrt_len_tokens", "weightedmean"),
]  # fmt: skip


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("mode", POOLINGS, ids=str)
def test_every_pooling(bert: Any, mode: Any, side: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    width = bert[0].get_embedding_dimension()
    for include in (True, False):
        pooling = Pooling(width, pooling_mode=mode, include_prompt=include)
        plain = SentenceTransformer(modules=[bert[0], pooling], device="cpu")
        plain.tokenizer.padding_side = side
        ours = accelerate(copy.deepcopy(plain))
        assert is_accelerated(ours)
        assert off(*(m.encode(TEXTS, prompt="some prompt ") for m in (plain, ours))) <= NEAR


def test_layers_behind_several_poolings(bert: Any, packed: list[Any]) -> None:
    """Their own code, on vectors of packed states; gradients come to all of them."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    width = 2 * bert[0].get_embedding_dimension()
    torch.manual_seed(0)
    behind = [
        Pooling(width // 2, pooling_mode=("weightedmean", "mean_sqrt_len_tokens")),
        LayerNorm(width), Dense(width, 5, activation_function=torch.nn.GELU()),
    ]  # fmt: skip
    plain = SentenceTransformer(modules=[bert[0], *behind], device="cpu")
    ours = accelerate(copy.deepcopy(plain))
    assert off(*(m.encode(TEXTS) for m in (plain, ours))) <= NEAR
    gradients = []
    for model in (plain.eval(), ours.eval()):
        model(model.preprocess(TEXTS))["sentence_embedding"].square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert len(packed) == 2
    assert gradients[0].keys() == gradients[1].keys()
    for name, right in gradients[0].items():
        found = gradients[1][name]
        assert (right is None) == (found is None), name
        if right is not None:
            assert off(right, found) <= 1e-4 * max(1.0, float(right.abs().max())), name


def test_modules_between_and_behind(bert: Any) -> None:
    """What stands where the pooling was finds the padded states."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import CNN, Dense, Pooling

    width = bert[0].get_embedding_dimension()
    torch.manual_seed(0)
    between = CNN(width, out_channels=8, kernel_sizes=[1])
    dense = Dense(between.get_embedding_dimension(), 5)
    plain = SentenceTransformer(
        modules=[bert[0], between, Pooling(between.get_embedding_dimension()), dense], device="cpu"
    )
    ours = accelerate(copy.deepcopy(plain))
    assert is_accelerated(ours)
    assert off(*(m.encode(TEXTS) for m in (plain, ours))) <= NEAR


def test_long_batches_in_parts(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair
    whole = ours.encode(TEXTS)
    monkeypatch.setattr(batches, "BATCH_TOKENS", 17)
    assert off(whole, ours.encode(TEXTS)) <= NEAR


def test_truncated_as_theirs(pair: Pair) -> None:
    for limit in (3, 9):
        models = [copy.deepcopy(m) for m in pair]
        for model in models:
            model.max_seq_length = limit
        assert off(*(m.encode(TEXTS) for m in models)) <= NEAR


def test_the_mask_has_holes(bert: Any) -> None:
    plain, ours = bert, accelerate(copy.deepcopy(bert))
    features = plain.preprocess(TEXTS)
    features["attention_mask"][:, 2] = 0
    features["attention_mask"][3, 10:14] = 0
    with torch.no_grad():
        a, b = (m(dict(features))["sentence_embedding"] for m in (plain, ours))
    assert off(a, b) <= NEAR


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(pair: Pair, dtype: torch.dtype) -> None:
    """At most twice as far from the float32 vectors as the plain model in that dtype."""
    truth = pair[0].encode(TEXTS, convert_to_tensor=True)
    far = []
    for model in pair:
        model = copy.deepcopy(model).to(dtype)
        vectors = model.encode(TEXTS, convert_to_tensor=True)
        assert vectors.dtype == dtype
        far.append(off(vectors.float(), truth))
    assert far[1] <= 2 * far[0] + 1e-6


def test_t5_in_halves_of_its_own() -> None:
    """transformers keeps some weights of a T5 in float32: served as they are."""
    plain = loaded("t5_mean_relu_h4", dtype=torch.float16)
    assert len({p.dtype for p in plain.parameters()}) == 2
    truth = loaded("t5_mean_relu_h4").encode(TEXTS)
    ours = accelerate(copy.deepcopy(plain))
    assert is_accelerated(ours)
    far = [off(m.encode(TEXTS).astype(np.float32), truth) for m in (plain, ours)]
    assert far[1] <= 2 * far[0] + 1e-6


def test_small_batches_are_left_to_it(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours = bert, accelerate(copy.deepcopy(bert))
    monkeypatch.setattr(batches, "few_rows_gain", lambda dtype: False)
    monkeypatch.setattr(batches, "SMALL", 10**12)
    assert off(*(m.encode(TEXTS) for m in (plain, ours))) == 0
    looked: list[str] = []
    monkeypatch.setattr(modules.Borrowed, "changed", lambda *_: looked.append("changed"))
    ours.encode(TEXTS)
    assert not looked  # that would take longer than such a batch gains
    monkeypatch.setattr(batches, "SMALL", 0)
    ours.encode(TEXTS)
    assert looked


def test_what_is_small_goes_by_what_serves_few_rows(
    bert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only without a gradient, in which no weight is packed, and without autocast."""
    ours = accelerate(copy.deepcopy(bert))
    ours.encode(TEXTS)
    borrowed = ours[0]._pyenc.borrowed
    width = borrowed.encoder.config.hidden_size
    features = {
        name: torch.ones(1, 9, dtype=torch.long) for name in ("input_ids", "attention_mask")
    }
    asked: list[torch.dtype] = []
    gains = [True]
    monkeypatch.setattr(batches, "few_rows_gain", lambda dtype: asked.append(dtype) or gains[0])
    monkeypatch.setattr(batches, "SMALL_PACKED", 9 * width**2)
    monkeypatch.setattr(batches, "SMALL", 9 * width**2 + 1)
    with torch.inference_mode():
        assert not batches.is_small(features, borrowed)
        gains[0] = False
        assert batches.is_small(features, borrowed)
        gains[0] = True
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert batches.is_small(features, borrowed)
    assert batches.is_small(features, borrowed)
    assert asked == [torch.float32] * 2


def twos(mask: torch.Tensor) -> torch.Tensor:
    """As many in all as there are places."""
    mask = torch.ones_like(mask)
    mask[:, -1], mask[:, 0] = 0, 2
    return mask


MASKS = {
    "bool": lambda mask: mask.bool(),
    "float": lambda mask: mask.float(),
    "twos": twos,
    "weights": lambda mask: mask * 0.5,
    "none": torch.zeros_like,
    "one for all rows": lambda mask: torch.ones_like(mask[:1]),
    "added to scores": lambda mask: (mask[:, None, None] - 1.0) * torch.finfo(torch.float32).max,
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_ones_own(kind: str, bert: Any, packed: list[Any]) -> None:
    """What is no row of zeros and ones is left to the model, which knows it or says why not."""
    plain, ours = bert, accelerate(copy.deepcopy(bert))
    features = plain.preprocess(TEXTS)
    features["attention_mask"] = MASKS[kind](features["attention_mask"])
    with torch.no_grad():
        a, b = (model(dict(features)) for model in (plain, ours))
    name = "token_embeddings" if kind == "added to scores" else "sentence_embedding"
    assert off(a[name], b[name]) <= NEAR
    assert bool(packed) == (kind in ("bool", "float", "none"))


def test_token_types_of_one_row(bert: Any, packed: list[Any]) -> None:
    plain, ours = bert, accelerate(copy.deepcopy(bert))
    features = plain.preprocess(TEXTS)
    features["token_type_ids"] = torch.ones_like(features["input_ids"][:1])
    with torch.no_grad():
        a, b = (model(dict(features))["sentence_embedding"] for model in (plain, ours))
    assert off(a, b) <= NEAR
    assert not packed
