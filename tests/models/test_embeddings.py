"""Embeddings, sum and norm in one call where no gradient is wanted: the same as their modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.models import embeddings as module
from pyenc.models.config import EncoderConfig
from pyenc.models.embeddings import Embeddings

IDS, PLACES, TYPES = (
    torch.tensor([3, 0, 7, 3]),
    torch.tensor([2, 3, 4, 0]),
    torch.tensor([0, 1, 1, 0]),
)


def embeddings(**fields: Any) -> Embeddings:
    config = EncoderConfig(
        vocab_size=8,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=16,
        max_length=5,
        **fields,
    )
    made = Embeddings(config)
    for parameter in made.parameters():
        nn.init.normal_(parameter, 1.0)
    return made


FORMS = {
    "all": {"position": "absolute", "num_positions": 5, "type_vocab_size": 2},
    "alibi": {"position": "alibi", "type_vocab_size": 2},
    "words": {"position": "alibi", "type_vocab_size": 0},
    "rms": {"position": "alibi", "type_vocab_size": 1, "norm": "rms"},
    "without a bias": {"position": "alibi", "type_vocab_size": 1, "norm_bias": False},
    "no norm": {"position": "alibi", "type_vocab_size": 1, "embedding_norm": False},
}


@pytest.mark.parametrize("types", [None, TYPES])
@pytest.mark.parametrize("form", FORMS)
def test_the_bits_of_the_modules(form: str, types: Tensor | None) -> None:
    made = embeddings(**FORMS[form])
    if made.token_type is not None and types is not None and made.token_type.num_embeddings == 1:
        types = torch.zeros_like(types)
    places = PLACES if made.position is not None else None
    for dtype in (torch.float32, torch.bfloat16):
        made = made.to(dtype)
        apart = made._apart(IDS, places, types, "torch")
        assert torch.equal(made(IDS, places, types, "torch"), apart)
        with torch.no_grad():
            assert torch.equal(made(IDS, places, types, "torch"), apart)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the op was called."""
    found: list[int] = []
    real = module.embedding_norm

    def counting(*args: Any, **named: Any) -> Tensor:
        found.append(1)
        return real(*args, **named)

    monkeypatch.setattr(module, "embedding_norm", counting)
    return found


def test_with_a_gradient_the_modules_are_called(calls: list[int]) -> None:
    made = embeddings(**FORMS["all"])
    out = made(IDS, PLACES, TYPES, None)
    assert not calls
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    with torch.inference_mode():
        made(IDS, PLACES, TYPES, None)
    assert calls == [1]


class Doubled(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def hooked(made: Embeddings) -> None:
    made.word.register_forward_hook(lambda module, given, out: 2 * out)


def replaced(made: Embeddings) -> None:
    word = Doubled(8, 16)
    word.load_state_dict(made.word.state_dict())
    made.word = word


def patched(made: Embeddings) -> None:
    forward = made.word.forward
    made.word.forward = lambda ids: 2 * forward(ids)  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [hooked, replaced, patched])
def test_what_others_make_of_a_module_is_honoured(
    change: Callable[[Embeddings], None], calls: list[int]
) -> None:
    made = embeddings(**FORMS["alibi"])
    with torch.no_grad():
        change(made)
        got = made(IDS, None, None, "torch")
        assert not calls
        assert made.token_type is not None
        assert made.norm is not None
        total = 2 * made.word.weight[IDS] + made.token_type.weight[0]
        assert torch.equal(got, made.norm(total, None, "torch")[0])


def test_compiled_whole_without_a_gradient(calls: list[int]) -> None:
    made = embeddings(**FORMS["all"])
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        right = made(IDS, PLACES, TYPES, None)
        torch.testing.assert_close(compiled(IDS, PLACES, TYPES, None), right)
    assert calls


def test_the_gradient_of_types_is_added_up_wide() -> None:
    made = embeddings(**FORMS["no norm"] | {"type_vocab_size": 2}).to(torch.bfloat16)
    assert made.token_type is not None
    ids, types = torch.randint(8, (8192,)), torch.randint(2, (8192,))
    onto = torch.rand(8192, 16).to(torch.bfloat16)
    made(ids, None, types, None).backward(onto)
    right = torch.stack([onto[types == kind].double().sum(0) for kind in (0, 1)])
    assert made.token_type.weight.grad is not None
    assert (made.token_type.weight.grad.double() - right).norm() <= 2**-7 * right.norm()


def test_who_listens_to_types_hears_of_their_gradient() -> None:
    made, heard = embeddings(**FORMS["all"]).to(torch.bfloat16), []
    assert made.token_type is not None
    made.token_type.register_full_backward_hook(lambda *given: heard.append(given))
    made(IDS, PLACES, TYPES, None).sum().backward()
    assert len(heard) == 1
