"""llama.cpp, through llama-cpp-python, with a GGUF made from the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyenc

ARCHITECTURE = "jina-bert-v2"


def peer(kind: str, max_length: int) -> Callable[[pyenc.Encoder], Callable[..., Tensor]]:
    """Weights as "f16" or "q8_0", flash attention on: one text a call, for texts that share a batch
    are computed as one long one under a mask. ImportError without the package.
    """

    def load(encoder: pyenc.Encoder) -> Callable[[list[Tensor]], Tensor]:
        import llama_cpp

        with tempfile.TemporaryDirectory() as made:
            path = Path(made) / "model.gguf"
            write_gguf(encoder, path, kind)
            model = llama_cpp.Llama(
                str(path), n_ctx=max_length, n_batch=max_length, n_ubatch=max_length,
                n_threads=torch.get_num_threads(), n_threads_batch=torch.get_num_threads(),
                embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_NONE, flash_attn=True,
                use_mmap=False, verbose=False,
            )  # fmt: skip
        width = encoder.config.hidden_size

        def run(texts: list[Tensor]) -> Tensor:
            return torch.cat([_one(llama_cpp, model, ids, width) for ids in texts])

        return run

    return load


def _one(llama_cpp: Any, model: Any, ids: Tensor, width: int) -> Tensor:
    """(N, C) of (N,)."""
    count = len(ids)
    batch = llama_cpp.llama_batch_init(count, 0, 1)
    try:
        batch.n_tokens = count
        for i, token in enumerate(ids.tolist()):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        if llama_cpp.llama_encode(model.ctx, batch):
            raise RuntimeError("llama_encode failed")
        found = llama_cpp.llama_get_embeddings(model.ctx)
        return torch.from_numpy(np.ctypeslib.as_array(found, shape=(count, width)).copy())
    finally:
        llama_cpp.llama_batch_free(batch)


def write_gguf(encoder: pyenc.Encoder, path: Path, kind: str) -> None:
    """The encoder's weights under the names that llama.cpp looks for."""
    import gguf

    c = encoder.config
    writer = gguf.GGUFWriter(str(path), ARCHITECTURE)
    writer.add_context_length(c.max_length)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_heads)
    writer.add_layer_norm_eps(c.norm_eps)
    writer.add_causal_attention(False)
    writer.add_max_alibi_bias(8.0)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(c.vocab_size)
    writer.add_token_type_count(c.type_vocab_size)
    quantized = {"f16": None, "q8_0": gguf.GGMLQuantizationType.Q8_0}[kind]

    def add(name: str, x: Tensor | None) -> None:
        if x is None:
            return
        array = x.detach().float().contiguous().numpy()
        # One-dimensional tensors, and the token types, are kept in float32 by its own converters.
        if array.ndim == 1 or "types" in name:
            writer.add_tensor(name, array)
        elif quantized is None:
            writer.add_tensor(name, array.astype(np.float16))
        else:
            packed = gguf.quants.quantize(array, quantized)
            writer.add_tensor(name, packed, raw_dtype=quantized)

    e = encoder.embeddings
    assert e.token_type is not None
    add("token_embd.weight", e.word.weight)
    add("token_types.weight", e.token_type.weight)
    add("token_embd_norm.weight", e.norm.weight)
    add("token_embd_norm.bias", e.norm.bias)
    for i, layer in enumerate(encoder.layers):
        parts: dict[str, Any] = {
            "attn_output": layer.attention.out, "attn_output_norm": layer.attention_norm,
            "ffn_down": layer.feed_forward.down, "layer_output_norm": layer.feed_forward_norm,
        }  # fmt: skip
        for name, part in parts.items():
            add(f"blk.{i}.{name}.weight", part.weight)
            add(f"blk.{i}.{name}.bias", part.bias)
        qkv = layer.attention.qkv
        for j, name in enumerate("qkv"):
            add(f"blk.{i}.attn_{name}.weight", qkv.weight.chunk(3)[j])
            add(f"blk.{i}.attn_{name}.bias", qkv.bias.chunk(3)[j])
        gate, up = layer.feed_forward.up.weight.chunk(2)
        add(f"blk.{i}.ffn_gate.weight", gate)
        add(f"blk.{i}.ffn_up.weight", up)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
