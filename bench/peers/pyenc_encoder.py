"""Our own whole encoders and their oracles, from token ids and from strings; on a card too, where
what it does may be captured and replayed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import pyenc
from bench.compare import CannotServe, Ready
from bench.measure import launching
from bench.peers.card_call import Prepare, vectors_of
from bench.peers.encoder_call import MAX_LENGTH, Ids, Texts
from pyenc.loading import load_checkpoint


def ids(dtype: torch.dtype) -> Callable[[pyenc.Encoder], Ids]:
    """Packed: no padding is made, so none is computed."""

    def load(encoder: pyenc.Encoder) -> Ids:
        encoder = copy.deepcopy(encoder).to(dtype)

        def run(texts: list[Tensor]) -> Tensor:
            bounds = torch.tensor([0, *itertools.accumulate(map(len, texts))])
            with torch.inference_mode():
                return encoder.forward_packed(torch.cat(texts), bounds)

        return run

    return load


def packed(encoder: pyenc.Encoder, *, dtype: torch.dtype, device: torch.device) -> Prepare:
    """On a device, as a user calls it whose ids were looked at before they went there."""
    encoder = copy.deepcopy(encoder).to(device, dtype)

    def prepare(texts: list[Tensor]) -> Ready:
        return Ready(_forward(encoder, texts))

    return prepare


def replayed(encoder: pyenc.Encoder, *, dtype: torch.dtype, device: torch.device) -> Prepare:
    """The same forward captured once and replayed: what its work takes a GPU, without what Python
    takes to launch it."""
    encoder = copy.deepcopy(encoder).to(device, dtype)

    def prepare(texts: list[Tensor]) -> Ready:
        if device.type != "cuda":
            raise CannotServe("graphs are captured and replayed on a GPU")
        forward = _forward(encoder, texts)
        graph, out = launching.captured(forward, device)

        def run(reads: Callable[[], Tensor] = forward) -> Tensor:
            graph.replay()  # of the ids that `forward` holds
            return out

        return Ready(run)

    return prepare


def _forward(encoder: pyenc.Encoder, texts: list[Tensor]) -> Callable[[], Tensor]:
    """Packed ids and bounds are made here, once; no call looks at their values."""
    ids = torch.cat(texts)
    bounds = torch.tensor([0, *itertools.accumulate(map(len, texts))], dtype=torch.int32)
    bounds = bounds.to(ids.device)

    def forward() -> Tensor:
        with torch.inference_mode():
            return encoder.forward_packed(ids, bounds, checked=True)

    return forward


def folder_ids(folder: Path, dtype: torch.dtype = torch.float32) -> Ids:
    return ids(dtype)(load_checkpoint(folder, device="cpu").encoder)


def ids_oracle(source: pyenc.Encoder | Path) -> Ids:
    if isinstance(source, Path):
        wide = load_checkpoint(source, device="cpu", dtype="float64").encoder
    else:
        wide = copy.deepcopy(source)
    wide.backend = "reference"
    return ids(torch.float64)(wide)


def texts(folder: Path, quantize: str | None = None, dtype: torch.dtype = torch.float32) -> Texts:
    encoder = pyenc.load(folder, device="cpu", dtype=dtype, quantize=quantize)
    return lambda given: encoder.encode(given, max_length=MAX_LENGTH, progress=False)


def placed_texts(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Prepare:
    """On a device, from strings to vectors on the host."""
    encoder = pyenc.load(folder, device=device, dtype=dtype)
    return lambda given: Ready(
        lambda: encoder.encode(given, max_length=MAX_LENGTH, progress=False), vectors_of
    )


def texts_oracle(folder: Path) -> Texts:
    """The readable dense reference in float64."""
    encoder = pyenc.load(folder, device="cpu", dtype=torch.float64, backend="reference")
    return lambda given: encoder.encode(given, max_length=MAX_LENGTH, progress=False)
