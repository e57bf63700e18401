"""`PyencEncoder`: what `mteb.evaluate` takes, and the loader of what `mteb.get_model` loads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import InputError
from ...text import TextEncoder
from ...text.arguments import check_side
from ..embedding import PROMPT_NAMES, encode_options, encoder_of
from ..missing import needs

with needs("mteb"):
    from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType

SCORED_BY = {"cosine": ScoringFunction.COSINE, "dot": ScoringFunction.DOT_PRODUCT}
"""What `config_sentence_transformers.json` calls it -> what mteb can score with."""


WITHOUT_EFFECT = ("batch_size", "convert_to_numpy", "convert_to_tensor")
"""Options of a call that change no number of its vectors."""


class PyencEncoder(AbsEncoder):
    """A checkpoint as an encoder of mteb (its `EncoderProtocol`, of version 2).

    Prompts are chosen as mteb chooses them for sentence-transformers: by task and kind of text,
    task, type of task and kind, type of task, kind of text ("query" or "document"), the first that
    there is. The kinds have the checkpoint's own: "query", and the first of "document", "passage"
    and "corpus". A text of neither kind gets the checkpoint's default prompt, if it has one.

    mteb's `batch_size` is without effect: batches are made by tokens (`batch_tokens` of
    `encode_kwargs`). Similarity is what `config_sentence_transformers.json` names, cosine or dot
    product; cosine where it names none.

    Args:
        model: a `TextEncoder`, or a folder or Hub name to load.
        revision: of a Hub name.
        device: as of `pyenc.load`.
        model_prompts: task, type of task, kind of text, or "task-kind" -> prompt; over the
            checkpoint's own.
        embed_dim: dimensions to keep (`truncate_dim`).
        encode_kwargs: of `TextEncoder.encode`.
        options: more of `pyenc.load`.

    Attributes:
        model: the `TextEncoder`.
        mteb_model_meta: name, dimensions and so on. Without a revision, its `revision` is a digest
            of the weights and the recipe, and its `experiment_kwargs` have one of the options and
            prompts given here, so that mteb's cache of results never takes the scores of one for
            another's.

    Raises:
        MissingPackageError: mteb is not installed (as this module is imported).
        InputError: a similarity that mteb cannot score with, or prompts for a task that it does not
            know.
        PyencError: what `pyenc.load` has against the model.
    """

    def __init__(
        self,
        model: TextEncoder | str | Path,
        revision: str | None = None,
        *,
        device: str | torch.device | None = None,
        model_prompts: Mapping[str, str] | None = None,
        embed_dim: int | None = None,
        encode_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        encoding = encode_options(encode_kwargs)
        loading = {"revision": revision, "device": device, **options}
        self.model = encoder_of(model, {k: v for k, v in loading.items() if v is not None})
        self.encode_kwargs = {**({"truncate_dim": embed_dim} if embed_dim else {}), **encoding}
        self.model_prompts = _prompts(self.model, model_prompts)
        self.mteb_model_meta = model_meta(
            self.model.name,
            revision or _digest(self.model),
            max_tokens=self.model.max_length,
            embed_dim=self.encode_kwargs.get("truncate_dim") or self.model.dim,
            n_parameters=sum(p.numel() for p in self.model.model.parameters()),
            similarity_fn_name=_scored_by(self.model),
            experiment_kwargs=_experiment(options, self.encode_kwargs, model_prompts),
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """As mteb calls it.

        Args:
            inputs: a DataLoader of batches that have "text".
            task_metadata: of the task: its name and type choose the prompt.
            hf_split, hf_subset: of the task's data; without effect.
            prompt_type: query, document or None.
            kwargs: the `encode_kwargs` of `mteb.evaluate`: `show_progress_bar`; `batch_size` and
                the kind of array have no effect; all others go to `TextEncoder.encode`, over this
                encoder's own `encode_kwargs`.

        Returns:
            (texts, dim) float32.

        Raises:
            InputTypeError: an option does not exist; the message names the nearest.
            InputError: the encoder was loaded for the task of queries, and these are documents, or
                the other way round.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        asked = {name: value for name, value in kwargs.items() if name not in WITHOUT_EFFECT}
        progress = bool(asked.pop("show_progress_bar", False))
        if asked.get("precision", "") is None:
            del asked["precision"]
        options = {"progress": progress, **self.encode_kwargs, **asked}
        said = ("prompt", "prompt_name", "instruction")
        if not any(options.get(name) is not None for name in said):
            prompts = self.model_prompts or {}
            name = get_prompt_name(prompts, task_metadata, prompt_type)
            kind = None if prompt_type is None else PromptType(prompt_type).value
            if kind in PROMPT_NAMES and name in (None, kind) and not prompts.get(kind):
                check_side(kind, self.model.recipe)
            options["prompt"] = None if name is None else prompts[name]
        vectors: np.ndarray = self.model.encode(texts, **options)
        return vectors


def model_meta(name: str | Path, revision: str | None = None, **known: Any) -> ModelMeta:
    """What mteb keeps of a model; `mteb.evaluate` and `.load_model()` load it with pyenc.

    >>> mteb.evaluate(model_meta("jinaai/jina-embeddings-v2-small-en"), mteb.get_tasks(...))

    Args:
        name: a folder or Hub name.
        revision: of a Hub name.
        known: more fields of `mteb.ModelMeta`.
    """
    shown = str(name)
    folder = Path(name)
    if folder.is_dir() or shown.count("/") != 1:
        # mteb asks for organization/model, and files results by it.
        shown = f"local/{folder.resolve().name}"
    fields = {"framework": ["PyTorch"], "loader": _loader(str(name)), **known}
    meta: ModelMeta = ModelMeta.create_empty(
        overwrites={"name": shown, "revision": revision, **fields}
    )
    return meta


def _loader(name: str) -> Any:
    """`PyencEncoder` of a model whose name mteb may know by another."""

    def load(_: str, revision: str | None = None, **options: Any) -> PyencEncoder:
        by_hub = revision not in (None, "no_revision_available") and not Path(name).is_dir()
        return PyencEncoder(name, revision if by_hub else None, **options)

    load.__name__ = "PyencEncoder"
    return load


def _prompts(encoder: TextEncoder, said: Mapping[str, str] | None) -> dict[str, str]:
    own = encoder.recipe.prompts
    kinds = {
        kind: next((own[name] for name in names if name in own), "")
        for kind, names in PROMPT_NAMES.items()
    }
    if said:
        try:
            AbsEncoder.validate_task_to_prompt_name(dict(said))
        except KeyError as error:
            stories = error.args[0]
            raise InputError(f"model_prompts: {'; '.join(sorted(stories))}") from error
    return {**own, **kinds, **(said or {})}


def _scored_by(encoder: TextEncoder) -> ScoringFunction:
    name = getattr(encoder.recipe, "similarity", None)
    if name is None:
        content = json.loads(encoder._files.get("config_sentence_transformers.json", b"{}"))
        name = content.get("similarity_fn_name") or "cosine"
    if name not in SCORED_BY:
        raise InputError(
            f"{encoder.name}: similarity_fn_name {name!r} is not served under mteb; served: "
            f"{', '.join(SCORED_BY)}"
        )
    return SCORED_BY[name]


NO_NUMBER = ("batch_tokens", "devices", "progress")
"""Options that change no number of a vector."""


def _experiment(*options: Mapping[str, Any] | None) -> dict[str, str] | None:
    """What mteb is to tell apart beside a model and its revision: a digest of all that is said."""
    said = [
        [(key, value) for key, value in sorted((each or {}).items()) if key not in NO_NUMBER]
        for each in options
    ]
    if not any(said):
        return None
    digest = hashlib.sha256()
    for number, each in enumerate(said):
        for key, value in each:
            array = isinstance(value, np.ndarray | torch.Tensor)
            told = value.tolist() if array else value
            digest.update(f"{number} {key} {told!r}\n".encode())
    return {"options": digest.hexdigest()[:12]}


def _digest(encoder: TextEncoder) -> str:
    """Of all that decides what a vector is."""
    recipe = encoder.recipe
    digest = hashlib.sha256(f"{recipe!r} {encoder.max_length}".encode())
    tensors = dict(encoder.model.state_dict())
    for i, layer in enumerate(recipe.dense):
        tensors |= {f"dense.{i}.{name}": tensor for name, tensor in layer.tensors().items()}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:40]
