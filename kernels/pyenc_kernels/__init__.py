"""Triton kernels of pyenc, a folder an op; they need torch and Triton alone and no pyenc.

Importing this package imports neither, so that it can be asked on any platform whether its kernels
can run: ``unavailable_reason``. The folders, such as ``pyenc_kernels.segment_mean``, import both.
"""

from __future__ import annotations

import importlib
import os

__all__ = ["interpreting", "unavailable_reason"]


def interpreting() -> bool:
    """Whether kernel modules imported from now on run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def unavailable_reason(device_type: str = "cuda") -> str | None:
    """Why the kernels cannot serve tensors on a device of this type, in one line; None if they can.

    ``device_type`` is ``tensor.device.type``: "cuda" (ROCm's too), or "cpu" for the interpreter.
    """
    try:
        importlib.import_module("triton")
    except ModuleNotFoundError:
        return "Triton is not installed (it exists for Linux only)"
    except Exception as error:
        return f"Triton does not import: {error}"
    if device_type == "cpu":
        return None if interpreting() else "Triton needs a GPU (or TRITON_INTERPRET=1)"
    if device_type != "cuda":
        return f"the Triton kernels do not serve {device_type} tensors"
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA or ROCm device"
