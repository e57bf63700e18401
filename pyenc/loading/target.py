"""Where weights go and as what: the device and the dtype that were asked for."""

from __future__ import annotations

import torch

from ..errors import InputError

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
"""What weights may be stored as, and held in; everything else is quantised."""


def check_device(device: str | torch.device | None) -> torch.device:
    """A device that works: CUDA where there is one, else the CPU, or the one asked for.

    Raises:
        InputError: it does not exist, this torch cannot use it, or it holds no values.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # torch has an exception type for each way to fail, and some only when it is used.
        place = torch.empty(1, device=device).device
    # Of every class: a device that a package would bring ends in ImportError or AttributeError.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"device {str(device)!r:.80} is not available: {reason:.300}") from error
    if place.type == "meta":
        raise InputError("device 'meta' holds no values; expected one that computes, such as 'cpu'")
    return place


def check_dtype(dtype: str | torch.dtype | None, stored: torch.dtype) -> torch.dtype:
    """The dtype asked for: "auto" is the stored one, None is float32.

    Raises:
        InputError: it is unknown, or no dtype of weights.
    """
    if dtype == "auto":
        return stored
    if dtype is None:
        return torch.float32
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is unknown; known: auto, {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    if dtype not in DTYPES.values():
        raise InputError(f"dtype {dtype} is not served; known: {', '.join(DTYPES)}")
    return dtype


def dtype_of_sums(dtype: str | torch.dtype | None) -> torch.dtype:
    """What adapters are added to weights in, at least: float32, which holds the sum of halves
    better than halves, or the dtype asked for where it is wider.

    Raises:
        InputError: as of `check_dtype`.
    """
    return torch.promote_types(check_dtype(dtype, torch.float32), torch.float32)


def check_eight_bits(device: torch.device) -> None:
    """Refuse a device on which linear layers in eight bits are not served.

    Raises:
        InputError: it is no CPU.
    """
    if device.type != "cpu":
        raise InputError(
            f'linear layers in eight bits are served on CPUs alone: device="cpu", not {device}'
        )
