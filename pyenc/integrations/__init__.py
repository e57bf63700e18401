"""pyenc inside what people already run: one module a library, each imported when asked for.

A module is named after the library that it stands on, and it alone imports that library:

    transformers            `pyenc.register`, `attn_implementation="pyenc"`
    sentence_transformers   `pyenc.accelerate`
"""
