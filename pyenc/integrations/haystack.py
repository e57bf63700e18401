"""Haystack: components that embed a query's text and documents, for its pipelines."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputTypeError
from ..text import TextEncoder
from .embedding import (
    check_model,
    embed,
    encode_options,
    encoder_of,
    loading_options,
    options_nearest,
    plain,
)
from .missing import needs

with needs("haystack", "haystack-ai"):
    from haystack import Document, component, default_from_dict, default_to_dict


class _Embedder:
    """What both components are made of; the model is loaded by `warm_up`, or by the first run."""

    def __init__(
        self,
        model: TextEncoder | str | Path,
        *,
        model_kwargs: dict[str, Any] | None,
        encode_kwargs: dict[str, Any] | None,
        prefix: str,
        suffix: str,
    ) -> None:
        check_model(model)
        self.model = model.name if isinstance(model, TextEncoder) else str(model)
        self.model_kwargs = loading_options(model_kwargs)
        self.encode_kwargs = encode_options(encode_kwargs)
        self.prefix = prefix
        self.suffix = suffix
        self.encoder: TextEncoder | None = None
        if isinstance(model, TextEncoder):
            self.encoder = encoder_of(model, model_kwargs)

    def warm_up(self) -> None:
        """Loads the model, once.

        Raises:
            PyencError: what `pyenc.load` has against it.
        """
        if self.encoder is None:
            self.encoder = encoder_of(self.model, self.model_kwargs)

    def _embed(self, kind: str, texts: list[str], **options: Any) -> list[list[float]]:
        self.warm_up()
        assert self.encoder is not None
        wrapped = [f"{self.prefix}{text}{self.suffix}" for text in texts]
        vectors: list[list[float]] = embed(
            self.encoder, kind, wrapped, {**options, **self.encode_kwargs}
        ).tolist()
        return vectors

    def _fields(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "model_kwargs": plain(self.model_kwargs),
            "encode_kwargs": plain(self.encode_kwargs),
            "prefix": self.prefix,
            "suffix": self.suffix,
        }


@component
class PyencTextEmbedder(_Embedder):
    """Embeds one text, a query, with the prompt that the checkpoint has for queries.

    Args:
        model: a folder or Hub name, or a `TextEncoder` (of which `to_dict` keeps the name).
        model_kwargs: of `pyenc.load`.
        encode_kwargs: of `TextEncoder.encode`.
        prefix, suffix: put around the text, after the checkpoint's prompt.

    Raises:
        MissingPackageError: haystack-ai is not installed (as this module is imported).
    """

    @options_nearest
    def __init__(
        self,
        model: TextEncoder | str | Path,
        *,
        model_kwargs: dict[str, Any] | None = None,
        encode_kwargs: dict[str, Any] | None = None,
        prefix: str = "",
        suffix: str = "",
    ) -> None:
        # Not super(): the decorator makes another class, which an instance then is of.
        _Embedder.__init__(
            self, model, model_kwargs=model_kwargs, encode_kwargs=encode_kwargs, prefix=prefix,
            suffix=suffix,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the component of again."""
        fields: dict[str, Any] = default_to_dict(self, **self._fields())
        return fields

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PyencTextEmbedder:
        """The component of what `to_dict` gave."""
        made: PyencTextEmbedder = default_from_dict(cls, data)
        return made

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Embed one text.

        Returns:
            {"embedding": its vector}

        Raises:
            InputTypeError: it is no string.
        """
        if not isinstance(text, str):
            raise InputTypeError(
                f"PyencTextEmbedder takes one string, got {type(text).__name__}; documents go to "
                "PyencDocumentEmbedder"
            )
        return {"embedding": self._embed("query", [text])[0]}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """`run` in a thread."""
        return await asyncio.to_thread(self.run, text)


@component
class PyencDocumentEmbedder(_Embedder):
    """Embeds documents, with the prompt that the checkpoint has for documents.

    Args:
        model: a folder or Hub name, or a `TextEncoder` (of which `to_dict` keeps the name).
        model_kwargs: of `pyenc.load`.
        encode_kwargs: of `TextEncoder.encode`.
        prefix, suffix: put around each text, after the checkpoint's prompt.
        progress_bar: whether there is one.
        meta_fields_to_embed: metadata that stand before the content; what a document lacks, or has
            as None, is left out of it.
        embedding_separator: between them and the content.

    Raises:
        MissingPackageError: haystack-ai is not installed (as this module is imported).
    """

    @options_nearest
    def __init__(
        self,
        model: TextEncoder | str | Path,
        *,
        model_kwargs: dict[str, Any] | None = None,
        encode_kwargs: dict[str, Any] | None = None,
        prefix: str = "",
        suffix: str = "",
        progress_bar: bool = False,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        # Not super(): the decorator makes another class, which an instance then is of.
        _Embedder.__init__(
            self, model, model_kwargs=model_kwargs, encode_kwargs=encode_kwargs, prefix=prefix,
            suffix=suffix,
        )  # fmt: skip
        if isinstance(meta_fields_to_embed, str):
            raise InputTypeError(
                f"meta_fields_to_embed must be a list of names, got {meta_fields_to_embed!r}"
            )
        self.progress_bar = progress_bar
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the component of again."""
        fields: dict[str, Any] = default_to_dict(
            self, **self._fields(), progress_bar=self.progress_bar,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )  # fmt: skip
        return fields

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PyencDocumentEmbedder:
        """The component of what `to_dict` gave."""
        made: PyencDocumentEmbedder = default_from_dict(cls, data)
        return made

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents.

        Returns:
            {"documents": copies of them with their vectors, in the order given}; a document without
            content is embedded as its metadata, or as the empty text.

        Raises:
            InputTypeError: something among them is no document; the message names its index.
        """
        if not isinstance(documents, list):
            raise InputTypeError(
                f"documents must be a list of Document, got {type(documents).__name__}; one text "
                "goes to PyencTextEmbedder"
            )
        for index, document in enumerate(documents):
            if not isinstance(document, Document):
                raise InputTypeError(
                    f"document {index} is {document!r:.40} ({type(document).__name__}), expected a "
                    "Document"
                )
        texts = [self._text(document) for document in documents]
        vectors = self._embed("document", texts, progress=self.progress_bar)
        pairs = zip(documents, vectors, strict=True)
        return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """`run` in a thread."""
        return await asyncio.to_thread(self.run, documents)

    def _text(self, document: Document) -> str:
        found = (document.meta.get(name) for name in self.meta_fields_to_embed)
        parts = [str(value) for value in found if value is not None]
        return self.embedding_separator.join([*parts, document.content or ""])
