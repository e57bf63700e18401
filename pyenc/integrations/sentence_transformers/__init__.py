"""pyenc inside sentence-transformers: `pyenc.accelerate(model)`.

>>> model = pyenc.accelerate(SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2"))
>>> model.encode(texts)                      # sentence-transformers' own API, from here on packed
>>> model.restore()                          # as it was

`CrossEncoder`, `SparseEncoder` and `MultiVectorEncoder` alike.

    accelerate.py  the verb, and what undoes it
    modules.py     what their modules do instead: tokens packed, one pooling over packed states
    behind.py      what stands behind the first of them, and whether it reads padding
    splade.py      a masked-LM head's greatest logits, without those of padding
    refusals.py    what of theirs is left as it is, and why

The encoder on their models' parameters is of `..borrowed`.
"""

from ..borrowed.refusals import AccelerationWarning
from .accelerate import TESTED, accelerate, restore

__all__ = ["TESTED", "AccelerationWarning", "accelerate", "restore"]
