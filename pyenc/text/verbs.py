"""What can be asked of texts, by one process or by several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from .encoding import Starting
from .encoding import encode as encode_texts
from .loaded import Loaded
from .names import keywords_of, names_nearest
from .options import Options
from .stream import stream

Texts = str | Iterable[str] | Iterable[Sequence[str]]


class Verbs:
    """encode, encode_query, encode_document, encode_stream."""

    def _encoder(self) -> Loaded:
        """Whose texts they are."""
        raise NotImplementedError

    def _starting(self, devices: Any) -> Starting:
        """Who runs the batches."""
        raise NotImplementedError

    @names_nearest
    def encode(
        self,
        texts: Texts,
        *,
        instruction: str | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_tokens: int | None = None,
        max_length: int | None = None,
        on_long: str = "truncate",
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        layer_norm: bool = False,
        output: str = "pooled",
        precision: str = "float32",
        ranges: Any = None,
        calibration: Any = None,
        devices: Sequence[str | torch.device] | None = None,
        progress: bool | None = None,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Embed texts.

        Args:
            texts: one string, any number of them, or any number of `[instruction, text]` pairs, as
                INSTRUCTOR's users write them. Instructions may differ from pair to pair and be
                empty; pairs and plain strings do not mix.
            instruction: put before every text, as a pair's is; see below.
            prompt: put before every text as it is given, as in sentence-transformers; its tokens
                are left out of pooling only where the checkpoint says so (`include_prompt`).
            prompt_name: one of the checkpoint's own prompts (`recipe.prompts`); "query" and
                "document" are empty where it has none of that name.
            batch_tokens: tokens of a batch at the most; default by device.
            max_length: tokens of a text at the most, special tokens included; default
                `self.max_length`. ALiBi checkpoints accept more than their default.
            on_long: "truncate" (with one warning that counts) or "error".
            normalize: to unit length; default as the checkpoint says. Token output is normalised
                only when this is True.
            truncate_dim: keep the first dimensions only, before normalising. Where it is the
                checkpoint's files that say so, the vector is cut after its own normalisation, as
                in sentence-transformers: shorter than unit length, unless `normalize` is True.
            layer_norm: layer norm over the whole pooled vector (no weights, eps 1e-5), before it is
                cut and normalised. No file asks for it: the model card of nomic-embed-text-v1.5
                does, for its vectors that are cut, together with `normalize=True`.
            output: "pooled", or "tokens" for a list of `TokenVectors`.
            precision: "float32", "float16", or, as in sentence-transformers, "int8" and "uint8" (a
                byte a dimension), "binary" and "ubinary" (a bit a dimension, eight in an int8 or
                uint8, the last filled up with zeros). After everything above; of pooled vectors.
            ranges: of int8 and uint8: the least and the greatest value of each dimension, (2, dim).
                Vectors that are to be compared must have been made with the same ones.
            calibration: what to take them from instead: vectors (n, dim), or texts, which are
                embedded as `texts` are. Default: the vectors of `texts` themselves, of two at the
                least, as there.
            devices: one process for each, such as ["cuda:0", "cuda:1"] or ["cpu", "cpu"], started
                for this call; `pool` keeps them for many. Batches go to whoever is free; order,
                errors and warnings are those of one process.
            progress: a progress bar; default: if standard error is a terminal.
            convert_to_tensor: torch on the model's device instead of numpy; of pooled output.

        Returns:
            float32 (len(texts), dim), in the order of the input; (dim,) for one string; or a list
            of `TokenVectors` (one, for one string). In another precision float16, int8 or uint8,
            (len(texts), ceil(dim / 8)) of "binary" and "ubinary".

        Instructions, on every checkpoint, are those of InstructorEmbedding 1.0.1, by which the
        published scores of INSTRUCTOR (Su et al., arXiv 2212.09741) were made: the encoder is given
        `(instruction + text.strip()).strip()`, attention sees it all, and the mean leaves out the
        first n tokens, n being those of `instruction.strip()` without the closing one; an n of 1
        leaves out nothing. A maximum likewise; where the first or last token is the vector, it
        stays that. Two others differ: the later code of INSTRUCTOR's repository strips the
        instruction before it joins, so that "Represent the sentence: " loses its space, and
        sentence-transformers (`prompt` here) strips nothing and leaves out an n of 1 too. The
        limit is the checkpoint's own, not 512 whatever the files say.

        Warns:
            TruncationWarning: how many texts were cut.
            CalibrationWarning: ranges were taken from fewer than 100 vectors.

        Raises:
            InputTypeError: something among the texts is not a string, or not a pair of strings; the
                message names its index.
            InputError: an option is out of range, a text is too long under `on_long="error"`, an
                instruction leaves no room for a text or no token to pool, one is given beside
                pairs, or there is nothing to take ranges from.
            WorkerError: one of several processes died; the message names its device and how.
        """
        options = Options(
            instruction=instruction, prompt=prompt, prompt_name=prompt_name,
            batch_tokens=batch_tokens, max_length=max_length, on_long=on_long,
            normalize=normalize, truncate_dim=truncate_dim, layer_norm=layer_norm, output=output,
            precision=precision, ranges=ranges, calibration=calibration, progress=progress,
            convert_to_tensor=convert_to_tensor,
        )  # fmt: skip
        return encode_texts(self._encoder(), texts, options, self._starting(devices))

    @keywords_of(encode)
    def encode_query(self, texts: Texts, **options: Any) -> Any:
        """`encode` for queries: with the checkpoint's prompt "query", if nothing else is said.

        As in sentence-transformers, a checkpoint without that prompt gets none, its
        `default_prompt_name` neither. `prompt`, `prompt_name` and `instruction` go before it.

        Args:
            texts: as of `encode`.
            options: all of `encode`.
        """
        return self._of_task("query", texts, options)

    @keywords_of(encode)
    def encode_document(self, texts: Texts, **options: Any) -> Any:
        """`encode` for what is searched: with the checkpoint's prompt "document", likewise.

        Args:
            texts: as of `encode`.
            options: all of `encode`.

        Warns:
            PromptWarning: it has none, but one called "passage" or "corpus", which
                sentence-transformers 6.2.0 does not take either: its models always have a
                "document", if an empty one. `prompt_name="passage"` asks for it.
        """
        return self._of_task("document", texts, options)

    @keywords_of(encode, leave_out=("progress",))
    def encode_stream(
        self,
        texts: Iterable[str] | Iterable[Sequence[str]],
        *,
        block: int | None = None,
        task: str | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """Embed any number of texts in bounded memory: an iterator in, an iterator out.

        >>> for vector in encoder.encode_stream(line for line in open("corpus.txt")):
        ...     index.add(vector)

        Texts are taken a few batches at a time, when vectors of theirs are asked for, and cut by
        how long they are, not by how many; with `devices`, or of a pool, so many more that every
        process has work. The order is that of the texts. Closing the generator (leaving the loop)
        ends the processes it started.

        Args:
            texts: strings, or `[instruction, text]` pairs; may have no end.
            block: vectors to a block: (block, dim), the last one shorter. Default: one by one,
                (dim,).
            task: "query" or "document", for the prompt of `encode_query` or `encode_document`.
            options: those of `encode`, but for `progress`.

        Yields:
            Vectors, or blocks of them (lists, of `TokenVectors`).

        Warns:
            TruncationWarning: at the first text that is cut, and how many there were at the end.

        Raises:
            InputTypeError, InputError: an option, at once, with those of `encode`; int8 and uint8
                need `ranges` or `calibration`. A text, when its turn comes; the message names its
                index. Vectors of the texts before it have been given, but for those that were
                tokenised together with one that is too long under `on_long="error"`.
            WorkerError: as of `encode`.
        """
        devices = options.pop("devices", None)
        return stream(
            self._encoder(), texts, Options(**options), self._starting(devices), block, task
        )

    def _of_task(self, task: str, texts: Texts, options: dict[str, Any]) -> Any:
        devices = options.pop("devices", None)
        return encode_texts(
            self._encoder(), texts, Options(**options), self._starting(devices), task
        )
