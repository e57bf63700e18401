"""`pyenc.unregister()` leaves transformers as it was; what has moved there is said, not broken."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import pyenc
from tests.conftest import GOLDEN

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
)

from pyenc.integrations.transformers.state import is_registered
from tests.integrations.transformers.register_support import fresh

JINA = GOLDEN / "jina_geglu_h4"


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyenc.unregister()


def state() -> tuple[Any, ...]:
    """All that `register` touches, by the names that it is pinned to."""
    return (
        AutoConfig.__dict__["from_pretrained"],
        dict(CONFIG_MAPPING._extra_content),
        dict(AutoModel._model_mapping._extra_content),
        dict(AutoModelForMaskedLM._model_mapping._extra_content),
        dict(AttentionInterface._global_mapping),
        dict(AttentionMaskInterface._global_mapping),
    )


def test_restored_exactly() -> None:
    before = state()
    pyenc.register()
    during = state()
    assert all(a != b for a, b in zip(before, during, strict=True))
    pyenc.register()  # twice is once
    assert state() == during
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyenc.unregister()
        pyenc.unregister()
    assert state() == before
    assert type(AutoConfig.from_pretrained(JINA)) is BertConfig
    pyenc.register()
    assert type(AutoConfig.from_pretrained(JINA)).__name__ == "PyencConfig"


def test_something_else_was_put_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its place, and what it calls of ours is transformers' again."""
    pyenc.register()
    ours = AutoConfig.from_pretrained
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *a, **k: ours(*a, **k))
    assert type(AutoConfig.from_pretrained(JINA)).__name__ == "PyencConfig"
    with pytest.warns(UserWarning, match=r"not taken out: AutoConfig\.from_pretrained"):
        pyenc.unregister()
    assert type(AutoConfig.from_pretrained(JINA)) is BertConfig
    pyenc.register()  # over it, once more
    assert type(AutoConfig.from_pretrained(JINA)).__name__ == "PyencConfig"
    pyenc.unregister()


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        (type(CONFIG_MAPPING), "_extra_content", "pyenc among"),
        (AutoModel, "_model_mapping", "PyencConfig among"),
        (AttentionInterface, "_global_mapping", "in AttentionInterface"),
        (AttentionMaskInterface, "_global_mapping", "in AttentionMaskInterface"),
    ],
)
def test_a_private_name_has_changed(
    owner: type, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be taken out is named, the rest is taken out."""
    pyenc.register()
    with monkeypatch.context() as patch:
        if name == "_extra_content":
            patch.setattr(CONFIG_MAPPING, name, None)
        else:
            patch.setattr(owner, name, None)
        with pytest.warns(UserWarning, match=f"not taken out: .*{said}"):
            pyenc.unregister()
    assert not is_registered()
    assert type(AutoConfig.from_pretrained(JINA)) is BertConfig
    pyenc.register()  # so that what stayed goes


def test_without_transformers() -> None:
    ran = fresh("import sys\nsys.modules['transformers'] = None\nimport pyenc\npyenc.register()")
    assert ran.returncode
    assert "'pyenc[integrations]'" in ran.stderr.splitlines()[-1]


def test_nothing_is_imported_for_the_name() -> None:
    """`import pyenc` waits for neither torch nor transformers."""
    ran = fresh("import sys, pyenc\nprint('torch' in sys.modules, 'transformers' in sys.modules)")
    assert ran.stdout.split() == ["False", "False"]
