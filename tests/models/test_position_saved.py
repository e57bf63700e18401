"""An encoder with a registered variant, saved and loaded again."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import pyenc
from pyenc.errors import CheckpointError, InputError
from pyenc.loading import load_checkpoint, own_checkpoint, save_checkpoint
from pyenc.models import Encoder, position, register_position
from pyenc.text.recipe import Recipe, read_recipe
from tests.conftest import GOLDEN
from tests.models.own_positions import CONFIGS, Kerple, batch, registered, saved, shape

__all__ = ["registered"]


@pytest.mark.parametrize("more", CONFIGS.values(), ids=CONFIGS.keys())
def test_loads_back_equal(more: dict[str, Any], tmp_path: Path) -> None:
    encoder = saved(tmp_path, **more)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == {name for name, _ in encoder.named_parameters()}
    drawn = torch.random.get_rng_state()
    again = load_checkpoint(str(tmp_path))
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert again.encoder.config == encoder.config
    for name, tensor in encoder.named_parameters():
        assert torch.equal(dict(again.encoder.named_parameters())[name], tensor), name
    ids, mask = batch()
    assert torch.equal(again.encoder(ids, mask), encoder(ids, mask))
    save_checkpoint(again, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_its_own_model_type(tmp_path: Path) -> None:
    saved(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert said["model_type"] == "pyenc-encoder"
    assert said["encoder"]["position"] == "kerple"
    assert said["encoder"]["position_fields"] == {"inner": 0.5, "signs": [1, -1]}


def test_not_registered_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.setattr(position, "_variants", {})
    with pytest.raises(CheckpointError, match=r"'kerple'.*register_position\('kerple'"):
        load_checkpoint(tmp_path)
    with pytest.raises(InputError, match=r"register_position\('kerple', ...\)"):
        shape()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["encoder", "num_heads"], "3", "num_heads must be int, got '3'"),
        (["encoder", "num_heads"], 4, "config.json asks for"),
        (["encoder", "num_heads"], 5, "is not a multiple of num_heads"),
        (["encoder", "num_layers"], 3, "missing tensor 'layers.2"),
        (["encoder", "num_layers"], 1, "unexpected tensor 'layers.1"),
        (["encoder", "vocab_size"], 2**31 - 1, "has shape"),
        (["encoder", "hidden_size"], 3 * 2**28, "has shape"),
        (["encoder", "norm"], "batch", "norm must be 'layer' or 'rms', got 'batch'"),
        (["encoder", "local"], 3, "local must be tuple"),
        (["encoder", "rotary"], {"theta": "x"}, "rotary: theta must be a finite number"),
        (["encoder", "rotary"], {"thet": 1}, "rotary: unknown key 'thet'"),
        (["encoder", "colour"], 1, "unknown key 'colour'"),
        (["encoder", "norm_eps"], -1e-5, "norm_eps must be finite and not negative: -1e-05"),
        (["encoder", "norm_eps"], float("nan"), "norm_eps must be a finite number, got nan"),
        (["encoder", "norm_eps"], 10**400, "norm_eps must be a finite number, got 1000"),
        (["encoder", "scale"], float("inf"), "scale must be a finite number, got inf"),
        (["encoder", "head_size"], -1, "head_size must be positive: -1"),
        (["encoder", "head_size"], 0, "head_size must be positive: 0"),
        (["encoder", "max_length"], 0, "max_length must be positive: 0"),
        (["encoder", "type_vocab_size"], -1, "type_vocab_size must not be negative: -1"),
        (["encoder", "num_positions"], -1, "num_positions must not be negative: -1"),
        (["encoder", "rotary"], {"theta": 1e999}, "rotary: theta must be a finite number"),
        (["encoder", "lm_head"], {"norm_eps": -1}, "lm_head: HeadConfig: norm_eps must be finite"),
        (["encoder", "position_fields"], {"outer": 1}, "Kerple.3, outer=1. failed"),
        (["encoder", "position_fields"], {"a b": 1}, "'a b' is no name of an argument"),
        (["encoder", "position_per_layer"], True, "missing tensor 'layers.0.attention.position"),
        (["encoder"], None, "needs an object under 'encoder', got None"),
    ],
)
def test_a_wrong_config_is_named(path: list[str], value: Any, message: str, tmp_path: Path) -> None:
    saved(tmp_path)
    file = tmp_path / "config.json"
    said = json.loads(file.read_text("utf-8"))
    inner = said
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(said), "utf-8")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


class Table(nn.Module):
    """A number for each distance; keeps on which devices it was ever made."""

    made: ClassVar[list[str]] = []

    def __init__(self, heads: int, reach: int, read: bool = False) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(heads, reach))
        rates = torch.linspace(0.1, 0.9, heads)
        self.register_buffer("rates", rates, persistent=False)
        if read:
            self.most = float(rates.max())
        Table.made.append(str(self.table.device))

    def along(self, offsets: Tensor) -> Tensor:
        far = offsets.abs().clamp(max=self.table.shape[1] - 1)
        return self.table[:, far] - self.rates[:, None] * offsets.abs()


def test_sizes_are_compared_before_anything_is_made(tmp_path: Path) -> None:
    """A field that asks for 2^50 numbers is refused by the shape of the tensor, not by memory."""
    register_position("table", Table)
    saved(tmp_path, position="table", position_fields={"reach": 7})
    file = tmp_path / "config.json"
    said = file.read_text("utf-8")
    file.write_text(said.replace('"reach": 7', f'"reach": {2**50}'), "utf-8")
    Table.made.clear()
    with pytest.raises(CheckpointError, match=rf"table' has shape \(3, 7\), .* \(3, {2**50}\)"):
        load_checkpoint(tmp_path)
    assert set(Table.made) == {"meta"}


@pytest.mark.parametrize("read", [False, True])
def test_torchs_default_dtype_changes_no_buffer(read: bool, tmp_path: Path) -> None:
    """Nor does it matter whether the variant can be made without values."""
    register_position("table", Table)
    encoder = saved(tmp_path, position="table", position_fields={"reach": 7, "read": read})
    torch.set_default_dtype(torch.bfloat16)
    try:
        again = load_checkpoint(tmp_path).encoder
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.position_bias is not None
    assert torch.equal(again.position_bias.rates, torch.linspace(0.1, 0.9, 3))  # type: ignore[arg-type]
    ids, mask = batch()
    assert torch.equal(again(ids, mask), encoder(ids, mask))
    half = load_checkpoint(tmp_path, dtype="bfloat16").encoder
    assert half.position_bias is not None
    assert half.position_bias.rates.dtype == torch.float32


@pytest.mark.parametrize("change", ["missing", "more", "shape", "nan"])
def test_weights_are_held_strictly(change: str, tmp_path: Path) -> None:
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name, message = "position_bias.outer", "position_bias.outer"
    if change == "missing":
        del tensors[name]
    elif change == "more":
        tensors["position_bias.inner"] = torch.zeros(3)
        message = "unexpected tensor 'position_bias.inner'"
    elif change == "shape":
        tensors[name] = torch.zeros(4)
    else:
        tensors[name][1] = float("nan")
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_what_was_added_is_refused_when_saved(tmp_path: Path) -> None:
    encoder = Encoder(shape())
    assert isinstance(encoder.position_bias, Kerple)
    encoder.position_bias.more = nn.Parameter(torch.ones(2))
    with pytest.raises(CheckpointError, match=r"position_bias\.more"):
        own_checkpoint(encoder)
    del encoder.position_bias.more
    checkpoint = own_checkpoint(encoder)
    encoder.position_bias.more = nn.Parameter(torch.ones(2))
    with pytest.raises(CheckpointError, match=r"position_bias\.more"):
        save_checkpoint(checkpoint, tmp_path)


class Rich(Kerple):
    """What modules have beside tensors, all of which the fields make again."""

    def __init__(self, heads: int) -> None:
        super().__init__(heads)
        self.rates = np.array([1.0, np.nan, 3.0])
        self.names = {"a": [np.arange(3), "x"]}
        self.turn = lambda x: x
        self.lock = object()
        self.method = self.along
        self.count = 0
        self.nothing = float("nan")
        self._seen = 0

    def along(self, offsets: Tensor) -> Tensor:
        self._seen += 1
        return self.turn(super().along(offsets))


def test_what_a_variant_has_beside_its_tensors_is_no_fault(tmp_path: Path) -> None:
    register_position("rich", Rich)
    encoder = Encoder(shape(position="rich", position_fields=(), position_per_layer=True)).eval()
    ids, mask = batch()
    wanted = encoder(ids, mask)
    save_checkpoint(own_checkpoint(encoder), tmp_path)
    assert torch.equal(load_checkpoint(tmp_path).encoder(ids, mask), wanted)


def test_a_class_made_by_every_call(tmp_path: Path) -> None:
    def variant(heads: int) -> nn.Module:
        class Local(Kerple):
            pass

        return Local(heads)

    register_position("local", variant)
    save_checkpoint(own_checkpoint(Encoder(shape(position="local", position_fields=()))), tmp_path)
    load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "rates", np.ones(3)), "position_bias.rates is array"),
        (lambda m: setattr(m, "rates", 3), "position_bias.rates is 3"),
        (lambda m: m.names["a"].append(1), "position_bias.names is "),
        (lambda m: setattr(m, "count", 2), "count is 2, but .* it is 0; .* an underscore"),
        (lambda m: setattr(m, "turn", 2), "position_bias.turn is 2, but"),
        (lambda m: setattr(m, "names", torch.ones(2)), "names .* is a buffer with persistent=Fal"),
        (
            lambda m: nn.utils.parametrizations.weight_norm(m.add, dim=0),
            r"position_bias\.add \(.*Linear\) is parametrized, .*remove_parametrizations",
        ),
    ],
)
def test_what_was_set_in_a_variant_is_named(change: Any, message: str) -> None:
    class More(Rich):
        def __init__(self, heads: int) -> None:
            super().__init__(heads)
            self.add = nn.Linear(1, heads)

    register_position("more", More)
    encoder = Encoder(shape(position="more", position_fields=()))
    own_checkpoint(encoder)
    change(encoder.position_bias)
    with pytest.raises(CheckpointError, match=message):
        own_checkpoint(encoder)


def test_a_published_encoder_becomes_ones_own(tmp_path: Path) -> None:
    """Its weights under other positions, with its tokenizer, as text."""
    text = pyenc.load(GOLDEN / "bert_mean_h4", pooling="mean", normalize=False)
    old = text.model
    config = replace(old.config, position="kerple", num_positions=0, max_length=300)
    encoder = Encoder(config).eval()
    given = {k: v for k, v in old.state_dict().items() if k != "embeddings.position.weight"}
    missing, unexpected = encoder.load_state_dict(given, strict=False)
    assert (sorted(missing), unexpected) == (["position_bias.outer", "position_bias.shift"], [])
    text.checkpoint = own_checkpoint(encoder)
    text.save(tmp_path)
    again = pyenc.load(tmp_path)
    assert again.model.config == config
    ids = torch.randint(0, config.vocab_size, (2, 12))
    assert torch.equal(again.model(ids), encoder(ids))
    if text.tokenizer is not None:
        texts = ["a text", "another one, which is longer"]
        assert (again.encode(texts) == text.encode(texts)).all()
    copied = pickle.loads(pickle.dumps(again.model))
    assert torch.equal(copied(ids), encoder(ids))


@pytest.mark.filterwarnings("ignore::pyenc.AssumptionWarning")
@pytest.mark.parametrize("lone", [False, True])
def test_a_familys_own_pooling_comes_along(lone: bool, tmp_path: Path) -> None:
    """GTE pools by its first token where no file says so; pyenc's own format takes the mean."""
    folder = tmp_path / "gte"
    shutil.copytree(GOLDEN / "gte_multilingual_like_h4", folder)
    (folder / "modules.json").unlink()
    if not lone:
        shutil.rmtree(folder / "1_Pooling")
    text = pyenc.load(folder)
    assert text.recipe.pooling == "cls"
    assert not text.recipe.normalize
    text.checkpoint = own_checkpoint(Encoder(replace(text.model.config, position="kerple")).eval())
    wanted = text.encode(["a text", "another one, which is longer"])
    text.save(tmp_path / "own")
    again = pyenc.load(tmp_path / "own")
    assert again.recipe.pooling == "cls"
    assert (again.encode(["a text", "another one, which is longer"]) == wanted).all()
    assert (tmp_path / "own" / "modules.json").exists() != lone


@pytest.mark.filterwarnings("ignore::pyenc.AssumptionWarning")
def test_a_recipe_that_no_file_says_is_written(tmp_path: Path) -> None:
    """A `TextEncoder` made by hand, with no files beside the weights."""
    text = pyenc.load(GOLDEN / "bert_mean_h4")
    ids = text.tokenizer
    for recipe in (Recipe(normalize=True), Recipe(pooling="max"), Recipe(include_prompt=False)):
        made = pyenc.TextEncoder(text.checkpoint, ids, recipe)
        made.save(tmp_path / "made")
        read = read_recipe(tmp_path / "made")
        for key in ("pooling", "normalize", "include_prompt"):
            assert getattr(read, key) == getattr(recipe, key)
        shutil.rmtree(tmp_path / "made")


@pytest.mark.parametrize("own", [False, True])
def test_what_would_not_load_is_not_written(own: bool, tmp_path: Path) -> None:
    """Training may have ended in NaN; what was there before stays."""
    if own:
        checkpoint = own_checkpoint(Encoder(shape()))
        name = "position_bias.outer"
    else:
        checkpoint = load_checkpoint(GOLDEN / "bert_cls_h2")
        name = "layers.0.attention.out.weight"
    tensor = dict(checkpoint.encoder.named_parameters())[name]
    with torch.no_grad():
        tensor.view(-1)[1] = torch.nan
    with pytest.raises(CheckpointError, match=rf"parameter {name} has nan at"):
        save_checkpoint(checkpoint, tmp_path / "new")
    assert not (tmp_path / "new").exists()
