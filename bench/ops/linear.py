"""The linear layers of a base encoder, without gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.compare import CannotServe, Case, Kind, Op, Peer, Ready, Tensors
from bench.peers.signature import Function, Signature, first_rows, randn
from pyenc import ops
from pyenc.ops.linear.reference import activation_reference

DTYPES = ("float32", "bfloat16")
ROWS = 64
SHAPES = {"qkv": (768, 2304), "out": (768, 768), "up, gelu": (768, 3072), "down": (3072, 768)}

EXPLANATION = """\
(T, in) to (T, out) with a bias, in a base encoder's four shapes. GFLOP: 2 T in out."""


def cases(quick: bool, device: torch.device) -> list[Case]:
    # On a CPU 8,192 tokens of bf16 are too slow without instructions for it, and told by 512.
    lengths = (512,) if quick else (512, 2048) if device.type == "cpu" else (2048, 16384)
    listed = []
    for dtype in DTYPES:
        for tokens in lengths:
            for layer, (width, out) in SHAPES.items():
                kind = {
                    "tokens": tokens, "in": width, "out": out, "work": tokens,
                    "activation": "gelu" if "gelu" in layer else None,
                }  # fmt: skip
                listed.append(
                    Case(
                        f"{layer}, {width} to {out} T={tokens:,}", kind, dtype,
                        {"tokens": 37, "work": 37}, gflop=2 * tokens * width * out / 1e9,
                        series=layer, at=tokens,
                    )
                )  # fmt: skip
    return listed


def inputs(case: Case, device: torch.device) -> Tensors:
    width, out = case.kind["in"], case.kind["out"]
    made = randn(case, device, x=(case.kind["tokens"], width), weight=(out, width), bias=(out,))
    # A parameter, as layers have it: what is not may change, and is not packed.
    weight = torch.nn.Parameter(made["weight"] * width**-0.5, requires_grad=False)
    return made | {"weight": weight}


def ours(backend: str | None) -> Function:
    def run(kind: Kind, x: Tensors) -> Tensor:
        linear: Any = getattr(ops, "linear", None)
        if not callable(linear):
            raise CannotServe("pyenc.ops has no linear in this version: F.linear serves")
        args = {} if kind["activation"] is None else {"activation": kind["activation"]}
        out: Tensor = linear(x["x"], x["weight"], x["bias"], backend=backend, **args)
        return out

    return run


def plain(kind: Kind, x: Tensors) -> Tensor:
    out = F.linear(x["x"], x["weight"], x["bias"])
    return out if kind["activation"] is None else F.gelu(out)


def onednn(case: Case, x: Tensors) -> Ready:
    """oneDNN with its own layout of the weight, made beforehand; private to torch."""
    if x["x"].device.type != "cpu":
        raise CannotServe("CPU only")
    if not torch.backends.mkldnn.is_available():
        raise CannotServe("torch was built without oneDNN")
    packed = torch.ops.mkldnn._reorder_linear_weight(x["weight"], len(x["x"]))
    attr = "none" if case.kind["activation"] is None else "gelu"

    def run() -> Tensor:
        with torch.no_grad():
            out: Tensor = torch.ops.mkldnn._linear_pointwise(
                x["x"], packed, x["bias"], attr, [], "none"
            )
            return out

    return Ready(run)


def reference(kind: Kind, x: Tensors) -> Tensor:
    out = x["x"] @ x["weight"].T + x["bias"]
    return out if kind["activation"] is None else activation_reference(out, kind["activation"])


SIGNATURE = Signature(())


def sampled(case: Case, x: Tensors, dtype: torch.dtype) -> Tensors:
    """The reference on the first rows."""
    return SIGNATURE.reference(reference)(case, {**x, "x": x["x"][:ROWS]}, dtype)


def op(device: torch.device) -> Op:
    return Op(
        "linear", EXPLANATION, cases, inputs,
        (
            SIGNATURE.peer("pyenc cpu", ours("cpu"), ours=True),
            SIGNATURE.peer("pyenc torch", ours("torch"), ours=True),
            SIGNATURE.peer("F.linear", plain),
            Peer("oneDNN, prepacked weight", onednn),
        ),
        SIGNATURE.reference(reference), sampled, first_rows(ROWS), DTYPES,
    )  # fmt: skip
