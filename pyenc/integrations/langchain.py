"""LangChain: `PyencEmbeddings`, wherever LangChain takes an `Embeddings`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..text import TextEncoder
from .embedding import embed, encode_options, encoder_of, options_nearest
from .missing import needs

with needs("langchain_core", "langchain-core"):
    from langchain_core.embeddings import Embeddings


class PyencEmbeddings(Embeddings):
    """A checkpoint as LangChain's `Embeddings`.

    Documents and queries get the prompts that the checkpoint has for them. The asynchronous methods
    are LangChain's own: they run these in a thread.

    Args:
        model: a `TextEncoder`, or a folder or Hub name to load.
        model_kwargs: of `pyenc.load`, where it is loaded here.
        encode_kwargs: of `TextEncoder.encode`, for documents and queries.
        query_encode_kwargs: the same for queries alone, over `encode_kwargs`.

    Attributes:
        encoder: the `TextEncoder`.

    Raises:
        MissingPackageError: langchain-core is not installed (as this module is imported).
        InputTypeError: an argument or an option does not exist; the message names the nearest.
        PyencError: what `pyenc.load` has against the model.
    """

    @options_nearest
    def __init__(
        self,
        model: TextEncoder | str | Path,
        *,
        model_kwargs: Mapping[str, Any] | None = None,
        encode_kwargs: Mapping[str, Any] | None = None,
        query_encode_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.encode_kwargs = encode_options(encode_kwargs)
        of_queries = encode_options(query_encode_kwargs, "query_encode_kwargs")
        self.query_encode_kwargs = {**self.encode_kwargs, **of_queries}
        self.encoder = encoder_of(model, model_kwargs)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text, in their order; all of them go into batches by tokens at once.

        Raises:
            InputError: as `TextEncoder.encode`; the message names the text by its index.
        """
        vectors: list[list[float]] = embed(
            self.encoder, "document", texts, self.encode_kwargs
        ).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of one query."""
        vector: list[float] = embed(self.encoder, "query", [text], self.query_encode_kwargs)[
            0
        ].tolist()
        return vector

    def __repr__(self) -> str:
        return f"PyencEmbeddings({self.encoder!r})"
