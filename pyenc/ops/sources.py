"""Telling one state of sources from another. The build runs this file too, with no torch about."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sources_digest(folder: Path, suffixes: tuple[str, ...] = (".h", ".cpp")) -> str:
    """16 hexadecimal digits that name the sources in a folder, of csrc/ if nothing is said."""
    digest = hashlib.sha256()
    found = (p for p in folder.rglob("*") if p.suffix in suffixes)
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in found):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
