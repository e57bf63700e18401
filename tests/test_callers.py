"""A warning belongs to the first line that is neither ours nor torch's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pyenc import callers


def of(filename: str) -> Callable[[], None]:
    """A function of that file that warns."""
    source = "def warn():\n    warnings.warn('here', stacklevel=stacklevel())\n"
    space = {"warnings": warnings, "stacklevel": callers.stacklevel}
    exec(compile(source, filename, "exec"), space)
    return space["warn"]  # type: ignore[return-value]


def filename_of(call: Callable[[], object]) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return caught[0].filename


OURS = str(Path(callers.__file__).parent)


def test_torch_is_no_caller() -> None:
    warn = of(OURS + "/models/deep.py")
    module = nn.Module()
    module.forward = warn
    assert filename_of(module) == __file__
    assert filename_of(torch.no_grad()(warn)) == __file__


@pytest.mark.parametrize("beside", ["_tools/of_a_user.py", "2.py"])
def test_a_package_called_almost_so_is_a_caller(beside: str) -> None:
    assert filename_of(of(OURS + "/deep.py")) == __file__
    # The frame itself: nothing above it is skipped.
    assert filename_of(of(OURS + beside)) == OURS + beside
