"""The programs that are compared, by model and name.

Each is loaded from what `bench.subjects` gives: the checkpoint's folder, or the `Encoder` with the
weights (Jina). One whose library is not installed raises ImportError and is listed as absent.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench.peers import (
    llama_cpp,
    onnx_runtime,
    openvino,
    pyenc_encoder,
    sentence_transformers,
    torch_encoder,
    transformers,
)  # fmt: skip
from bench.peers.encoder_call import one_by_one

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a network

FP32, BF16 = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Peer:
    """One program: how it is loaded, and what it may be compared with."""

    load: Callable[[Any], Callable[[Any], Any]]
    precision: str = "float32"
    """Of the weights: one of `PRECISIONS`. The best peer is that of one kind."""
    tolerance: float | None = None
    """Largest difference from the float64 oracle on short texts, None: another function."""
    ragged_only: bool = False
    wrong_if_ragged: str = ""
    """What it makes of a short text beside a long one, where that is no answer."""
    longest: int | None = None
    """Tokens of a text beyond which it is left out: it needs more memory than is left beside the
    others in 24 GB."""
    with_memory: bool = True


PRECISION_OF = {
    "float32": "float32", "bfloat16": "bfloat16", "float16": "float16 or less", "int8": "int8",
    "int8 and bfloat16": "int8 and bfloat16",
}  # fmt: skip
"""Of the weights, by the dtype that --dtype names. int8: of linear layers, what is left in float32
or in bfloat16."""
PRECISIONS = tuple(PRECISION_OF.values())

MINILM = 2e-6
"""Between unit vectors."""
ROUGH = 5e-3
"""The same, in bfloat16."""
INT8 = 0.05
"""The same, of linear layers in eight bits."""
EXACT, HALF = 1e-4, 0.15
"""Between normed hidden states: in float32, and in fewer bits."""

SIXTEEN_BITS = {
    "pyenc, bf16": Peer(partial(pyenc_encoder.texts, dtype=BF16), "bfloat16", ROUGH),
    "sentence-transformers, bf16": Peer(
        partial(sentence_transformers.torch_backend, dtype=BF16), "bfloat16", ROUGH
    ),
    "OpenVINO, bf16": Peer(partial(openvino.texts, precision="bf16"), "bfloat16", ROUGH),
}
EIGHT_BITS = {
    "pyenc, int8": Peer(partial(pyenc_encoder.texts, quantize="int8"), "int8", INT8),
    "sentence-transformers, ONNX, int8": Peer(
        partial(sentence_transformers.onnx_backend, eight_bits=True), "int8", INT8
    ),
    "OpenVINO, int8": Peer(partial(openvino.texts, precision="int8"), "int8", INT8),
    "pyenc, int8, bf16": Peer(
        partial(pyenc_encoder.texts, quantize="int8", dtype=BF16), "int8 and bfloat16", INT8
    ),
    "OpenVINO, int8, bf16": Peer(
        partial(openvino.texts, precision="int8 and bf16"), "int8 and bfloat16", INT8
    ),
}
"""From strings to vectors."""

IDS_FROM_FOLDER = {
    "pyenc": Peer(pyenc_encoder.folder_ids, tolerance=EXACT),
    "transformers": Peer(transformers.padded_ids, tolerance=EXACT),
    "ONNX Runtime": Peer(onnx_runtime.folder_ids, tolerance=EXACT, longest=4096),
    "OpenVINO": Peer(openvino.ids, tolerance=EXACT, longest=4096),
    "pyenc, bf16": Peer(partial(pyenc_encoder.folder_ids, dtype=BF16), "bfloat16", HALF),
    "transformers, bf16": Peer(partial(transformers.padded_ids, dtype=BF16), "bfloat16", HALF),
    "OpenVINO, bf16": Peer(partial(openvino.ids, precision="bf16"), "bfloat16", HALF, longest=4096),
}
"""From token ids to hidden states, of a checkpoint's folder."""

PEERS: dict[str, dict[str, Peer]] = {
    "minilm": {
        "pyenc": Peer(pyenc_encoder.texts, tolerance=MINILM),
        "sentence-transformers": Peer(sentence_transformers.torch_backend, tolerance=MINILM),
        "sentence-transformers, ONNX": Peer(sentence_transformers.onnx_backend, tolerance=MINILM),
        "OpenVINO": Peer(openvino.texts, tolerance=MINILM),
        "transformers": Peer(transformers.by_hand, tolerance=MINILM),
        **SIXTEEN_BITS,
        **EIGHT_BITS,
    },
    "mpnet": {
        "pyenc": Peer(pyenc_encoder.texts, tolerance=MINILM),
        "sentence-transformers": Peer(sentence_transformers.torch_backend, tolerance=MINILM),
        "sentence-transformers, ONNX": Peer(sentence_transformers.onnx_backend, tolerance=MINILM),
        "OpenVINO": Peer(openvino.texts, tolerance=MINILM),
        **SIXTEEN_BITS,
        **EIGHT_BITS,
    },
    "gte-base": IDS_FROM_FOLDER,
    # OpenVINO cannot trace the functions that transformers makes its masks of.
    "qwen3": {k: v for k, v in IDS_FROM_FOLDER.items() if not k.startswith("OpenVINO")},
    "gemma": {k: v for k, v in IDS_FROM_FOLDER.items() if not k.startswith("OpenVINO")},
    "deberta": IDS_FROM_FOLDER,
    "modernbert": {
        name: replace(peer, wrong_if_ragged="NaN for texts shorter than the longest by a window")
        if name.startswith("OpenVINO")
        else peer
        for name, peer in IDS_FROM_FOLDER.items()
    },
    # Neither exporter follows how it cuts texts into chunks.
    "longformer": {k: v for k, v in IDS_FROM_FOLDER.items() if k.startswith(("pyenc", "transf"))},
    "bge-m3": {
        **IDS_FROM_FOLDER,
        "llama.cpp, f16": Peer(llama_cpp.peer("f16", 8192), "float16 or less", HALF),
        "llama.cpp, q8_0": Peer(
            llama_cpp.peer("q8_0", 8192), "float16 or less", HALF, longest=4096
        ),
    },
    "jina": {
        "pyenc": Peer(pyenc_encoder.ids(FP32), tolerance=EXACT),
        "torch, SDPA, dense bias": Peer(torch_encoder.plain(FP32), tolerance=EXACT),
        "torch, eager, dense bias": Peer(
            torch_encoder.plain(FP32, eager=True), tolerance=EXACT, longest=4096
        ),
        "torch.compile, frozen": Peer(
            torch_encoder.compiled(FP32), tolerance=EXACT, with_memory=False
        ),
        "torch.compile, max-autotune": Peer(
            torch_encoder.compiled(FP32, autotune=True),
            tolerance=EXACT,
            with_memory=False,
            longest=4096,
        ),
        "ONNX Runtime": Peer(onnx_runtime.ids, tolerance=EXACT),
        "ONNX Runtime, one by one": Peer(
            one_by_one(onnx_runtime.ids), tolerance=EXACT, ragged_only=True
        ),
        "transformers BertModel, no ALiBi": Peer(transformers.bert_model),
        "pyenc, bf16": Peer(pyenc_encoder.ids(BF16), "bfloat16", HALF),
        "torch, SDPA, dense bias, bf16": Peer(torch_encoder.plain(BF16), "bfloat16", HALF),
        "torch.compile, frozen, bf16": Peer(
            torch_encoder.compiled(BF16), "bfloat16", HALF, with_memory=False, longest=4096
        ),
        "torch.compile, max-autotune, bf16": Peer(
            torch_encoder.compiled(BF16, autotune=True),
            "bfloat16",
            HALF,
            with_memory=False,
            longest=4096,
        ),
        "llama.cpp, f16": Peer(llama_cpp.peer("f16", 8192), "float16 or less", HALF),
        "llama.cpp, q8_0": Peer(
            llama_cpp.peer("q8_0", 8192), "float16 or less", HALF, longest=4096
        ),
    },
}
"""pyenc is the first of each precision that it has."""


def subject(model: str, precision: str) -> str:
    """Our own program that those of a precision are held against: of halves, in bfloat16."""
    ours = "bfloat16" if precision == "float16 or less" else precision
    return next(name for name, peer in PEERS[model].items() if peer.precision == ours)
