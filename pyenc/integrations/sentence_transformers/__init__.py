"""pyenc inside sentence-transformers: `pyenc.accelerate(model)`.

>>> model = pyenc.accelerate(SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2"))
>>> model.encode(texts)                      # sentence-transformers' own API, from here on packed
>>> model.restore()                          # as it was

`CrossEncoder`, `SparseEncoder` and `MultiVectorEncoder` alike.

    accelerate.py  the verb, and what undoes it
    modules.py     what their modules do instead: tokens packed, one pooling over packed states
    behind.py      what stands behind the first of them, and whether it reads padding
    batches.py     a padded batch as packed tokens, through an encoder
    heads.py       heads of their models: their own code, on packed states
    splade.py      a masked-LM head's greatest logits, without those of padding
    classes.py     a class of ours in the place of theirs, under their name
    borrowed.py    an `Encoder` on the parameters of a transformers model
    spelling.py    those models whose parameters transformers calls otherwise than their files
    refusals.py    what is left as it is, and why
    probe.py       whether two programs are one function
"""

from .accelerate import TESTED, accelerate, restore
from .refusals import AccelerationWarning

__all__ = ["TESTED", "AccelerationWarning", "accelerate", "restore"]
