"""llama.cpp, through llama-cpp-python, with a GGUF made from the same weights.

Of what is measured here it has two kinds: JinaBert v2 (ALiBi, gated by GELU) and BERT's own layers
under learned positions, which XLM-RoBERTa's are too. Rotary with a gate of GELU (GTE) and MPNet's
relative positions it has not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyenc
from bench.compare import CannotServe
from bench.peers.encoder_call import Ids
from pyenc.loading import load_checkpoint


def peer(kind: str, max_length: int) -> Callable[[pyenc.Encoder | Path], Ids]:
    """Weights as "f16" or "q8_0", flash attention on: one text a call, for texts that share a batch
    are computed as one long one under a mask. ImportError without the package.

    CannotServe for "q8_0" on a processor with matrix units: it configures the tiles of a thread
    once, and ends in an illegal instruction where another program of the process has used them.
    """

    def load(source: pyenc.Encoder | Path) -> Ids:
        import llama_cpp

        if kind == "q8_0" and torch.cpu._is_amx_tile_supported():
            raise CannotServe("left out: it does not share the matrix units with other programs")

        encoder = source
        if isinstance(encoder, Path):
            encoder = load_checkpoint(encoder, device="cpu").encoder
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
    """The encoder's weights under the names that llama.cpp looks for.

    ValueError where it has no such encoder.
    """
    import gguf

    c = encoder.config
    kinds = {("alibi", True): "jina-bert-v2", ("absolute", False): "bert"}
    if (c.position, c.gated) not in kinds or c.activation != "gelu":
        raise ValueError(f"llama.cpp has no encoder of {c.position} positions, gated={c.gated}")
    writer = gguf.GGUFWriter(str(path), kinds[c.position, c.gated])
    writer.add_context_length(c.max_length)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_heads)
    writer.add_layer_norm_eps(c.norm_eps)
    writer.add_causal_attention(False)
    if c.position == "alibi":
        writer.add_max_alibi_bias(8.0)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(c.vocab_size)
    writer.add_token_type_count(c.type_vocab_size)
    quantized = {"f16": None, "q8_0": gguf.GGMLQuantizationType.Q8_0}[kind]
    for name, x in _named(encoder).items():
        array = x.detach().float().contiguous().numpy()
        # One-dimensional tensors, positions and token types are kept in float32 by its own
        # converters.
        if array.ndim == 1 or name in ("token_types.weight", "position_embd.weight"):
            writer.add_tensor(name, array)
        elif quantized is None:
            writer.add_tensor(name, array.astype(np.float16))
        else:
            packed = gguf.quants.quantize(array, quantized)
            writer.add_tensor(name, packed, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _named(encoder: pyenc.Encoder) -> dict[str, Tensor]:
    c, e = encoder.config, encoder.embeddings
    assert e.token_type is not None
    named: dict[str, Tensor | None] = {
        "token_embd.weight": e.word.weight,
        "token_types.weight": e.token_type.weight,
        "token_embd_norm.weight": e.norm.weight,
        "token_embd_norm.bias": e.norm.bias,
    }
    if e.position is not None:  # it counts from 0, where RoBERTa's first token is behind padding's
        first = 0 if c.padding_id is None else c.padding_id + 1
        named["position_embd.weight"] = e.position.weight[first : first + c.max_length]
    for i, layer in enumerate(encoder.layers):
        forward = layer.feed_forward
        parts: dict[str, Any] = {
            "attn_output": layer.attention.out, "attn_output_norm": layer.attention_norm,
            "ffn_down": forward.down, "layer_output_norm": layer.feed_forward_norm,
        }  # fmt: skip
        if not c.gated:
            parts["ffn_up"] = forward.up
        for name, part in parts.items():
            named[f"blk.{i}.{name}.weight"] = part.weight
            named[f"blk.{i}.{name}.bias"] = part.bias
        qkv = layer.attention.qkv
        for j, name in enumerate("qkv"):
            named[f"blk.{i}.attn_{name}.weight"] = qkv.weight.chunk(3)[j]
            named[f"blk.{i}.attn_{name}.bias"] = qkv.bias.chunk(3)[j]
        if c.gated:
            gate, up = forward.up.weight.chunk(2)
            named |= {f"blk.{i}.ffn_gate.weight": gate, f"blk.{i}.ffn_up.weight": up}
    return {name: x for name, x in named.items() if x is not None}
