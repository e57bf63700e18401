"""An accelerated model of transformers answers as it did, whatever way it is called."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn

import pyenc
from pyenc.integrations.borrowed import batches
from tests.integrations.accelerated.wholes import NAMES, NEAR, base, batch, both, headed, off

SOME = ("bert_mean_h4", "modernbert_gte_like_h4", "t5_mean_relu_h4")
FIRST = ("bert_mean_h4", "distilbert_h4", "modernbert_gte_like_h4", "xlmr_e5_like_h2")


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_states(name: str, left: bool, packed: list[Any]) -> None:
    plain, ours = both(base(name))
    given = batch(plain, left=left)
    mask = given["attention_mask"].bool()
    with torch.no_grad():
        right = plain(**given)
        for found in (ours(**given), ours(given["input_ids"], given["attention_mask"])):
            assert type(found) is type(right)
            assert found.keys() == right.keys()
            size = max(1, float(right.last_hidden_state[mask].abs().max()))
            assert off(found.last_hidden_state[mask], right.last_hidden_state[mask]) <= NEAR * size
            # A pooler's answer of padding is its own code's.
            own = left and right.get("pooler_output") is not None
            assert bool(found.last_hidden_state[~mask].any()) == own
            if own:
                assert torch.equal(found.pooler_output, right.pooler_output)
    assert len(packed) == (0 if own else 2)


def test_its_own_layers_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for plain, layers in (
        (base("bert_mean_h4"), lambda model: model.encoder.layer),
        (headed("TokenClassification"), lambda model: model.bert.encoder.layer),
    ):
        plain, ours = both(plain)
        given = batch(plain)
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr(type(layers(plain)[0]), "forward", None)
            ours(**given)
            with pytest.raises(TypeError, match="NoneType"):
                plain(**given)


@pytest.mark.parametrize("name", ["bert_mean_h4", "mpnet_base_v2_like_h4", "albert_small_like_h4"])
def test_a_pooler(name: str, packed: list[Any]) -> None:
    """Of the first state, which its own code reads."""
    plain, ours = both(base(name))
    given = batch(plain)
    with torch.no_grad():
        assert off(ours(**given).pooler_output, plain(**given).pooler_output) <= NEAR
    assert len(packed) == 1


@pytest.mark.filterwarnings("ignore::pyenc.AccelerationWarning")
@pytest.mark.parametrize("name", SOME)
def test_without_a_mask(name: str, packed: list[Any]) -> None:
    plain, ours = both(base(name))
    ids = torch.randint(6, 90, (3, 12))
    with torch.no_grad():
        a, b = (model(ids).last_hidden_state for model in (plain, ours))
        assert off(a, b) <= NEAR * max(1, float(a.abs().max()))
        (first,) = ours(input_ids=ids, return_dict=False)[:1]
        assert torch.equal(first, b)
        for model in (plain, ours):
            model.config.return_dict = False
        one, other = (model(ids) for model in (plain, ours))
        assert type(one) is type(other) is tuple
        assert len(one) == len(other)
        assert off(one[0], other[0]) <= NEAR * max(1, float(a.abs().max()))
    # T5's own code asks its config beneath, whatever it is asked for, and cannot be compared then.
    assert len(packed) == (2 if name.startswith("t5") else 3)


def test_token_types(packed: list[Any]) -> None:
    plain, ours = both(base("bert_mean_h4"))
    given = batch(plain)
    types = (torch.arange(19) > 8).long().expand(5, 19)
    mask = given["attention_mask"].bool()
    with torch.no_grad():
        a, b = (model(**given, token_type_ids=types)[0][mask] for model in (plain, ours))
        assert off(a, b) <= NEAR
        assert off(ours(**given)[0][mask], b) > 100 * NEAR
    assert len(packed) == 2


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "MaskedLM"])
@pytest.mark.parametrize("name", FIRST)
def test_heads(head: str, name: str, packed: list[Any]) -> None:
    said = {} if head == "MaskedLM" else {"num_labels": 3}
    plain, ours = both(headed(head, name, **said))
    assert type(ours).__name__ == type(plain).__name__
    given = batch(plain)
    given["attention_mask"][3:] = given["attention_mask"][1]  # no token follows padding
    mask = given["attention_mask"].bool()
    labels = torch.tensor([0, 2, 1, 1, 0])
    if head != "SequenceClassification":
        labels = torch.randint(0, 3, mask.shape).masked_fill(~mask, -100)
    with torch.no_grad():
        a, b = (model(**given, labels=labels) for model in (plain, ours))
    one, other = a.logits, b.logits
    if head != "SequenceClassification":
        one, other = one[mask], other[mask]
    assert one.std() > 0.05
    assert off(one, other) <= NEAR * max(1, float(one.abs().max()))
    assert off(a.loss, b.loss) <= NEAR * max(1, float(a.loss))
    assert len(packed) == 1


def test_where_an_answer_begins_and_ends(packed: list[Any]) -> None:
    """Its loss is of all places, and where some are padding that of its own code."""
    plain, ours = both(headed("QuestionAnswering"))
    given = batch(plain)
    mask = given["attention_mask"].bool()
    places = {"start_positions": torch.arange(5), "end_positions": torch.arange(5) + 2}
    with torch.no_grad():
        a, b = (model(**given) for model in (plain, ours))
        for name in ("start_logits", "end_logits"):
            assert off(a[name][mask], b[name][mask]) <= NEAR * max(1, float(a[name].abs().max()))
        assert len(packed) == 1
        a, b = (model(**given, **places).loss for model in (plain, ours))
        assert torch.equal(a, b)
        assert len(packed) == 1
        whole = {"input_ids": given["input_ids"], "attention_mask": torch.ones_like(mask).long()}
        a, b = (model(**whole, **places).loss for model in (plain, ours))
        assert off(a, b) <= NEAR * max(1, float(a))
        assert len(packed) == 2


def test_generated_without_a_mask() -> None:
    """transformers makes one of padding, if it sees that the model takes one."""
    plain, ours = both(headed("CausalLM", "qwen3_embed_like_h4"))
    for model in (plain, ours):
        model.config.pad_token_id = model.generation_config.pad_token_id = 0
    ids = torch.randint(6, 90, (2, 9))
    ids[0, :5] = 0
    said = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        right, found = (model.generate(ids, **said) for model in (plain, ours))
    assert torch.equal(right, found)


def test_a_first_state_that_is_padding(packed: list[Any]) -> None:
    """What a classifier reads there only the model's own code knows."""
    plain, ours = both(headed("SequenceClassification"))
    with torch.no_grad():
        given = batch(plain, left=True)
        a, b = (model(**given).logits for model in (plain, ours))
    assert torch.equal(a, b)
    assert not packed


@pytest.mark.parametrize("name", ["qwen3_embed_like_h4", "llama_encoder_like_h6"])
def test_language_models(name: str, packed: list[Any]) -> None:
    """Logits through pyenc; words are generated by its own code."""
    plain, ours = both(headed("CausalLM", name))
    given = batch(plain)
    mask = given["attention_mask"].bool()
    ids = torch.randint(6, 90, (2, 7))
    with torch.no_grad():
        a, b = (model(**given).logits[mask] for model in (plain, ours))
        assert off(a, b) <= NEAR * max(1, float(a.abs().max()))
        assert len(packed) == 1
        texts = [
            model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=use_cache)
            for model in (plain, ours) for use_cache in (True, False)
        ]  # fmt: skip
    assert all(torch.equal(texts[0], text) for text in texts)


OTHER_CALLS = {
    "positions": {"position_ids": torch.arange(19).flip(0)[None]},
    "all states": {"output_hidden_states": True},
    "weights": {"output_attentions": True},
    "embeddings": {"input_ids": None, "inputs_embeds": torch.randn(5, 19, 64)},
    "a mask that is added": {"attention_mask": torch.zeros(5, 1, 19, 19)},
    "a mask of weights": {"attention_mask": torch.rand(5, 19)},
    "an unknown switch": {"unknown": False},
}


@pytest.mark.parametrize("call", OTHER_CALLS)
@pytest.mark.parametrize("kind", ["base", "head"])
def test_other_calls_are_its_own(call: str, kind: str, packed: list[Any]) -> None:
    model = base("bert_mean_h4") if kind == "base" else headed("TokenClassification")
    models = both(model)
    given = batch(models[0]) | OTHER_CALLS[call]
    for each in models:  # weights are had of one way of attention alone
        each.set_attn_implementation("eager")
    with torch.no_grad():
        a, b = (each(**given) for each in models)
    assert not packed
    assert a.keys() == b.keys()
    assert torch.equal(a[0], b[0])


def test_switches_that_are_off(packed: list[Any]) -> None:
    """And an argument that its class has not is its own error."""
    plain, ours = both(base("distilbert_h4"))
    given = batch(plain) | {"output_hidden_states": False, "output_attentions": None}
    with torch.no_grad():
        ours(**given)
        assert len(packed) == 1
        types = torch.zeros_like(given["input_ids"])
        for model in (plain, ours):
            try:
                a = model(**given, token_type_ids=types)[0]
            except TypeError:
                continue
            assert torch.equal(a, plain(**given)[0])
    assert len(packed) == 1


def test_asked_for_by_its_config(packed: list[Any]) -> None:
    models = both(base("bert_mean_h4"))
    given = batch(models[0])
    for key in ("output_hidden_states", "output_attentions"):
        for each in models:
            each.set_attn_implementation("eager")
            setattr(each.config, key, True)
        with torch.no_grad():
            a, b = (each(**given) for each in models)
        assert a.keys() == b.keys()
        for each in models:
            setattr(each.config, key, False)
    assert not packed
    with torch.no_grad():
        models[1](**given)
    assert packed


def test_no_tokens(packed: list[Any]) -> None:
    plain, ours = both(base("bert_mean_h4"))
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(ours(ids, mask)[0], plain(ids, mask)[0])  # for its pooler reads padding
        plain, ours = both(base("distilbert_h4"))
        found = ours(ids, mask).last_hidden_state
    assert found.shape == plain(ids, mask).last_hidden_state.shape
    assert not found.any()


def test_small_batches_are_left_to_it(monkeypatch: pytest.MonkeyPatch, packed: list[Any]) -> None:
    for name in ("SMALL", "SMALL_PACKED"):
        monkeypatch.setattr(batches, name, 10**12)
    plain, ours = both(base("bert_mean_h4"))
    given = batch(plain)
    with torch.no_grad():
        for model in (ours, copy.deepcopy(ours)):  # whose encoder is not made yet
            assert torch.equal(plain(**given)[0], model(**given)[0])
    assert not packed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves(dtype: torch.dtype, packed: list[Any]) -> None:
    plain, ours = both(base("bert_mean_h4"))
    given = batch(plain)
    mask = given["attention_mask"].bool()
    with torch.no_grad():
        truth = plain(**given)[0][mask]
        far = []
        for model in (plain.to(dtype), ours.to(dtype)):
            found = model(**given)[0]
            assert found.dtype == dtype
            far.append(float((found[mask].float() - truth).square().mean().sqrt()))
        assert far[1] <= 2 * far[0] + 1e-3
        plain, ours = both(base("bert_mean_h4"))
        with torch.autocast("cpu", torch.bfloat16):
            far = [off(model(**given)[0][mask], truth) for model in (plain, ours)]
        assert far[1] <= 2 * far[0] + 1e-3
    assert len(packed) == 2


def test_threads(packed: list[Any]) -> None:
    plain, ours = both(headed("TokenClassification"))
    calls = [batch(plain) for _ in range(4)]
    with torch.no_grad():
        right = [plain(**call).logits for call in calls]
    found: list[Any] = [None] * len(calls)

    def work(i: int) -> None:
        with torch.no_grad():
            found[i] = ours(**calls[i]).logits

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for call, a, b in zip(calls, right, found, strict=True):
        mask = call["attention_mask"].bool()
        assert off(a[mask], b[mask]) <= NEAR * max(1, float(a.abs().max()))


@pytest.mark.slow
def test_compiled(packed: list[Any]) -> None:
    """One graph, of the model's own code."""
    models = both(base("bert_mean_h4"))
    given, found = batch(models[0]), []
    for model in models:
        torch._dynamo.reset()
        with torch.no_grad():
            found.append(torch.compile(model, fullgraph=True, backend="eager")(**given)[0])
    torch._dynamo.reset()
    assert not packed
    assert torch.equal(*found)


def test_pipelines(packed: list[Any]) -> None:
    """As people call them."""
    import transformers

    from tests.conftest import GOLDEN

    tokenizer = transformers.AutoTokenizer.from_pretrained(GOLDEN / "bert_mean_h4")
    texts = ["a text of some words", "another", "and a third one, longer than the others"]
    for task, model in (
        ("feature-extraction", base("bert_mean_h4")),
        ("text-classification", headed("SequenceClassification", num_labels=3)),
        ("token-classification", headed("TokenClassification", num_labels=3)),
    ):
        packed.clear()
        answers = [
            transformers.pipeline(task, model=each, tokenizer=tokenizer, device="cpu")(
                # Of a padded batch the first gives out states of padding too.
                texts,
                batch_size=1 if task == "feature-extraction" else 3,
            )
            for each in both(model)
        ]
        assert packed
        for a, b in zip(*map(numbers, answers), strict=True):
            assert abs(a - b) <= NEAR


def numbers(answer: Any) -> list[float]:
    if isinstance(answer, dict):
        return [float(answer["score"])]
    if isinstance(answer, list):
        return [number for each in answer for number in numbers(each)]
    return [float(answer)]


def test_it_says_what_it_takes() -> None:
    for strange in (nn.Linear(2, 2), "BAAI/bge-m3", None):
        with pytest.raises(pyenc.InputError, match="models of transformers as well"):
            pyenc.accelerate(strange)
