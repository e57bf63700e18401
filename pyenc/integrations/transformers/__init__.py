"""pyenc inside transformers: `pyenc.register`, and `attn_implementation="pyenc"`.

    registration   what `register` and `unregister` put into transformers, and take out again
    state          whether it is in force
    configuring    from a name to a configuration, with the arguments that came with it
    deciding       which checkpoints transformers would load wrongly, or not at all
    naming         their tensor names, from a folder, the Hub's cache or the Hub
    config         the configuration of a model that pyenc serves
    arguments      what `from_pretrained` is given: honoured, or refused by name
    base           a model as transformers' class: loading, saving, sending it elsewhere
    model          the two there are
    attention      the attention of transformers' own encoders
    mask           the padding mask on its way there

Tested with transformers 5.24.
"""

from ..missing import needs

with needs("transformers"):
    from .registration import register, unregister

__all__ = ["register", "unregister"]
