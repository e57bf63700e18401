"""Models of transformers whose layers are computed by an `Encoder` of pyenc on their parameters.

on_parameters.py  that encoder: the same parameters, held once
spelling.py       models whose parameters transformers calls otherwise than their files
probe.py          whether two programs are one function
watched.py        whether a model is what it was
slot.py           what is known of a model from call to call
classes.py        a class of ours in the place of theirs, under their name
batches.py        a padded batch as packed tokens, through an encoder
heads.py          heads of models: their own code, on states that they are handed
refusals.py       what is left as it is, and why
"""
