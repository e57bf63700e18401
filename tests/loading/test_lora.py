"""LoRA adapters of peft: merged as the formula says, by any names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import pyenc
from pyenc.errors import CheckpointError
from pyenc.loading import load_checkpoint, save_checkpoint
from pyenc.loading.lora_settings import read_settings
from pyenc.models.int8 import quantization
from tests.conftest import GOLDEN
from tests.loading.lora_folders import (
    ALPHA,
    BASE,
    DOWN,
    PREFIX,
    QUERY,
    RANK,
    WORDS,
    adapter,
    base_tensors,
    changes,
    merged,
    of_own,
    weights,
)  # fmt: skip
from tests.loading.test_strict import edit_tensors
from tests.loading.test_variants import renaming, written


def check(found: dict[str, Tensor], right: dict[str, Tensor], base: dict[str, Tensor]) -> None:
    """The changed tensors are right, and all others the base's own."""
    for name, tensor in found.items():
        if name in right:
            assert (tensor.double() - right[name]).abs().max() <= 2e-6, name
            assert (tensor.double() - base[name].double()).abs().max() > 1e-2, name
        else:
            assert torch.equal(tensor, base[name]), name


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("rooted", [False, True])
def test_the_weights_themselves(tmp_path: Path, rooted: bool, lengths: bool, seed: int) -> None:
    tensors, base = changes(lengths=lengths, seed=seed), base_tensors()
    folder = adapter(tmp_path, tensors, use_rslora=rooted, use_dora=lengths)
    right = {
        f"{m}.weight": merged(base[f"{m}.weight"], tensors, m, rooted=rooted)
        for m in (QUERY, DOWN, WORDS)
    }
    check(weights(folder), right, base)


def test_ranks_and_alphas_of_their_own(tmp_path: Path) -> None:
    """By patterns of paths: the first that fits from the beginning of a word, as in peft."""
    ranks = {QUERY: 5, WORDS: 1}
    tensors, base = changes(rank=ranks), base_tensors()
    folder = adapter(
        tmp_path, tensors,
        rank_pattern={"uery": 7, "self.query": 5, "query": 9, r"embeddings\.[a-z_]+": 1},
        alpha_pattern={"layer.1.*dense": 0.5, "^embeddings.word_embeddings": 8},
    )  # fmt: skip
    alphas = {QUERY: ALPHA, DOWN: 0.5, WORDS: 8}
    right = {
        f"{m}.weight": merged(base[f"{m}.weight"], tensors, m, alpha=alpha)
        for m, alpha in alphas.items()
    }
    check(weights(folder), right, base)


def test_patterns_speak_of_the_trained_models_own_paths(tmp_path: Path) -> None:
    """Wrappers and all, which the base's names have not."""
    base = base_tensors()
    tensors = {n.replace(PREFIX, f"{PREFIX}0.auto_model."): t for n, t in changes().items()}
    folder = adapter(
        tmp_path, tensors, target_modules=[f"0.auto_model.{QUERY}", "dense", "word_embeddings"],
        alpha_pattern={r"^0\.auto_model\..*query": 9, "": 70},
    )  # fmt: skip
    right = {
        f"{m}.weight": merged(base[f"{m}.weight"], changes(), m, alpha=alpha)
        for m, alpha in {QUERY: 9, DOWN: ALPHA, WORDS: ALPHA}.items()
    }
    check(weights(folder), right, base)


def test_under_autocast(tmp_path: Path) -> None:
    """Of the caller's; nor are adapters of tasks then merged in half."""
    folder = adapter(tmp_path, changes())
    loads = (
        lambda: load_checkpoint(GOLDEN / BASE, adapter=folder),
        lambda: load_checkpoint(GOLDEN / "jinav3_lora_like_h2", task="separation"),
        lambda: pyenc.load("long-minilm", device="cpu").checkpoint,
    )
    for load in loads:
        right = load().encoder.state_dict()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = load().encoder.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in right.items())


@pytest.mark.parametrize("name", ["electra_mlm_like_h2", "albert_mlm_like_h2", "ernie_like_h4"])
def test_a_head_that_is_tied_goes_with_its_embedding(tmp_path: Path, name: str) -> None:
    """As in the merged model, whether or not the file has a copy of it."""
    stored = base_tensors(name)
    words = next(n for n in stored if n.endswith("word_embeddings.weight")).removesuffix(".weight")
    folder = adapter(tmp_path / "a", changes([words], base=name), GOLDEN / name)
    ids = torch.randint(5, 60, (1, 7))
    found = load_checkpoint(GOLDEN / name, adapter=folder, device="cpu")
    decoder = f"{words}.weight"
    copy = written(tmp_path, name, lambda t: t.update({decoder: merged_words(t, words, name)}))
    aliases = [n for n, t in stored.items() if n != decoder and torch.equal(t, stored[decoder])]
    if aliases:
        edit_tensors(copy, lambda t: t.update({n: t[decoder].clone() for n in aliases}))
    right = load_checkpoint(copy, device="cpu")
    assert (right.encoder.config.lm_head, bool(aliases)) == (
        found.encoder.config.lm_head, name.startswith("electra"),
    )  # fmt: skip
    with torch.no_grad():
        got, expected = (c.encoder.token_logits(ids) for c in (found, right))
    assert (got - expected).abs().max() <= 1e-4


def merged_words(tensors: dict[str, Tensor], words: str, name: str) -> Tensor:
    return merged(tensors[f"{words}.weight"], changes([words], base=name), words).float()


def test_defaults_of_what_is_not_said(tmp_path: Path) -> None:
    """As peft's: a rank and an alpha of 8."""
    tensors, base = changes([QUERY], rank=8), base_tensors()
    keys = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
    folder = adapter(tmp_path, tensors, **dict.fromkeys(keys, ...))
    name = f"{QUERY}.weight"
    check(weights(folder), {name: merged(base[name], tensors, QUERY, alpha=8)}, base)


def test_biases_and_whole_tensors(tmp_path: Path) -> None:
    """`lora_bias` adds to a bias; what is saved whole stands in the base's place."""
    tensors, base = changes([QUERY, WORDS]), base_tensors()
    added, key, norm = torch.randn(64), torch.randn(64), torch.rand(64) + 1
    words = torch.randn_like(base[f"{WORDS}.weight"])
    tensors |= {
        f"{PREFIX}{QUERY}.lora_B.bias": added,
        f"{PREFIX}encoder.layer.0.attention.self.key.bias": key,
        f"{PREFIX}embeddings.LayerNorm.weight": norm,
        f"{PREFIX}{WORDS}.base_layer.weight": words,
    }
    folder = adapter(tmp_path, tensors, bias="all", lora_bias=True, modules_to_save=["LayerNorm"])
    right = {
        f"{QUERY}.weight": merged(base[f"{QUERY}.weight"], tensors, QUERY),
        f"{QUERY}.bias": base[f"{QUERY}.bias"].double() + ALPHA / RANK * added.double(),
        f"{WORDS}.weight": merged(words, tensors, WORDS),
        "encoder.layer.0.attention.self.key.bias": key.double(),
        "embeddings.LayerNorm.weight": norm.double(),
    }
    check(weights(folder), right, base)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_in_the_adapters_own_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors, base = changes(dtype=dtype), base_tensors()
    folder = adapter(tmp_path, tensors)
    right = {f"{m}.weight": merged(base[f"{m}.weight"], tensors, m) for m in (QUERY, DOWN, WORDS)}
    check(weights(folder), right, base)


def test_rounded_once(tmp_path: Path) -> None:
    """In the dtype of the base's file a weight is the sum in float32, rounded."""
    name = "qwen3_embed_like_h4"
    module = "layers.1.self_attn.q_proj"
    tensors = changes([module], base=name, dtype=torch.bfloat16)
    folder = adapter(tmp_path, tensors, GOLDEN / name, target_modules=["q_proj"])
    wide = weights(folder, GOLDEN / name)[f"{module}.weight"]
    kept = weights(folder, GOLDEN / name, dtype="auto")[f"{module}.weight"]
    assert kept.dtype == torch.bfloat16
    assert torch.equal(kept, wide.to(torch.bfloat16))


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("dtype", ["float64", torch.float64])
def test_in_doubles(tmp_path: Path, dtype: str | torch.dtype, lengths: bool) -> None:
    """Asked for, they are what the sum is made in, whatever the files hold."""
    tensors, base = changes(lengths=lengths), base_tensors()
    tensors[f"{PREFIX}{QUERY}.lora_B.bias"] = torch.randn(64)
    found = weights(adapter(tmp_path, tensors, use_dora=lengths), dtype=dtype)
    right = {f"{m}.weight": merged(base[f"{m}.weight"], tensors, m) for m in (QUERY, DOWN, WORDS)}
    added = tensors[f"{PREFIX}{QUERY}.lora_B.bias"].double()
    right[f"{QUERY}.bias"] = base[f"{QUERY}.bias"].double() + ALPHA / RANK * added
    for name, tensor in right.items():
        assert found[name].dtype == torch.float64
        assert (found[name] - tensor).abs().max() <= 1e-14, name


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("trained", ["", "bert."])
@pytest.mark.parametrize("wrapped", [PREFIX, ""])
def test_by_other_prefixes(tmp_path: Path, prefix: str, trained: str, wrapped: str) -> None:
    """The trained model's own names, the base's file's, and a head that only the former has."""
    base = written(tmp_path, BASE, renaming(lambda name: prefix + name))
    tensors = changes()
    plain = {n.removeprefix(PREFIX): t for n, t in tensors.items()}
    named = {f"{wrapped}{trained}{n}": t for n, t in plain.items()}
    named[f"{wrapped}classifier.weight"] = torch.randn(2, 64)
    named[f"{wrapped}classifier.bias"] = torch.randn(2)
    folder = adapter(tmp_path / "adapter", named, base, modules_to_save=["classifier"])
    right = {
        f"{prefix}{m}.weight": merged(base_tensors()[f"{m}.weight"], tensors, m)
        for m in (QUERY, DOWN, WORDS)
    }
    check(weights(folder, base), right, {prefix + n: t for n, t in base_tensors().items()})
    checkpoint = load_checkpoint(base, adapter=folder)
    save_checkpoint(checkpoint, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert torch.equal(saved["classifier.weight"], named[f"{wrapped}classifier.weight"])


def test_old_names_of_norms(tmp_path: Path) -> None:
    """The base's file has `LayerNorm.gamma`, the adapter today's name."""
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(name: str) -> str:
        for new, was in old.items():
            name = name.replace(new, was)
        return name

    base = written(tmp_path, BASE, renaming(rename))
    norm = torch.rand(64) + 1
    tensors = changes([QUERY]) | {f"{PREFIX}embeddings.LayerNorm.weight": norm}
    folder = adapter(tmp_path / "adapter", tensors, base)
    assert torch.equal(weights(folder, base)["embeddings.LayerNorm.gamma"], norm)


def test_pickled(tmp_path: Path) -> None:
    tensors, base = changes([QUERY]), base_tensors()
    folder = adapter(tmp_path, tensors)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    name = f"{QUERY}.weight"
    check(weights(folder), {name: merged(base[name], tensors, QUERY)}, base)


def test_in_eight_bits(tmp_path: Path) -> None:
    """The merged weights are quantised; weights in eight bits are no base."""
    folder = adapter(tmp_path / "adapter", changes())
    checkpoint = load_checkpoint(GOLDEN / BASE, adapter=folder, quantize="int8", device="cpu")
    assert quantization(checkpoint.encoder)
    pyenc.load(GOLDEN / BASE, device="cpu", quantize="int8").save(tmp_path / "small")
    with pytest.raises(CheckpointError, match=r"small: its linear layers are saved in eight bits"):
        load_checkpoint(tmp_path / "small", adapter=folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [BASE, "neobert_like_h4", "qwen3_embed_like_h4"])
def test_by_the_encoders_own_names(tmp_path: Path, name: str, dtype: str) -> None:
    """An adapter of parameters, some of which stand in several tensors of the file, or in another
    order of rows; rounded once."""
    base = load_checkpoint(GOLDEN / name, device="cpu", dtype="float64").encoder.state_dict()
    modules = ("layers.1.attention.qkv", "layers.0.feed_forward.up")
    tensors: dict[str, Tensor] = {}
    for module in modules:
        rows, width = base[f"{module}.weight"].shape
        tensors |= of_own({f"{module}.lora_A.weight": torch.randn(RANK, width) / 4})
        tensors |= of_own({f"{module}.lora_B.weight": torch.randn(rows, RANK) / 4})
    norm = torch.rand_like(base["layers.0.feed_forward_norm.weight"]).float() + 1
    tensors |= of_own({"layers.0.feed_forward_norm.weight": norm})
    folder = adapter(tmp_path, tensors, target_modules=["qkv", "up"], base_model_name_or_path=None)
    found = load_checkpoint(GOLDEN / name, adapter=folder, device="cpu", dtype=dtype)
    near = 1e-6 if dtype == "float32" else 2**-8
    for parameter, tensor in found.encoder.state_dict().items():
        module, right = parameter.removesuffix(".weight"), base[parameter]
        if module in modules:
            right = merged(right, tensors, module)
            assert (tensor - base[parameter]).abs().max() > 1e-2
        elif parameter == "layers.0.feed_forward_norm.weight":
            right = norm.double()
        assert ((tensor.double() - right).abs() <= near * right.abs().clamp(min=1)).all(), parameter
    save_checkpoint(found, tmp_path / "saved")
    again = load_checkpoint(tmp_path / "saved", device="cpu", dtype=dtype).encoder.state_dict()
    assert all(torch.equal(again[n], t) for n, t in found.encoder.state_dict().items())


def test_scaling_by_the_first_pattern(tmp_path: Path) -> None:
    settings = read_settings(
        adapter(
            tmp_path, {}, rank_pattern={"b": 2, "a.b": 4}, alpha_pattern={"b": 6}, use_rslora=True
        )
    )
    assert [settings.rank_of(m) for m in ("b", "a.b", "x.a.b", "xb", "b.x")] == [
        2,
        2,
        2,
        RANK,
        RANK,
    ]
    assert settings.scaling_of("a.b") == pytest.approx(6 / 2**0.5)
    assert settings.scaling_of("ab") == pytest.approx(ALPHA / RANK**0.5)
