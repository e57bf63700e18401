"""OpenVINO on a model of transformers' converted here, with its default settings for a CPU.

Its default precision is the processor's: float32, or bfloat16 where that has instructions for it.
So `precision` is named: "f32"; "bf16", which is refused where its default would be another
(ImportError, as of what is not there); "int8" for nncf's quantisation after training, with its
settings for transformers, calibrated on the benchmark's own kind of text (ImportError without
nncf), and float32 for the rest; or "int8 and bf16".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyenc
from bench import workloads
from bench.peers.encoder_call import MAX_LENGTH, Ids, Texts, padded
from bench.peers.transformers import Hidden, no_bars

INT8 = "int8"


def _quantized(converted: Any, calibration: Sequence[dict[str, Tensor]]) -> Any:
    import nncf

    samples = [{name: each[name].numpy() for name in Hidden.INPUTS} for each in calibration]
    return nncf.quantize(
        converted, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
    )  # fmt: skip


def _compiled(
    model: torch.nn.Module, precision: str, calibration: Sequence[dict[str, Tensor]] = ()
) -> Any:
    import openvino

    example = {name: torch.ones(2, 7, dtype=torch.int64) for name in Hidden.INPUTS}
    with torch.no_grad():
        converted = openvino.convert_model(Hidden(model), example_input=example)
    if precision.startswith(INT8):
        converted = _quantized(converted, calibration)
        precision = precision.removeprefix(INT8).removeprefix(" and ") or "f32"
    if precision == "bf16":
        can = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in can:
            raise ImportError("OpenVINO takes no bfloat16 on this processor")
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision,
    }  # fmt: skip
    compiled = openvino.Core().compile_model(converted, "CPU", settings)

    def run(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        given = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return torch.from_numpy(compiled(given)[0])

    return run


def ids(folder: Path, precision: str = "f32") -> Ids:
    """Token ids to hidden states."""
    from transformers import AutoModel

    no_bars()
    run = _compiled(AutoModel.from_pretrained(str(folder)).eval(), precision)

    def call(ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
        mask = torch.ones_like(ids_BN) if mask_BN is None else mask_BN.long()
        hidden: Tensor = run(ids_BN, mask)
        return hidden

    return padded(call)


def texts(folder: Path, precision: str = "f32") -> Texts:
    """sentence-transformers' own steps, with OpenVINO for the model.

    Its backend for that wants another transformers than the others here, so the model is converted
    here and stands in for the torch one.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.modeling_outputs import BaseModelOutput

    no_bars()
    encoder = SentenceTransformer(str(folder), device="cpu")
    encoder.max_seq_length = MAX_LENGTH
    model: Any = encoder[0].model
    calibration: list[dict[str, Tensor]] = []
    if precision.startswith(INT8):
        import nncf  # noqa: F401  (said before anything is computed)

        words = workloads.texts_of((16, 32, 64, 128, 256) * 20, pyenc.load(folder, device="cpu"))
        calibration = [encoder.preprocess([text]) for text in words]
    run = _compiled(model, precision, calibration)

    def forward(input_ids: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=run(input_ids, attention_mask))

    model.forward = forward
    return lambda given: encoder.encode(given, show_progress_bar=False)
