"""ONNX Runtime on a graph exported here."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

Session = Callable[[dict[str, Tensor]], Tensor]


def session(module: nn.Module, example: dict[str, Tensor], folder: Path) -> Session:
    """The module's graph, any batch and any length, with torch's number of threads.

    module(**example) gives one tensor; the first two axes of every input are free. ImportError
    without onnx, onnxscript and onnxruntime.
    """
    import onnxruntime
    import onnxscript  # noqa: F401  (the exporter's own)

    # It tells of every other package that it could export for.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    path = folder / "model.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(), (), kwargs=example, dynamo=True, verbose=False,
            dynamic_shapes={name: {0: batch, 1: length} for name in example},
        )  # fmt: skip
        assert program is not None
        program.save(str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    run = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {one.name for one in run.get_inputs()}

    def call(inputs: dict[str, Tensor]) -> Tensor:
        given = {name: x.numpy() for name, x in inputs.items() if name in wanted}
        return torch.from_numpy(run.run(None, given)[0])

    return call
