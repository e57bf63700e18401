"""A mixture of experts written out, token by token and expert by expert, and a whole encoder that
has some: what pyenc's are held against. Nothing of pyenc's arithmetic is used here.

The formula is that of nomic-embed-text-v2-moe's published code (contrastors, MegaBlocks): softmax
over all experts, the largest k of it, weights as they are, one bias after the sum.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import GOLDEN

ACTIVATIONS = {
    "gelu": lambda h: h * 0.5 * (1 + torch.erf(h / math.sqrt(2))),
    "gelu_tanh": lambda h: (
        0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    ),
    "silu": lambda h: h / (1 + torch.exp(-h)),
    "relu": lambda h: h * (h > 0),
}


def weighted_sum(
    x: Tensor, chosen: Tensor, weights: Tensor, up: Tensor, down: Tensor, activation: str = "gelu"
) -> Tensor:
    """x (T, C), chosen and weights (T, K), up and down (E, F, C): (T, C)."""
    out = []
    for t in range(x.shape[0]):
        total = x[t] * 0
        for k in range(chosen.shape[1]):
            e = int(chosen[t, k])
            hidden = ACTIVATIONS[activation](torch.mv(up[e], x[t]))
            total = total + weights[t, k] * torch.mv(down[e].t(), hidden)
        out.append(total)
    return torch.stack(out) if out else x * 0


def routed(x: Tensor, router: Tensor, each: int, normalized: bool) -> tuple[Tensor, Tensor]:
    """Of every token the experts, best first and of equal ones the first, and their weights."""
    chosen, weights = [], []
    for t in range(x.shape[0]):
        logits = torch.mv(router, x[t])
        shares = torch.exp(logits - logits.max())
        shares = shares / shares.sum()
        listed = shares.tolist()
        best = sorted(range(len(shares)), key=lambda e: (-listed[e], e))[:each]
        top = torch.stack([shares[e] for e in best])
        chosen.append(best)
        weights.append(top / top.sum() if normalized else top)
    return torch.tensor(chosen), torch.stack(weights)


def mixture(
    x: Tensor, router: Tensor, up: Tensor, down: Tensor, bias: Tensor, each: int,
    normalized: bool = False, activation: str = "gelu",
) -> Tensor:  # fmt: skip
    """x (T, C), router (E, C), up and down (E * F, C), bias (C,)."""
    shape = (router.shape[0], -1, x.shape[1])
    chosen, weights = routed(x, router, each, normalized)
    return weighted_sum(x, chosen, weights, up.view(shape), down.view(shape), activation) + bias


# As published, but for the sizes.
CONFIG: dict[str, Any] = {
    "activation_function": "gelu", "add_pooling_layer": False, "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0, "causal": False, "embd_pdrop": 0.1, "expert_choice_router": False,
    "ffn_div": 1, "layer_norm_epsilon": 1e-05, "max_trained_positions": 2048, "mlp_fc1_bias": True,
    "mlp_fc2_bias": True, "model_type": "nomic_bert", "moe_every_n_layers": 2,
    "moe_impl": "megablocks", "moe_normalize_expert_weights": False, "moe_resid_pdrop": 0.0,
    "moe_top_k": 2, "n_embd": 24, "n_head": 3, "n_inner": 20, "n_layer": 4, "n_positions": 2048,
    "num_experts": 5, "num_shared_experts": 0, "pad_token_id": 1, "pad_vocab_size_multiple": 64,
    "parallel_block": False, "prenorm": False, "qkv_proj_bias": True, "resid_pdrop": 0.0,
    "rotary_emb_base": 10000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None, "rotary_scaling_factor": None, "router_aux_loss_coef": 0.1,
    "torch_dtype": "float32", "type_vocab_size": 1, "use_rms_norm": None, "vocab_size": 192,
}  # fmt: skip

TEXT = GOLDEN / "xlmr_bge_m3_like_h4"
"""Whose tokenizer the folder has."""


def tensors(seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """A checkpoint's tensors by their published names and shapes, random."""
    said = CONFIG | changes
    width, inner, count = said["n_embd"], said["n_inner"], said["num_experts"]
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.2)

    found = {
        "embeddings.word_embeddings.weight": drawn(said["vocab_size"], width),
        "embeddings.token_type_embeddings.weight": drawn(said["type_vocab_size"], width),
        "emb_ln.weight": 1 + drawn(width),
        "emb_ln.bias": drawn(width),
    }
    for i in range(said["n_layer"]):
        layer = f"encoder.layers.{i}."
        for name, rows, columns in (
            ("attn.Wqkv", 3 * width, width),
            ("attn.out_proj", width, width),
        ):
            found[f"{layer}{name}.weight"] = drawn(rows, columns)
            found[f"{layer}{name}.bias"] = drawn(rows)
        for name in ("norm1", "norm2"):
            found[f"{layer}{name}.weight"] = 1 + drawn(width)
            found[f"{layer}{name}.bias"] = drawn(width)
        if i % said["moe_every_n_layers"] == 1:
            found[f"{layer}mlp.router.layer.weight"] = drawn(count, width)
            found[f"{layer}mlp.experts.mlp.w1"] = drawn(count * inner, width)
            found[f"{layer}mlp.experts.mlp.w2"] = drawn(count * inner, width)
            found[f"{layer}mlp.experts.bias"] = drawn(width)
        else:
            for name, rows, columns in (("fc1", inner, width), ("fc2", width, inner)):
                found[f"{layer}mlp.{name}.weight"] = drawn(rows, columns)
                found[f"{layer}mlp.{name}.bias"] = drawn(rows)
    return found


def folder_of(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A folder as published: config.json, weights, tokenizer, sentence-transformers' files."""
    shutil.copytree(TEXT, path, ignore=shutil.ignore_patterns("*.bin", "io*", "texts.json"))
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(tensors(seed, **changes), path / "model.safetensors", metadata={"format": "pt"})
    pooling = path / "1_Pooling" / "config.json"
    said = {key: value for key, value in json.loads(pooling.read_text()).items()
            if not key.startswith("pooling_mode")}  # fmt: skip
    said |= {"word_embedding_dimension": (CONFIG | changes)["n_embd"]}
    said |= {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    pooling.write_text(json.dumps(said))
    return path


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight + bias


def _turned(x: Tensor, base: float) -> Tensor:
    """Rotary positions of x (N, H, D), halves of a head turned together."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[0]).double()[:, None] * base ** -(
        torch.arange(half).double() / half
    )
    cos, sin = torch.cos(angles)[:, None], torch.sin(angles)[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def hidden_states(weights: dict[str, Tensor], ids: Tensor, **changes: Any) -> Tensor:
    """Of one text's ids (N,), in float64: (N, C)."""
    said = CONFIG | changes
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, eps = said["n_head"], said["layer_norm_epsilon"]
    x = (
        w["embeddings.word_embeddings.weight"][ids]
        + w["embeddings.token_type_embeddings.weight"][0]
    )
    x = _norm(x, w["emb_ln.weight"], w["emb_ln.bias"], eps)
    for i in range(said["n_layer"]):
        own = {n.removeprefix(f"encoder.layers.{i}."): t for n, t in w.items()}
        qkv = x @ own["attn.Wqkv.weight"].t() + own["attn.Wqkv.bias"]
        q, k, v = (part.view(len(ids), heads, -1) for part in qkv.chunk(3, -1))
        q, k = (_turned(part, said["rotary_emb_base"]) for part in (q, k))
        scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])
        mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)
        a = mixed @ own["attn.out_proj.weight"].t() + own["attn.out_proj.bias"]
        x = _norm(x + a, own["norm1.weight"], own["norm1.bias"], eps)
        if "mlp.router.layer.weight" in own:
            f = mixture(
                x, own["mlp.router.layer.weight"], own["mlp.experts.mlp.w1"],
                own["mlp.experts.mlp.w2"], own["mlp.experts.bias"], said["moe_top_k"],
                bool(said["moe_normalize_expert_weights"]),
            )  # fmt: skip
        else:
            h = ACTIVATIONS["gelu"](x @ own["mlp.fc1.weight"].t() + own["mlp.fc1.bias"])
            f = h @ own["mlp.fc2.weight"].t() + own["mlp.fc2.bias"]
        x = _norm(x + f, own["norm2.weight"], own["norm2.bias"], eps)
    return x
