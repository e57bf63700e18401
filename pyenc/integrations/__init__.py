"""pyenc inside what people already run: one module a library, each imported when asked for.

A module is named after the library that it stands on, and it alone imports that library:

    transformers            `pyenc.register`, `attn_implementation="pyenc"`
    sentence_transformers   `pyenc.accelerate`
    langchain               `PyencEmbeddings`
    llama_index             `PyencEmbedding`
    haystack                `PyencTextEmbedder`, `PyencDocumentEmbedder`
    mteb                    `PyencEncoder`; the scores of a model card run again
    ray                     `Embed`, for `map_batches`

`pyenc.accelerate` takes models of either of the first two (`accelerate`): their layers are computed
by an encoder on their parameters, which is `borrowed`.

Beside them, for all: `missing` (a library that is not installed) and `embedding` (who embeds, with
which prompt).
"""
