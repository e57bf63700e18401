"""A registered variant as an encoder's positions: in every layout, on every backend, saved and
loaded again."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from dataclasses import replace
from functools import partial
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
from pyenc.models import Encoder, EncoderConfig, HeadConfig, position, register_position
from pyenc.models.rotary import Rotary
from pyenc.text.recipe import Recipe, read_recipe
from tests.conftest import GOLDEN
from tests.oracle import assert_right


class Kerple(nn.Module):
    """A logarithm of the distance, with parameters, a scalar, and what follows from the fields."""

    def __init__(self, heads: int, inner: float = 1.0, signs: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.outer = nn.Parameter(0.5 + torch.rand(heads))
        self.shift = nn.Parameter(torch.tensor(0.25))
        self.register_buffer("inner", torch.full((heads,), inner), persistent=False)
        self.signs = signs

    def along(self, offsets: Tensor) -> Tensor:
        inner = self.inner.to(self.outer.dtype)[:, None]
        lean = self.shift * (offsets > 0)
        return -self.outer[:, None] * (1 + inner * offsets.abs()).log() + lean


class Blocks(Kerple):
    """The same, pair by pair: what the backends without a line of distances serve."""

    along = None  # type: ignore[assignment]

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        ahead = j[None, :] - i[:, None]
        line = Kerple.along(self, ahead.reshape(-1))
        return line.view(-1, *ahead.shape)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position, "_variants", {})
    register_position("kerple", Kerple)


def shape(**more: Any) -> EncoderConfig:
    given: dict[str, Any] = {
        "vocab_size": 60, "hidden_size": 24, "num_layers": 2, "num_heads": 3,
        "intermediate_size": 40, "position": "kerple", "max_length": 500,
        "position_fields": {"inner": 0.5, "signs": [1, -1]},
    }  # fmt: skip
    return EncoderConfig(**given | more)


CONFIGS = {
    "shared": {},
    "per layer": {"position_per_layer": True},
    "rotary": {"rotary": Rotary(10_000.0), "norm_first": True, "qk_norm": False},
    "local": {"window": 3, "local": (True, False), "lm_head": HeadConfig(tied=False)},
}


def batch() -> tuple[Tensor, Tensor]:
    """Padding right, left, on both sides, and holes."""
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[0, 6:] = 0
    mask[1, :4] = 0
    mask[2, 0] = mask[2, 8] = 0
    mask[3, 2] = mask[3, 5] = 0
    return torch.randint(0, 60, mask.shape), mask


@pytest.mark.parametrize("more", CONFIGS.values(), ids=CONFIGS.keys())
def test_against_the_oracle(more: dict[str, Any]) -> None:
    """Hidden states and the gradient of every parameter, the variant's own among them."""
    encoder = Encoder(shape(**more), skip_eps=0)
    oracle = copy.deepcopy(encoder).double()
    oracle.backend = "reference"
    naive = copy.deepcopy(encoder)
    naive.backend = "torch"
    ids, mask = batch()
    weight = torch.randn(*ids.shape, 24)
    results = []
    for model in (encoder, naive, oracle):
        used = {n: p for n, p in model.named_parameters() if not n.startswith("lm_head")}
        hidden = model(ids, mask)
        grads = torch.autograd.grad((hidden * weight).sum(), list(used.values()))
        results.append([hidden, *grads])
    names = ["hidden", *used]
    assert sum("position_bias" in name for name in names) == (
        4 if more.get("position_per_layer") else 2
    )
    for name, three in zip(names, zip(*results, strict=True), strict=True):
        assert_right(*three, gradient=name != "hidden", what=name)
        if "position_bias" in name:
            assert three[2].abs().min() > 0, name


def test_the_bias_is_what_it_says() -> None:
    """Without any bias the answer is another; with its numbers as a dense bias it is the same."""
    encoder = Encoder(shape(num_layers=1), skip_eps=0)
    module = encoder.position_bias
    assert isinstance(module, Kerple)
    seen: list[Any] = []
    from pyenc.models import layers

    whole = layers.attention
    place = torch.arange(7)

    def dense(*args: Any, **named: Any) -> Any:
        seen.append(named["bias"])
        table = module.along((place[None, :] - place[:, None]).reshape(-1)).view(3, 7, 7)
        return whole(*args, **named | {"bias": table.detach()})

    ids = torch.randint(0, 60, (2, 7))
    with torch.no_grad():
        wanted = encoder(ids)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers, "attention", dense)
            got = encoder(ids)
        module.outer.mul_(3)
        other = encoder(ids)
    assert seen == [module]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert (other - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("variant", [Kerple, Blocks])
def test_the_layout_does_not_matter(variant: type[nn.Module]) -> None:
    """Packed, padded right or left, in another order: the same states of the same tokens."""
    register_position("other", variant)
    encoder = Encoder(shape(position="other")).eval()
    texts = [torch.randint(0, 60, (n,)) for n in (5, 1, 8)]
    bounds = torch.tensor([0, 5, 6, 14])
    with torch.no_grad():
        packed = encoder.forward_packed(torch.cat(texts), bounds).split([5, 1, 8])
        order = [2, 0, 1]
        permuted = encoder.forward_packed(
            torch.cat([texts[i] for i in order]), torch.tensor([0, 8, 13, 14])
        ).split([8, 5, 1])
        for left in (False, True):
            ids, mask = torch.zeros(2, 3, 11, dtype=torch.long)
            for row, text in enumerate(texts):
                at = slice(11 - len(text), 11) if left else slice(0, len(text))
                ids[row, at], mask[row, at] = text, 1
            rows = encoder(ids, mask)
            assert not rows[mask == 0].any()
            for row, wanted in enumerate(packed):
                torch.testing.assert_close(rows[row][mask[row] == 1], wanted, rtol=1e-5, atol=1e-5)
    for i, got in zip(order, permuted, strict=True):
        torch.testing.assert_close(got, packed[i], rtol=1e-5, atol=1e-5)


def test_line_and_blocks_agree() -> None:
    register_position("blocks", Blocks)
    line = Encoder(shape(), skip_eps=0)
    blocks = Encoder(shape(position="blocks"))
    blocks.load_state_dict(line.state_dict())
    ids, mask = batch()
    torch.testing.assert_close(blocks(ids, mask), line(ids, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_compiled_whole(masked: bool) -> None:
    torch._dynamo.reset()
    encoder = Encoder(shape(position_per_layer=True))
    ids, mask = batch()
    given = (ids, mask) if masked else (ids,)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        run = torch.compile(encoder, fullgraph=True, backend="aot_eager")
        pairs = []
        for model in (run, encoder):
            hidden = model(*given)
            used = [p for n, p in encoder.named_parameters() if "position_bias" in n]
            pairs.append([hidden, *torch.autograd.grad(hidden.square().sum(), used)])
    for got, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


# ---- saved and loaded -------------------------------------------------------------------------


def saved(folder: Path, **more: Any) -> Encoder:
    encoder = Encoder(shape(**more)).eval()
    save_checkpoint(own_checkpoint(encoder), folder)
    return encoder


@pytest.mark.parametrize("more", CONFIGS.values(), ids=CONFIGS.keys())
def test_loads_back_equal(more: dict[str, Any], tmp_path: Path) -> None:
    encoder = saved(tmp_path, **more)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == {name for name, _ in encoder.named_parameters()}
    drawn = torch.random.get_rng_state()
    again = load_checkpoint(tmp_path)
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


# ---- registration -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alibi", "", 3, None])
def test_names_that_are_refused(name: Any) -> None:
    with pytest.raises(InputError, match="the name must be a string other than alibi"):
        register_position(name, Kerple)


def test_a_name_is_one_variants() -> None:
    register_position("kerple", Kerple)
    with pytest.raises(InputError, match=r"'kerple' is .*Kerple already; .*Blocks needs another"):
        register_position("kerple", Blocks)
    with pytest.raises(InputError, match="must be callable"):
        register_position("x", 3)  # type: ignore[arg-type]
    again = type("Kerple", (Kerple,), {"__module__": Kerple.__module__})
    register_position("kerple", again)
    assert type(Encoder(shape()).position_bias) is again


def made(kind: str, value: Any) -> Any:
    """A variant of each kind that has no name of its own."""

    def inner(heads: int) -> nn.Module:
        return Kerple(heads, value)

    class Inner(Kerple):
        def __init__(self, heads: int) -> None:
            super().__init__(heads, value)

    return {
        "partial": partial(Kerple, inner=value),
        "partial of a partial": partial(partial(Kerple, inner=value)),
        "partial of a lambda": partial(lambda heads: Kerple(heads, value)),
        "lambda": lambda heads: Kerple(heads, value),
        "default": lambda heads, inner=value: Kerple(heads, inner),
        "keyword": lambda heads, *, inner=value: Kerple(heads, inner),
        "function": inner,
        "class": Inner,
    }[kind]


KINDS = (
    "partial", "partial of a partial", "partial of a lambda", "lambda", "default", "keyword",
    "function", "class",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_another_variant_without_a_name(kind: str) -> None:
    """The same one made again takes its place; one that does something else is refused."""
    register_position("x", made(kind, 1.0))
    again = made(kind, 1.0)
    register_position("x", again)
    assert position._variants["x"] is again
    with pytest.raises(InputError, match=r"'x' is .* already; .* needs another name"):
        register_position("x", made(kind, 2.0))
    assert position._variants["x"] is again


def test_two_lambdas_are_not_one() -> None:
    register_position("x", lambda heads: Kerple(heads))
    with pytest.raises(InputError, match=r"'x' is .*<lambda> already"):
        register_position("x", lambda heads: Blocks(heads))
    with pytest.raises(InputError, match=r"partial\(.*Kerple, inner=2\) needs another name"):
        register_position("x", partial(Kerple, inner=2))
    register_position("y", partial(Kerple, inner=2))
    with pytest.raises(InputError, match=r"'y' is partial\(.*Kerple, inner=2\) already"):
        register_position("y", partial(Blocks, inner=2))


class Saved(Kerple):
    def __init__(self, heads: int) -> None:
        super().__init__(heads)
        self.register_buffer("steps", torch.zeros(1))


def given(**parameters: Any) -> Any:
    """A variant with parameters of the test's choosing, new ones at every call."""

    def variant(heads: int) -> nn.Module:
        module = Kerple(heads)
        for name, value in parameters.items():
            tensor = value.clone() if isinstance(value, Tensor) else value(module)
            needs = tensor.is_floating_point()
            if not isinstance(tensor, nn.Parameter):
                tensor = nn.Parameter(tensor, requires_grad=needs)
            module.register_parameter(name, tensor)
        return module

    return variant


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (given(w=torch.tensor([0.0, -torch.inf])), "parameter w is not finite"),
        (given(w=torch.tensor([torch.nan])), "parameter w is not finite"),
        (given(w=torch.arange(3)), "parameter w is torch.int64, and must be of floating point"),
        (given(w=torch.ones(2, dtype=torch.cfloat)), "parameter w is torch.complex64"),
        (given(w=lambda module: module.outer), "outer and w are one parameter"),
        (given(w=lambda module: nn.UninitializedParameter()), "parameter w has no shape yet"),
        (lambda heads: object(), "must give a torch.nn.Module, got object"),
        (lambda heads: nn.Linear(2, 2), "it has no method along"),
        (Saved, "steps would be saved and is no parameter"),
        (lambda heads: 1 / 0, "failed: division by zero"),
    ],
)
def test_variants_that_are_refused(variant: Any, message: str) -> None:
    register_position("other", variant)
    with pytest.raises(InputError, match=message):
        Encoder(shape(position="other", position_fields=()))


def test_each_call_makes_a_module_of_its_own() -> None:
    """One for two layers, or for two encoders, would load as one parameter under two names."""
    lone, weight = Kerple(3), nn.Parameter(torch.ones(3))
    register_position("lone", lambda heads: lone)
    with pytest.raises(InputError, match="gave a module that an encoder or a layer has already"):
        Encoder(shape(position="lone", position_fields=(), position_per_layer=True))
    another = Kerple(3)
    register_position("another", lambda heads: another)
    kept = Encoder(shape(position="another", position_fields=()))
    with pytest.raises(InputError, match=r"'another'.* every call must make one of its own"):
        Encoder(kept.config)
    register_position("tied", given(w=lambda module: weight))
    with pytest.raises(InputError, match="parameter w of layer 1 is layer 0's too"):
        Encoder(shape(position="tied", position_fields=(), position_per_layer=True))


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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"position": "alibi", "position_fields": {"a": 1}}, "go with a registered variant"),
        ({"position": "alibi", "position_fields": (), "position_per_layer": True}, "go with a reg"),
        ({"position_fields": {"a": torch.ones(1)}}, "a must be a number, a string"),
        ({"position_fields": {"a": float("inf")}}, "a must be finite"),
        ({"norm_eps": float("nan")}, "norm_eps must be finite and not negative: nan"),
        ({"scale": float("nan")}, "scale must be finite: nan"),
        ({"num_positions": 320}, "num_positions 320 goes with .* beside 'kerple' it must be 0"),
        ({"position_fields": 3}, "must map names to values"),
        ({"relative_buckets": 32}, "not beside alibi or a registered variant"),
        ({"rotary": Rotary(1e4), "hidden_size": 21}, "rotary needs even heads, not 7"),
    ],
)
def test_configs_that_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shape(**more)


def test_fields_may_be_given_in_any_order() -> None:
    fields = [("signs", (1, -1)), ("inner", 0.5)]
    assert shape(position_fields=fields) == shape()
    assert hash(shape(position_fields=fields)) == hash(shape())
