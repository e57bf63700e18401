"""Harmless variants of a file: names that wrappers of modules left, constants that were stored."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyenc.errors import CheckpointError
from pyenc.loading import load_checkpoint, save_checkpoint
from tests.conftest import GOLDEN

NAME = "model.safetensors"
Q0 = "encoder.layer.0.attention.self.query.weight"


def written(tmp_path: Path, golden: str, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A golden checkpoint with its tensors changed, as safetensors."""
    folder = tmp_path / golden
    shutil.copytree(GOLDEN / golden, folder)
    if (folder / NAME).is_file():
        tensors = load_file(folder / NAME)
    else:
        tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
        (folder / "pytorch_model.bin").unlink()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / NAME, metadata={"format": "pt"})
    return folder


def renaming(rename: Callable[[str], str]) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[rename(name)] = tensors.pop(name)

    return change


def compiled_layers(name: str) -> str:
    return name.replace("encoder.layer.0.", "encoder.layer.0._orig_mod.")


@pytest.mark.parametrize("golden", ["bert_mean_h4", "jina_geglu_h4", "mosaic_mlm_h4"])
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module._orig_mod.{name}",
        lambda name: f"module._fsdp_wrapped_module.{name}",
        lambda name: name if "embeddings" in name else f"module.{name}",
        compiled_layers,
        lambda name: "module." + compiled_layers(name),
        lambda name: f"_forward_module.{name}",
        lambda name: name.replace("encoder.", "encoder._checkpoint_wrapped_module."),
        lambda name: f"0.auto_model.{name}",
        lambda name: f"auto_model.{name}",
        lambda name: f"module.0.module.auto_model.{name}",
        lambda name: f"0.{name}",
    ],
)
def test_names_of_wrappers(tmp_path: Path, golden: str, rename: Callable[[str], str]) -> None:
    """Loaded as the plain names are, heads and ties too, and saved under the names they came by."""
    folder = written(tmp_path, golden, renaming(rename))
    checkpoint, plain = load_checkpoint(folder), load_checkpoint(GOLDEN / golden)
    for name, tensor in plain.encoder.state_dict().items():
        assert torch.equal(checkpoint.encoder.state_dict()[name], tensor), name
    assert checkpoint.set_aside.keys() == {rename(name) for name in plain.set_aside}
    assert checkpoint.tied == {rename(name): to for name, to in plain.tied.items()}
    assert checkpoint.buffers.keys() == {rename(name) for name in plain.buffers}
    save_checkpoint(checkpoint, tmp_path / "saved")
    before, after = load_file(folder / NAME), load_file(tmp_path / "saved" / NAME)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module._orig_mod.bert.{name}",
        lambda name: f"bert._orig_mod.{name}",
        lambda name: f"model.module.bert._orig_mod.{name}",
        lambda name: f"_orig_mod.model.{name}",
        lambda name: f"0.model.{name}",
        lambda name: f"0.auto_model.bert.{name}",
        lambda name: f"_forward_module.module.0.model.{name}",
        lambda name: f"model.0.auto_model.{name}",
    ],
)
def test_among_the_prefixes_of_a_family(tmp_path: Path, rename: Callable[[str], str]) -> None:
    folder = written(tmp_path, "bert_mean_h4", renaming(rename))
    plain = load_checkpoint(GOLDEN / "bert_mean_h4").encoder.state_dict()
    for name, tensor in load_checkpoint(folder).encoder.state_dict().items():
        assert torch.equal(tensor, plain[name]), name


def test_a_last_word_is_never_a_wrapper(tmp_path: Path) -> None:
    """A parameter called `module` is a parameter."""
    folder = written(
        tmp_path, "bert_mean_h4", lambda t: t.update({"encoder.module": torch.zeros(1)})
    )
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'encoder\.module'"):
        load_checkpoint(folder)


@pytest.mark.parametrize("outer", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("equal", [True, False])
def test_both_names_are_refused(tmp_path: Path, outer: str, equal: bool) -> None:
    """Equal tensors too: the next step of training will have made them different."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[outer + Q0] = tensors[Q0].clone() + (not equal)

    folder = written(tmp_path, "jina_geglu_h4", change)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    for word in (str(folder), repr(Q0), repr(outer + Q0), "twice"):
        assert word in str(caught.value)


def test_old_and_new_names_of_a_norm(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["embeddings.LayerNorm.gamma"] = tensors["embeddings.LayerNorm.weight"].clone()

    folder = written(tmp_path, "jina_geglu_h4", change)
    with pytest.raises(CheckpointError, match=r"LayerNorm\.gamma' and as 'embeddings"):
        load_checkpoint(folder)


def published_slopes(heads: int) -> list[float]:
    """As the reference code of arXiv 2108.12409 has it."""

    def power(n: int) -> list[float]:
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(heads).is_integer():
        return power(heads)
    closest = 2 ** math.floor(math.log2(heads))
    return power(closest) + published_slopes(2 * closest)[0::2][: heads - closest]


def published_table(heads: int, size: int) -> Tensor:
    """As JinaBert's `rebuild_alibi_tensor` and MosaicBERT's have it: (1, H, N, N) float32."""
    context, memory = torch.arange(size)[:, None], torch.arange(size)[None, :]
    relative = torch.abs(memory - context).unsqueeze(0).expand(heads, -1, -1)
    slopes = torch.tensor(published_slopes(heads), dtype=torch.float32) * -1
    return (slopes.unsqueeze(1).unsqueeze(1) * relative).unsqueeze(0)


ALIBI = ["jina_geglu_h4", "jina_qk_h6", "mosaic_base_h12", "mosaic_mlm_h4"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("golden", ALIBI)
def test_a_stored_alibi_table(tmp_path: Path, golden: str, dtype: torch.dtype) -> None:
    prefix = "bert." if golden == "mosaic_mlm_h4" else ""
    heads = load_checkpoint(GOLDEN / golden).encoder.config.num_heads
    stored = {
        f"{prefix}encoder.alibi": published_table(heads, 300).to(dtype),
        f"module.{prefix}encoder.alibi_slopes": torch.tensor(published_slopes(heads)).to(dtype),
    }
    folder = written(tmp_path, golden, lambda t: t.update(stored))
    checkpoint = load_checkpoint(folder)
    assert checkpoint.buffers.keys() >= stored.keys()
    assert not list(checkpoint.encoder.buffers())
    save_checkpoint(checkpoint, tmp_path / "saved")
    after = load_file(tmp_path / "saved" / NAME)
    for name, tensor in stored.items():
        assert torch.equal(after[name], tensor)
        assert after[name].dtype == dtype


def other_rounding(heads: int, size: int, dtype: torch.dtype) -> Tensor:
    """The table of a module that was cast before it was made."""
    places = torch.arange(size)
    distance = (places[:, None] - places).abs().to(dtype)
    slopes = torch.tensor(published_slopes(heads)).to(dtype)
    return -distance * slopes.view(1, heads, 1, 1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("golden", ["mosaic_base_h12", "jina_geglu_h6"])
def test_slopes_rounded_first(tmp_path: Path, golden: str, dtype: torch.dtype, sign: int) -> None:
    heads = 12 if golden == "mosaic_base_h12" else 6
    table, slopes = other_rounding(heads, 300, dtype), torch.tensor(published_slopes(heads))
    if heads == 12 and dtype in (torch.float16, torch.bfloat16):  # the six are powers of two
        assert not torch.equal(table, published_table(heads, 300).to(dtype))
    stored = {"encoder.alibi": table, "encoder.alibi_slopes": sign * slopes.to(dtype)}
    checkpoint = load_checkpoint(written(tmp_path, golden, lambda t: t.update(stored)))
    assert checkpoint.buffers.keys() >= stored.keys()


def test_two_roundings_in_one_table(tmp_path: Path) -> None:
    table = published_table(12, 300).half()
    table[:, -1] = other_rounding(12, 300, torch.float16)[:, -1]
    folder = written(tmp_path, "mosaic_base_h12", lambda t: t.update({"encoder.alibi": table}))
    with pytest.raises(CheckpointError, match="not what is computed"):
        load_checkpoint(folder)


@pytest.mark.parametrize("outer", ["", "module."])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_the_counter_of_an_average(tmp_path: Path, outer: str, dtype: torch.dtype) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        renaming(lambda name: f"{outer}module.{name}")(tensors)
        tensors[outer + "n_averaged"] = torch.tensor(7, dtype=dtype)

    folder = written(tmp_path, "mosaic_mlm_h4", change)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.buffers[outer + "n_averaged"] == 7
    save_checkpoint(checkpoint, tmp_path / "saved")
    before, after = load_file(folder / NAME), load_file(tmp_path / "saved" / NAME)
    assert before.keys() == after.keys()


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("n_averaged", torch.tensor(7.0)),
        ("n_averaged", torch.tensor(True)),
        ("n_averaged", torch.tensor([7, 8])),
        ("encoder.n_averaged", torch.tensor(7)),
    ],
)
def test_no_counter(tmp_path: Path, name: str, tensor: Tensor) -> None:
    folder = written(tmp_path, "bert_mean_h4", lambda t: t.update({name: tensor}))
    with pytest.raises(CheckpointError, match=f"unexpected tensor '{name}'"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("golden", "name", "tensor"),
    [
        ("jina_geglu_h4", "encoder.alibi", torch.zeros(1, 4, 8, 8, dtype=torch.int64)),
        ("jina_geglu_h4", "encoder.alibi", -other_rounding(4, 64, torch.float16)),
        ("mosaic_base_h12", "encoder.alibi", other_rounding(12, 64, torch.float16).float()),
        ("jina_geglu_h4", "encoder.slopes", torch.tensor(published_slopes(4)).abs() * 2),
        ("jina_geglu_h4", "encoder.slopes", torch.tensor([1, -1, 1, 1]) * 0.25),
        ("jina_geglu_h4", "encoder.slopes", torch.zeros(4, dtype=torch.int64)),
        ("jina_geglu_h4", "encoder.alibi", published_table(4, 64) * 1.001),
        ("jina_geglu_h4", "encoder.alibi", -published_table(4, 64)),
        ("jina_geglu_h4", "encoder.alibi", published_table(8, 64)),
        ("jina_geglu_h4", "encoder.alibi", published_table(4, 64).triu()),
        ("jina_geglu_h4", "encoder.alibi", published_table(4, 64)[..., 0]),
        ("jina_geglu_h4", "encoder.alibi", torch.zeros(())),
        ("jina_geglu_h4", "encoder.alibi", published_table(4, 64).cfloat()),
        ("jina_geglu_h4", "encoder.slopes", torch.tensor(published_slopes(4)).flip(0)),
        ("mosaic_base_h12", "encoder.alibi", published_table(16, 32)[:, :12]),
        ("bert_mean_h4", "embeddings.position_ids", torch.arange(1, 321)[None]),
        ("bert_mean_h4", "embeddings.position_ids", torch.arange(320).view(2, 160)),
        ("bert_mean_h4", "embeddings.position_ids", torch.tensor(3)),
        ("bert_mean_h4", "embeddings.position_ids", torch.full((1, 320), float("nan"))),
        ("bert_mean_h4", "embeddings.token_type_ids", torch.ones(1, 320, dtype=torch.long)),
        ("jina_geglu_h4", "module.embeddings.token_type_ids", torch.arange(320)),
    ],
)
def test_a_constant_that_is_another(tmp_path: Path, golden: str, name: str, tensor: Tensor) -> None:
    try:
        folder = written(tmp_path, golden, lambda t: t.update({name: tensor.contiguous()}))
    except KeyError:
        if not tensor.is_complex():
            raise
        pytest.skip("this safetensors writes no complex numbers")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    for word in (str(folder / NAME), repr(name), "not what is computed"):
        assert word in str(caught.value)


def test_a_table_of_what_the_family_has_not(tmp_path: Path) -> None:
    """BERT's names and a stored bias: another arithmetic than BERT's."""
    folder = written(
        tmp_path, "bert_mean_h4", lambda t: t.update({"encoder.alibi": published_table(4, 8)})
    )
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'encoder\.alibi'"):
        load_checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float16, torch.float8_e4m3fn])
def test_positions_in_a_dtype_that_was_cast(tmp_path: Path, dtype: torch.dtype) -> None:
    ids = torch.arange(320 if dtype in (torch.int32, torch.float16) else 16)[None].to(dtype)
    folder = written(tmp_path, "bert_mean_h4", lambda t: t.update({"embeddings.position_ids": ids}))
    assert "embeddings.position_ids" in load_checkpoint(folder).buffers
