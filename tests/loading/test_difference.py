"""A low-rank difference on a base's weights: what it gives, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import pyenc
from pyenc.loading import Checkpoint, load_checkpoint, own_checkpoint, save_checkpoint
from pyenc.loading.difference import (
    CHANGE,
    FORMAT,
    LEFT,
    RIGHT,
    VALUE,
    apply_difference,
    content_hash,
    read_difference,
    write_difference,
)
from tests.seeds import seed

CONFIG = pyenc.EncoderConfig(
    vocab_size=30, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20,
    position="absolute", num_positions=16, max_length=16, type_vocab_size=2, pooler=True,
)  # fmt: skip
CHANGED = {"position": "alibi", "num_positions": 0, "max_length": 64, "pooler": False}
WEIGHT, NORM = "layers.1.attention.qkv.weight", "layers.0.feed_forward_norm.bias"
METADATA = {"base": "tiny", "base_sha256": "a" * 64, "config": json.dumps(CHANGED)}


@pytest.fixture
def base() -> Checkpoint:
    torch.manual_seed(seed(1))
    return own_checkpoint(pyenc.Encoder(CONFIG).eval())


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(seed(2))
    return {
        WEIGHT + LEFT: torch.randn(36, 2).half(),
        WEIGHT + RIGHT: torch.randn(2, 12).half(),
        NORM + CHANGE: torch.randn(12).half(),
    }


def written(path: Path, given: dict[str, Tensor] | None = None, **said: str) -> Path:
    write_difference(path, tensors() if given is None else given, METADATA | said)
    return path


def test_it_is_the_base_and_the_products(base: Checkpoint, tmp_path: Path) -> None:
    kept = {name: tensor.clone() for name, tensor in base.encoder.state_dict().items()}
    path = written(tmp_path / "d.safetensors")
    made = apply_difference(base, "a" * 64, path)
    assert made.encoder.config == replace(CONFIG, **CHANGED)
    given = {name: tensor.double() for name, tensor in tensors().items()}
    changes = {WEIGHT: given[WEIGHT + LEFT] @ given[WEIGHT + RIGHT], NORM: given[NORM + CHANGE]}
    state = made.encoder.state_dict()
    assert set(kept) - set(state) == {
        "embeddings.position.weight", "pooler.weight", "pooler.bias"
    }  # fmt: skip
    for name, tensor in state.items():
        wanted = kept[name].double() + changes.get(name, 0)
        assert torch.allclose(tensor.double(), wanted, rtol=0, atol=1e-6), name
    for name, tensor in base.encoder.state_dict().items():
        assert torch.equal(tensor, kept[name])
    # Longer than the base's table, and the same after saving.
    save_checkpoint(made, tmp_path / "saved")
    again = load_checkpoint(tmp_path / "saved", device="cpu")
    ids, bounds = torch.randint(30, (40,)), torch.tensor([0, 40])
    with torch.inference_mode():
        assert torch.equal(
            again.encoder.forward_packed(ids, bounds), made.encoder.forward_packed(ids, bounds)
        )


OWN = CHANGED | {
    "position": "table_alibi", "position_fields": {"reach": 2}, "position_per_layer": True,
}  # fmt: skip


def values(*left_out: str) -> dict[str, Tensor]:
    """Tensors of a difference whose positions the base has not."""
    torch.manual_seed(seed(3))
    shapes = {"log_slopes": (3, 2), "table": (3, 5)}
    return tensors() | {
        f"layers.{layer}.attention.position_bias.{name}{VALUE}": torch.randn(shape).half()
        for layer in range(2) for name, shape in shapes.items() if name not in left_out
    }  # fmt: skip


def test_positions_that_the_base_has_not_are_whole(base: Checkpoint, tmp_path: Path) -> None:
    path = written(tmp_path / "d.safetensors", values(), config=json.dumps(OWN))
    made = apply_difference(base, "a" * 64, path)
    assert made.encoder.config == replace(CONFIG, **OWN)
    state = made.encoder.state_dict()
    for name, tensor in values().items():
        if name.endswith(VALUE):
            assert torch.equal(state[name.removesuffix(VALUE)], tensor.float()), name
    ids, bounds = torch.randint(30, (40,)), torch.tensor([0, 40])
    save_checkpoint(made, tmp_path / "saved")
    again = load_checkpoint(tmp_path / "saved", device="cpu")
    with torch.inference_mode():
        assert torch.equal(
            again.encoder.forward_packed(ids, bounds), made.encoder.forward_packed(ids, bounds)
        )


TABLE = "layers.0.attention.position_bias.table"


@pytest.mark.parametrize(
    ("given", "said", "words"),
    [
        (values("table"), OWN, f"tiny has no {TABLE} to start from"),
        (values() | {TABLE + VALUE: torch.zeros(3, 7)}, OWN, f"{TABLE} is (3, 5), and its value"),
        (values() | {TABLE + VALUE: torch.full((3, 5), torch.inf)}, OWN, "would not be finite"),
        (values() | {NORM + VALUE: torch.zeros(12)}, OWN, "belongs to no parameter"),
        (values() | {TABLE + CHANGE: torch.zeros(3, 5)}, OWN, "belongs to no parameter"),
        (values(), CHANGED, "belongs to no parameter"),
        (values(), OWN | {"position_fields": [["reach", 2]]}, "position_fields must be dict"),
        (values(), OWN | {"position_fields": {"reach": 0}}, "reach must be an int of at least 1"),
        (values(), OWN | {"position_per_layer": 1}, "position_per_layer must be bool"),
    ],
)
def test_positions_that_do_not_fit_are_refused(
    base: Checkpoint, tmp_path: Path, given: dict[str, Tensor], said: dict[str, object], words: str
) -> None:
    path = written(tmp_path / "d.safetensors", given, config=json.dumps(said))
    with pytest.raises(pyenc.CheckpointError) as refusal:
        apply_difference(base, "a" * 64, path)
    assert words in str(refusal.value)
    assert str(path) in str(refusal.value)


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors().items() if key != name}


@pytest.mark.parametrize(
    ("given", "said", "words"),
    [
        (None, {"base_sha256": "b" * 64}, "a difference from tiny, whose weights have sha256 bbb"),
        (without(WEIGHT + RIGHT), {}, f"{WEIGHT} needs left and right"),
        (tensors() | {WEIGHT + CHANGE: torch.zeros(36, 12)}, {}, f"{WEIGHT} needs left and right"),
        (tensors() | {"layers.9.x.left": torch.zeros(1, 1)}, {}, "belongs to no parameter"),
        (tensors() | {WEIGHT + RIGHT: torch.zeros(2, 11)}, {}, f"{WEIGHT} is (36, 12)"),
        (tensors() | {WEIGHT + RIGHT: torch.zeros(3, 12)}, {}, "have no product"),
        (tensors() | {NORM + CHANGE: torch.zeros(1)}, {}, f"{NORM} is (12,)"),
        (tensors() | {NORM + CHANGE: torch.full((12,), torch.nan)}, {}, "would not be finite"),
        (None, {"config": '{"vocab_size": 31}'}, "config sets 'vocab_size'"),
        (None, {"config": '{"max_length": "64"}'}, "max_length must be int"),
        (None, {"config": '{"position": "nowhere"}'}, "unknown position 'nowhere'"),
        (None, {"config": "[1]"}, "no JSON object"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    base: Checkpoint, tmp_path: Path, given: dict[str, Tensor] | None, said: dict[str, str],
    words: str,
) -> None:  # fmt: skip
    path = written(tmp_path / "d.safetensors", given, **said)
    with pytest.raises(pyenc.CheckpointError) as refusal:
        apply_difference(base, "a" * 64, path)
    assert words in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_base_that_lacks_a_parameter_is_refused(tmp_path: Path) -> None:
    narrow = own_checkpoint(pyenc.Encoder(replace(CONFIG, num_layers=1)).eval())
    path = written(tmp_path / "d.safetensors")
    with pytest.raises(pyenc.CheckpointError, match="belongs to no parameter"):
        apply_difference(narrow, "a" * 64, path)


def changed_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def rewritten(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    """The same tensors with other metadata, written by somebody else."""
    with safe_open(path, "pt") as file:
        said = dict(file.metadata())
    change(said)
    save_file(tensors(), path, metadata=said)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (changed_byte, "not what its sha256 says"),
        (lambda p: rewritten(p, lambda s: s.update(base_sha256="c" * 64)), "not what its sha256"),
        (lambda p: rewritten(p, lambda s: s.pop("config")), "lack 'config'"),
        (lambda p: rewritten(p, lambda s: s.update(format="other")), f"expected '{FORMAT}'"),
        (lambda p: p.write_bytes(p.read_bytes()[:-10]), "cannot be read"),
        (lambda p: p.unlink(), "cannot be read"),
    ],
)
def test_a_changed_file_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    path = written(tmp_path / "d.safetensors")
    read_difference(path)
    damage(path)
    with pytest.raises(pyenc.CheckpointError, match=words):
        read_difference(path)


def test_only_floats_are_written(tmp_path: Path) -> None:
    with pytest.raises(pyenc.CheckpointError, match=r"torch\.int8"):
        written(tmp_path / "d.safetensors", {NORM + CHANGE: torch.zeros(12, dtype=torch.int8)})
    assert not list(tmp_path.iterdir())


def test_a_number_by_itself_is_a_tensor(tmp_path: Path) -> None:
    """As a position's own parameter may be; and one of another shape is another."""
    given = tensors() | {"layers.0.attention.position_bias.slope" + VALUE: torch.tensor(1.5)}
    found, metadata = read_difference(written(tmp_path / "d.safetensors", given))
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
    flat = {name: tensor.reshape(tensor.shape or (1,)) for name, tensor in given.items()}
    assert content_hash(flat, metadata) != metadata["sha256"]


def test_the_hash_is_of_names_shapes_and_words() -> None:
    given = tensors()
    hashes = {
        content_hash(given, METADATA),
        content_hash({**without(NORM + CHANGE), "x": given[NORM + CHANGE]}, METADATA),
        content_hash({**given, WEIGHT + LEFT: given[WEIGHT + LEFT].reshape(2, 36)}, METADATA),
        content_hash(given, METADATA | {"base": "other"}),
    }
    assert len(hashes) == 4
    backwards = dict(reversed(given.items()))
    assert content_hash(backwards, METADATA | {"sha256": "x"}) == content_hash(given, METADATA)
