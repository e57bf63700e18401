"""The classifiers of `pyenc.register`: rerankers, and whatever else gives a text or a pair labels.

A checkpoint's classifier stands beside its encoder, under its published names; which of them are
its, and what they compute, the family says (`ClassifierNames`).

Shapes as suffixes: B rows, N padded length, C channels, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutput

from ...errors import CheckpointError, InputError
from ...loading import Checkpoint
from ...loading.save import check_writable_tensor
from ...loading.wrappers import modern_name
from ...models.families.family import ClassifierNames
from . import labels
from .base import PyencPreTrainedModel
from .config import PyencConfig


class PyencForSequenceClassification(PyencPreTrainedModel):
    """With the checkpoint's classifier; what AutoModelForSequenceClassification gives."""

    def __init__(self, config: PyencConfig, checkpoint: Checkpoint | None = None) -> None:
        super().__init__(config, checkpoint)
        where = config.name_or_path
        names = self._checkpoint.family.classifier
        if names is None:
            raise CheckpointError(
                f"{where}: pyenc knows no classifier of {self._checkpoint.family.name}"
            )
        self._names = names
        self._stored: dict[str, str] = {}
        """Own name of a parameter -> what it is called in the file."""
        layers = {path: self._layer(path, where) for path in _paths(names)}
        for path, layer in layers.items():
            _put(self, path, layer.to(self.encoder.device, self.encoder.dtype))
        if not names.dense and self.encoder.pooler is None:
            raise CheckpointError(
                f"{where}: no pooler.dense among the tensors, of whose output {names.out!r} makes "
                "its logits"
            )
        self._check_labels(layers[names.out].out_features, where)
        said = config.published or {}
        dropout = said.get("classifier_dropout")
        if dropout is not None and (type(dropout) not in (int, float) or not 0 <= dropout <= 1):
            raise CheckpointError(
                f"{where}: config.json: classifier_dropout must be null or a number from 0 to 1, "
                f"got {dropout!r}"
            )
        self.dropout = self.encoder.config.hidden_dropout if dropout is None else dropout

    def _check_labels(self, found: int, where: str) -> None:
        """As many labels as the weights have; where nothing says how many, those are."""
        if wrong := labels.contradiction(self.config.published or {}):
            raise CheckpointError(f"{where}: config.json: {wrong}")
        if not self.config.labels_said and self.config.num_labels == PyencConfig().num_labels:
            self.config.num_labels = found
        if self.config.num_labels != found:
            raise CheckpointError(
                f"{where}: {self.config.num_labels} labels (num_labels, id2label) are wanted, and "
                f"the weights have a classifier of {found}, which is not made anew"
            )

    def _layer(self, path: str, where: str) -> nn.Linear:
        """A linear layer of tensors beside the encoder."""
        found: dict[str, Tensor] = {}
        for end in ("weight", "bias"):
            stored = self._stored_name(f"{path}.{end}")
            if stored is None:
                raise CheckpointError(
                    f"{where}: no classifier: the weights lack {f'{path}.{end}'!r}, and none is "
                    "made anew; expected a checkpoint that was saved with one"
                )
            self._stored[f"{path}.{end}"] = stored
            found[end] = self._checkpoint.set_aside[stored]
        weight, bias = found["weight"], found["bias"]
        width = self.encoder.config.hidden_size
        rows = weight.shape[0] if weight.ndim == 2 else 0
        right = (rows, width) == tuple(weight.shape) and tuple(bias.shape) == (rows,) and rows
        if not right or not (weight.is_floating_point() and bias.is_floating_point()):
            raise CheckpointError(
                f"{where}: {path!r} is {weight.dtype} {tuple(weight.shape)} with a bias of "
                f"{tuple(bias.shape)}; expected floating point (labels, {width}) and (labels,)"
            )
        layer = nn.Linear(width, rows, device="meta", dtype=weight.dtype)
        layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        return layer

    def _stored_name(self, name: str) -> str | None:
        """What a tensor is called in the file, which may put the encoder's prefix before it."""
        named = {prefix + name for prefix in self._checkpoint.family.prefixes}
        return next((n for n in self._checkpoint.set_aside if modern_name(n) in named), None)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Logits of every label for every row.

        Args:
            labels: (B,) or (B, L); the loss is transformers', by `problem_type`: mean squares of
                one label, else cross entropy of whole numbers, or binary of others.
            Others: as of `PyencModel.forward`.

        Returns:
            logits (B, L); loss where there are labels; hidden_states where they are asked for.

        Raises:
            InputError: as of `PyencModel.forward`; or a row begins with padding, whose state the
                classifier would read and which is never made.
        """
        packed, hidden_TC, states = self._packed(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions, self._said(output_hidden_states, "output_hidden_states"),
        )  # fmt: skip
        hidden = packed.unpack(hidden_TC) if states is None else states[-1]
        if hidden.shape[0] and not hidden.shape[1]:
            raise InputError("input_ids: a classifier reads each row's first state; got no tokens")
        if attention_mask is not None and not bool(attention_mask[:, :1].all()):
            raise InputError(
                "attention_mask: a row begins with padding, and a classifier reads each row's "
                "first state; expected padding on the right"
            )
        first_BC = hidden[:, 0] if hidden.shape[1] else hidden.new_zeros(0, hidden.shape[2])
        logits = self._logits(first_BC)
        loss = None
        if labels is not None:
            loss = ForSequenceClassificationLoss(labels, logits, self.config)
        out = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=states)
        return out if self._said(return_dict, "return_dict") else out.to_tuple()

    def _logits(self, first_BC: Tensor) -> Tensor:
        """(B, L) of the first state of each row."""
        if self._names.dense:
            first_BC = F.dropout(first_BC, self.dropout, self.training)
            pooled = torch.tanh(self.get_submodule(self._names.dense)(first_BC))
        else:
            pooled = self.encoder.pooler_output(first_BC)
        pooled = F.dropout(pooled, self.dropout, self.training)
        logits: Tensor = self.get_submodule(self._names.out)(pooled)
        return logits

    def _beside(self) -> dict[str, str]:
        return self._stored

    def _published(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """With the labels as they are now."""
        said = dict(super()._published(checkpoint))
        said["id2label"] = {str(i): name for i, name in self.config.id2label.items()}
        said["label2id"] = {name: i for i, name in self.config.id2label.items()}
        if said.get("num_labels") is not None:
            said["num_labels"] = self.config.num_labels
        if self.config.problem_type is not None or "problem_type" in said:
            said["problem_type"] = self.config.problem_type
        return said

    def _written(self, state: Mapping[str, Tensor] | None) -> Checkpoint:
        checkpoint = super()._written(state)
        state = self.state_dict() if state is None else state
        width, count = self.encoder.config.hidden_size, self.config.num_labels
        own: dict[str, Tensor] = {}
        for name, stored in self._stored.items():
            if name not in state:
                raise CheckpointError(f"{self.config.name_or_path}: parameter {name} is gone")
            path, _, end = name.rpartition(".")
            rows = count if path == self._names.out else width
            check_writable_tensor(name, state[name], (rows, width) if end == "weight" else (rows,))
            own[stored] = state[name].detach().cpu()
        return replace(checkpoint, set_aside=checkpoint.set_aside | own)


def _paths(names: ClassifierNames) -> list[str]:
    return [path for path in (names.dense, names.out) if path]


def _put(model: nn.Module, path: str, layer: nn.Module) -> None:
    """A layer below a model under its published name."""
    *above, last = path.split(".")
    for name in above:
        if not hasattr(model, name):
            model.add_module(name, nn.Module())
        model = getattr(model, name)
    model.add_module(last, layer)
