"""A stale extension, built for other Python than the one around it, is refused with the reason."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import pyenc
from pyenc.ops import extension, sources

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def attempt(monkeypatch: pytest.MonkeyPatch, **attributes: str) -> str:
    """The reason why an extension of these attributes is refused, "" if it is not."""
    monkeypatch.setitem(sys.modules, "pyenc._C", SimpleNamespace(**attributes))
    module, reason = extension._attempt.__wrapped__()
    assert (module is None) == bool(reason)
    return reason


def test_the_version_and_the_sources_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    now = sources.sources_digest(CSRC)
    version = pyenc.__version__
    assert attempt(monkeypatch, version=version, sources=now) == ""
    for attributes, says in (
        ({"version": "0.0.1", "sources": now}, f"built for pyenc 0.0.1, and this is {version}"),
        ({}, "built for pyenc unknown"),
        ({"version": version, "sources": "0" * 16}, "built from other sources than"),
    ):
        reason = attempt(monkeypatch, **attributes)
        assert says in reason
        assert "rebuild it: pip install" in reason


def test_the_digest_sees_every_change(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        shutil.rmtree(tmp_path)
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        tmp_path.mkdir(exist_ok=True)
        return sources.sources_digest(tmp_path)

    seen = [
        digest(a_cpp="x", b_h="y"),
        digest(a_cpp="y", b_h="x"),
        digest(a_cpp="x", c_h="y"),
        digest(a_cpp="x"),
        digest(a_cpp="x", d__b_h="y"),
        digest(a_cpp="x", e__b_h="y"),
        digest(),
    ]
    assert len(set(seen)) == len(seen)
    assert digest(a_cpp="x", b_h="y", notes_md="z") == seen[0]


def test_the_build_needs_the_standard_library_alone() -> None:
    """Where the extension is built, torch may not be there."""
    program = f"import runpy; print(runpy.run_path({sources.__file__!r})['__doc__'])"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_without_sources_beside_it_the_version_is_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extension, "__file__", str(tmp_path / "pyenc" / "ops" / "extension.py"))
    assert attempt(monkeypatch, version=pyenc.__version__, sources="0" * 16) == ""


def test_the_extension_is_of_these_sources() -> None:
    module = extension.load()
    if module is None:
        pytest.skip(extension.why_missing())
    assert (module.version, module.sources) == (pyenc.__version__, sources.sources_digest(CSRC))
