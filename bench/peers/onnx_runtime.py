"""ONNX Runtime on a graph exported here."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import pyenc
from bench.peers.encoder_call import Ids, padded
from bench.peers.torch_encoder import PlainEncoder
from bench.peers.transformers import Hidden, no_bars

Session = Callable[[dict[str, Tensor]], Tensor]


def session(
    module: nn.Module,
    example: dict[str, Tensor],
    folder: Path,
    axes: dict[str, dict[int, str]] | None = None,
    *,
    eight_bits: bool = False,
) -> Session:
    """The module's graph, any batch and any length, with torch's number of threads.

    module(**example) gives one tensor. The first two axes of every input are "batch" and "length",
    and free; `axes` says otherwise. `eight_bits`: linear layers by its dynamic quantisation,
    weights by channel, in the range that its documentation advises where a processor has no dot
    products of bytes, since sums saturate there otherwise. ImportError without onnx, onnxscript and
    onnxruntime.
    """
    import onnxruntime
    import onnxscript  # noqa: F401  (the exporter's own)

    # It tells of every other package that it could export for.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    sizes = {name: torch.export.Dim(name) for name in ("batch", "length")}
    free = {name: {0: "batch", 1: "length"} for name in example} | (axes or {})
    path = folder / "model.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(), (), kwargs=example, dynamo=True, verbose=False,
            dynamic_shapes={
                name: {axis: sizes[size] for axis, size in free[name].items()} for name in example
            },
        )  # fmt: skip
        assert program is not None
        program.save(str(path))
    if eight_bits:
        path = _quantized(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # As much memory as it asks for, not the next power of two: that would not fit at 8,192 tokens.
    arena = {"arena_extend_strategy": "kSameAsRequested"}
    run = onnxruntime.InferenceSession(
        str(path), options, providers=[("CPUExecutionProvider", arena)]
    )
    wanted = {one.name for one in run.get_inputs()}

    def call(inputs: dict[str, Tensor]) -> Tensor:
        given = {name: x.numpy() for name, x in inputs.items() if name in wanted}
        return torch.from_numpy(run.run(None, given)[0])

    return call


def _quantized(path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready, made = path.with_name("ready.onnx"), path.with_name("int8.onnx")
    # It tells of every product that is none of a weight. Shapes are known by the export.
    logging.getLogger().setLevel(logging.ERROR)
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    narrow = not torch.cpu._is_vnni_supported()
    quantize_dynamic(
        ready, made, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
        reduce_range=narrow, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return made


def ids(encoder: pyenc.Encoder) -> Ids:
    """The plain encoder with SDPA, exported: the dense bias goes in as it does to torch's SDPA."""
    model = PlainEncoder(copy.deepcopy(encoder), eager=False)
    ids = torch.ones(2, 7, dtype=torch.int64)
    sessions = {}
    with tempfile.TemporaryDirectory() as made, torch.no_grad():
        for masked in (False, True):
            mask = torch.ones(2, 7, dtype=torch.bool) if masked else None
            example = {"ids": ids, "bias": model.bias(7, mask)}
            # One bias for the whole batch, or one a row where padding is masked.
            axes = {"bias": ({0: "batch"} if masked else {}) | {2: "length", 3: "length"}}
            sessions[masked] = session(Exported(model), example, Path(made), axes)

    def run(ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
        bias = model.bias(ids_BN.shape[1], mask_BN)
        return sessions[mask_BN is not None]({"ids": ids_BN, "bias": bias})

    return padded(run)


def folder_ids(folder: Path) -> Ids:
    """A model of transformers', exported as it is."""
    from transformers import AutoModel

    no_bars()
    model = AutoModel.from_pretrained(str(folder)).eval()
    example = {name: torch.ones(2, 7, dtype=torch.int64) for name in Hidden.INPUTS}
    with tempfile.TemporaryDirectory() as made, torch.no_grad():
        run_session = session(Hidden(model), example, Path(made))

    def run(ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
        mask = torch.ones_like(ids_BN) if mask_BN is None else mask_BN.long()
        return run_session({"input_ids": ids_BN, "attention_mask": mask})

    return padded(run)


class Exported(nn.Module):
    """The plain encoder's layers, as a module that can be exported."""

    def __init__(self, plain: PlainEncoder) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, ids: Tensor, bias: Tensor) -> Tensor:
        return self.plain.layers(ids, bias)
