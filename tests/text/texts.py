"""Texts that the tests embed."""

from __future__ import annotations

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "",
    "ok",
    "Why is the sky blue?",
    "  Rayleigh scattering   makes shorter wavelengths spread.  ",
    "Ünïcödé — 你好, мир! 🦊",
]
