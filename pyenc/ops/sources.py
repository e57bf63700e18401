"""Telling one state of csrc/ from another. The build runs this file too, with no torch about."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sources_digest(csrc: Path) -> str:
    """16 hexadecimal digits that name the sources in a folder."""
    digest = hashlib.sha256()
    found = (p for p in csrc.rglob("*") if p.suffix in (".h", ".cpp"))
    for name, path in sorted((path.relative_to(csrc).as_posix(), path) for path in found):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
