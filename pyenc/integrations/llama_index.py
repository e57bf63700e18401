"""LlamaIndex: `PyencEmbedding`, wherever LlamaIndex takes an embedding model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ..errors import InputTypeError
from ..text import TextEncoder
from ..text.names import check_names
from .embedding import embed, encode_options, encoder_of, place_of, plain
from .missing import needs

with needs("llama_index", "llama-index-core"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr, field_serializer

BATCH_TEXTS = 2048
"""Texts that LlamaIndex hands over at once, the most that it allows: batches are made by tokens."""


class PyencEmbedding(BaseEmbedding):
    """A checkpoint as LlamaIndex's `BaseEmbedding`.

    Texts and queries get the prompts that the checkpoint has for them. `to_dict` keeps the name and
    the options; `from_dict` loads anew. Name and `model_kwargs` are those of the model that is
    loaded, and cannot be set afterwards; the other options can.

    Args:
        model_name: a folder or Hub name to load, or a `TextEncoder` (its name is kept).
        model_kwargs: of `pyenc.load`, where it is loaded here.
        encode_kwargs: of `TextEncoder.encode`, for texts and queries.
        query_encode_kwargs: the same for queries alone, over `encode_kwargs`.
        more: fields of `BaseEmbedding`: `embed_batch_size`, `callback_manager`, `num_workers`,
            `embeddings_cache`, `rate_limiter`.

    Raises:
        MissingPackageError: llama-index-core is not installed (as this module is imported).
        InputTypeError: an argument or an option does not exist; the message names the nearest.
        PyencError: what `pyenc.load` has against the model.
    """

    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="Of pyenc.load.")
    encode_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Of TextEncoder.encode, for texts and queries."
    )
    query_encode_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="The same for queries alone, over encode_kwargs."
    )
    _encoder: TextEncoder = PrivateAttr()

    def __init__(
        self,
        model_name: TextEncoder | str | Path,
        *,
        model_kwargs: dict[str, Any] | None = None,
        encode_kwargs: dict[str, Any] | None = None,
        query_encode_kwargs: dict[str, Any] | None = None,
        embed_batch_size: int = BATCH_TEXTS,
        **more: Any,
    ) -> None:
        # BaseEmbedding passes over what it does not know.
        check_names("PyencEmbedding", more, list(type(self).model_fields), place_of)
        encode_kwargs = encode_options(encode_kwargs)
        query_encode_kwargs = encode_options(query_encode_kwargs, "query_encode_kwargs")
        encoder = encoder_of(model_name, model_kwargs)
        fields: dict[str, Any] = {
            "model_name": encoder.name,
            "model_kwargs": model_kwargs or {},
            "encode_kwargs": encode_kwargs,
            "query_encode_kwargs": query_encode_kwargs,
            "embed_batch_size": embed_batch_size,
        }
        super().__init__(**fields, **more)
        self._encoder = encoder

    @classmethod
    def class_name(cls) -> str:
        return "PyencEmbedding"

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("model_name", "model_kwargs"):
            raise InputTypeError(
                f"{name} is that of the model that is loaded: make another PyencEmbedding"
            )
        super().__setattr__(name, value)

    @field_serializer("model_kwargs", "encode_kwargs", "query_encode_kwargs")
    def _written(self, options: dict[str, Any]) -> dict[str, Any]:
        return plain(options)

    @property
    def encoder(self) -> TextEncoder:
        """The `TextEncoder`."""
        return self._encoder

    def _get_query_embedding(self, query: str) -> list[float]:
        options = {**self.encode_kwargs, **self.query_encode_kwargs}
        vector: list[float] = embed(self._encoder, "query", [query], options)[0].tolist()
        return vector

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = embed(
            self._encoder, "document", texts, self.encode_kwargs
        ).tolist()
        return vectors

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    # In a thread, so that the event loop goes on.
    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
