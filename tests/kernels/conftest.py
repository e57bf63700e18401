"""The Triton kernels' tests: on a GPU where there is one, else in Triton's interpreter.

Triton decides as the kernels are imported whether they are interpreted, by TRITON_INTERPRET; so
these tests run in a process of their own, `make test`'s second, and are left out elsewhere.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from pyenc_kernels import interpreting

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU and not interpreting() else "cpu"

if interpreting() and importlib.util.find_spec("triton"):
    from tests.kernels.repaired_interpreter import repair

    repair()


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/kernels/" not in item.nodeid or "test_compiles" in item.nodeid:
            continue
        if DEVICE == "cuda":
            item.add_marker(pytest.mark.gpu)
        elif not interpreting():
            item.add_marker(pytest.mark.skip(reason="needs a GPU, or TRITON_INTERPRET=1"))


@pytest.fixture(autouse=True)
def ranges_at_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short sequences have ranges too, else only long ones would test them."""
    from pyenc_kernels import configs

    monkeypatch.setattr(configs, "_range_length", lambda keys: 0)


@pytest.fixture(scope="session")
def device() -> str:
    return DEVICE
