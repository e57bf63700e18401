"""pyenc inside transformers: `pyenc.register`, and `attn_implementation="pyenc"`.

    registration   what `register` and `unregister` put into transformers, and take out again
    deciding       which checkpoints transformers would load wrongly, or not at all
    naming         their tensor names, from a folder, the Hub's cache or the Hub
    config         the configuration of a model that pyenc serves
    arguments      what `from_pretrained` is given: honoured, or refused by name
    model          the models, as transformers' classes
    attention      the attention of transformers' own encoders
    mask           the padding mask on its way there

Tested with transformers 5.24.
"""

from .registration import register, unregister

__all__ = ["register", "unregister"]
