"""Losses and training of an accelerated model: the same gradients, the same curve."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers")

from pyenc.integrations.sentence_transformers import AccelerationWarning, accelerate
from tests.integrations.sentence_transformers.models import TEXTS, loaded
from tests.integrations.sentence_transformers.test_answers import off

PAIRS = (TEXTS[:5], TEXTS[5:])

NAMES = ("bert_mean_h4", "modernbert_embed_like_h2", "t5_instructor_relu_h4")
EURO, QWEN = "eurobert_like_h4", "qwen3_embed_like_h4"


def pair_of(name: str) -> tuple[Any, Any]:
    """(plain, accelerated), in training without dropout."""
    plain = loaded(name)
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate"):
        if hasattr(plain[0].model.config, key):
            setattr(plain[0].model.config, key, 0.0)
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return plain.train(), accelerate(copy.deepcopy(plain)).train()


def checkpointing(model: Any, **options: Any) -> None:
    with warnings.catch_warnings():
        # sentence-transformers asks by the old name.
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(**options)


def gradients(model: Any, loss: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value = loss([model.preprocess(texts) for texts in PAIRS], None)
    value.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": value.detach()}


def assert_near(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert found.keys() == right.keys()
    assert len(right) > 10
    for name, wanted in right.items():
        assert off(found[name], wanted) <= 1e-4 * max(1e-2, float(wanted.abs().max())), name


@pytest.mark.parametrize("name", [*NAMES, EURO, QWEN])
def test_gradient_checkpointing(name: str, packed: list[Any]) -> None:
    """Packed, by the encoder's own, with no hook taken for a stranger's; and off again."""
    plain, ours = pair_of(name)
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        without = gradients(ours, MultipleNegativesRankingLoss(ours))
        assert not packed[-1].is_gradient_checkpointing
        for model in (plain, ours):
            checkpointing(model)
        packed.clear()
        found = gradients(ours, MultipleNegativesRankingLoss(ours))
        assert len(packed) == 2
        assert packed[-1].is_gradient_checkpointing
        assert all(torch.equal(a, b) for a, b in zip(found.values(), without.values(), strict=True))
        assert_near(found, gradients(plain, MultipleNegativesRankingLoss(plain)))
        # A model that has it already is accelerated as well.
        late = accelerate(copy.deepcopy(plain))
        assert_near(gradients(late, MultipleNegativesRankingLoss(late)), found)
        ours.eval()
        ours(ours.preprocess(TEXTS))
        assert not packed[-1].training


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_layers": 2},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ],
    ids=str,
)
def test_checkpointing_of_another_kind(options: dict[str, Any], packed: list[Any]) -> None:
    """Of some layers alone, or reentrant: by the model's own code, to the bit."""
    plain, ours = pair_of("bert_mean_h4")
    for model in (plain, ours):
        checkpointing(model, **options)
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    packed.clear()
    a, b = (gradients(m, MultipleNegativesRankingLoss(m)) for m in (plain, ours))
    assert not packed
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_offloaded_activations_are_left_to_the_model(packed: list[Any]) -> None:
    """What transformers wraps around torch's function is not ours to leave out."""
    _, ours = pair_of("bert_mean_h4")
    checkpointing(ours, offload=True)
    assert not ours[0]._pyenc.borrowed.serves()
    checkpointing(ours)
    assert ours[0]._pyenc.borrowed.serves()


LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "ranking": lambda losses, model: losses.MultipleNegativesRankingLoss(model),
    "cached": lambda losses, model: losses.CachedMultipleNegativesRankingLoss(
        model, mini_batch_size=2
    ),
}


def loss_of(kind: str, model: Any) -> Any:
    from sentence_transformers.sentence_transformer import losses

    return LOSSES[kind](losses, model)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("name", NAMES[1:])
def test_losses(name: str, kind: str, packed: list[Any]) -> None:
    """The plain model's value and gradients, from packed states."""
    plain, ours = pair_of(name)
    found = gradients(ours, loss_of(kind, ours))
    # Cached: each part of a batch once without gradients and once with.
    assert len(packed) == (12 if kind == "cached" else 2)
    assert_near(found, gradients(plain, loss_of(kind, plain)))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_cached_gradients_are_the_uncached_ones(checkpointed: bool) -> None:
    """Parts of a batch at a time change no gradient; with gradient checkpointing neither."""
    _, ours = pair_of("modernbert_embed_like_h2")
    whole = gradients(ours, loss_of("ranking", ours))
    if checkpointed:
        checkpointing(ours)
    assert_near(gradients(ours, loss_of("cached", ours)), whole)


@pytest.mark.parametrize("kind", ["ranking", "cached"])
def test_a_curve(kind: str) -> None:
    """A few steps: the plain model's losses, and weights that have moved as its have."""
    models = pair_of("bert_mean_h4")
    curves = []
    for model in models:
        loss = loss_of(kind, model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        curve = []
        for _ in range(4):
            curve.append(gradients(model, loss)["loss"])
            optimizer.step()
        curves.append(torch.stack(curve))
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert off(*curves) <= 1e-4 * float(curves[0][0])


def test_cached_gradients_under_dropout() -> None:
    """Drawn again as they were drawn: by the model's own code, to the bit."""
    plain = loaded("bert_mean_h4").train()
    ours = accelerate(copy.deepcopy(plain)).train()
    found = []
    for model in (plain, ours):
        torch.manual_seed(9)
        found.append(gradients(model, loss_of("cached", model)))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def set_by_hand(model: Any) -> None:
    """Where the configuration has none."""
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3


def kept_on(model: Any) -> None:
    """Monte Carlo dropout."""
    set_by_hand(model)
    for module in model.eval().modules():
        module.training = isinstance(module, torch.nn.Dropout)


def of_attention(model: Any) -> None:
    """A number that a module in training hands on."""
    for module in model.eval().modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout, module.training = 0.4, True


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, change) for name in NAMES for change in (set_by_hand, kept_on)),
        ("modernbert_embed_like_h2", of_attention),
        (EURO, of_attention),
    ],
)
def test_dropout_of_modules(name: str, change: Callable[[Any], None], packed: list[Any]) -> None:
    """What the modules are now decides, not what the configuration said: their draws, to the bit;
    and packed again once they drop nothing."""
    plain, ours = pair_of(name)
    answers = []
    for model in (plain, ours):
        change(model)
        torch.manual_seed(4)
        answers.append(model(model.preprocess(TEXTS))["sentence_embedding"])
    assert not packed
    assert torch.equal(*answers)
    torch.manual_seed(5)
    assert not torch.equal(plain(plain.preprocess(TEXTS))["sentence_embedding"], answers[0])
    ours.eval()(ours.preprocess(TEXTS))
    assert packed


def test_padding_that_a_trainer_writes(packed: list[Any]) -> None:
    """Into the config, where there was none: the table that is there gives its row, the last token
    of every text, a gradient as before."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    models = pair_of(QWEN)
    for model in models:
        assert model[0].model.config.pad_token_id is None
        model[0].model.config.pad_token_id = model.tokenizer.pad_token_id
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        right, found = (gradients(m, MultipleNegativesRankingLoss(m)) for m in models)
    assert packed
    assert_near(found, right)
    words = next(grad for name, grad in found.items() if name.endswith("embed_tokens.weight"))
    assert words[models[0].tokenizer.pad_token_id].abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_trainer(tmp_path: Path, packed: list[Any]) -> None:
    """sentence-transformers' own, with gradient checkpointing and cached gradients: the plain
    model's weights at the end; stopped half-way and resumed, the same ones to the bit."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    data = datasets.Dataset.from_dict({"anchor": TEXTS[:5], "positive": TEXTS[5:]})

    def trained(model: Any, name: str, steps: int = 4, resume: str | None = None) -> Any:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / name), max_steps=steps, per_device_train_batch_size=5, seed=1,
            use_cpu=True, report_to="none", save_strategy="steps", save_steps=2, optim="sgd",
            learning_rate=0.05, lr_scheduler_type="constant", gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False}, disable_tqdm=True,
        )  # fmt: skip
        SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=data, loss=loss_of("cached", model)
        ).train(resume_from_checkpoint=resume)  # fmt: skip
        return {n: p.detach().clone() for n, p in model.named_parameters()}

    plain, ours = pair_of("modernbert_embed_like_h2")
    again = copy.deepcopy(ours)
    first = dict(plain.named_parameters())
    first = {name: p.detach().clone() for name, p in first.items()}
    expected, found = trained(plain, "plain"), None
    assert not packed
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        found = trained(ours, "ours")
        assert packed
        assert all(encoder.is_gradient_checkpointing for encoder in packed if encoder.training)
        trained(again, "again", steps=2)
        resumed = trained(again, "again", resume=str(tmp_path / "again" / "checkpoint-2"))
    for name, right in expected.items():
        moved = float((right - first[name]).abs().max())
        assert off(found[name], right) <= 1e-3 * moved + 1e-6, name
        assert torch.equal(resumed[name], found[name]), name
    assert max(float((right - first[n]).abs().max()) for n, right in expected.items()) > 1e-3


def test_compiled(packed: list[Any]) -> None:
    """One graph, as of the plain model: the model's own code, to the bit; with its gradients."""
    models = pair_of("bert_mean_h4")
    found = []
    for model in models:
        features = dict(model.preprocess(TEXTS))
        torch._dynamo.reset()
        packed.clear()
        run = torch.compile(model, fullgraph=True, backend="aot_eager")
        answer = run(features)["sentence_embedding"]
        assert not packed
        answer.square().sum().backward()
        found.append([answer, *(p.grad for p in model.parameters() if p.grad is not None)])
    torch._dynamo.reset()
    assert len(found[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_traced(packed: list[Any]) -> None:
    """By torch.jit, as an export is: the model's own code, which takes other lengths afterwards."""
    plain = loaded("bert_mean_h4")
    ours = accelerate(copy.deepcopy(plain))
    names = ("input_ids", "attention_mask", "token_type_ids")
    one, other = ({n: ours.preprocess(texts)[n] for n in names} for texts in PAIRS)

    class Vectors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = ours

        def forward(self, *given: torch.Tensor) -> Any:
            return self.model(dict(zip(names, given, strict=True)))["sentence_embedding"]

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Vectors(), tuple(one.values()), check_trace=False)
        assert not packed
        found = traced(*other.values())
    assert off(found, plain.encode(PAIRS[1])) <= 1e-5


@pytest.mark.parametrize("given", ["real", "fake"])
def test_fake_tensors(given: str, packed: list[Any]) -> None:
    """They have no values to be packed by: who counts memory or shapes gets the model's own."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = accelerate(loaded("bert_mean_h4"))
    features = model.preprocess(TEXTS)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        if given == "fake":
            for name in ("input_ids", "attention_mask", "token_type_ids"):
                features[name] = fake.from_tensor(features[name])
        found = model(features)["sentence_embedding"]
    assert found.shape == (len(TEXTS), model.get_embedding_dimension())
    assert not packed
