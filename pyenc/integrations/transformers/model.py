"""The models of `pyenc.register`: token ids in, hidden states or logits out.

Shapes as suffixes: B rows, N padded length, T packed tokens, C channels, V words.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    MaskedLMOutput,
)

from ...errors import CheckpointError, InputError
from ...loading import Checkpoint
from .base import PyencPreTrainedModel
from .config import PyencConfig


class PyencModel(PyencPreTrainedModel):
    """Token ids in, hidden states out; what AutoModel gives."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | BaseModelOutputWithPooling | tuple[Any, ...]:
        """Hidden states of padded rows.

        Args:
            input_ids: (B, N) integers.
            attention_mask: (B, N) zeros and ones, any arrangement; default all ones.
            token_type_ids: (B, N) integers, default zeros.
            position_ids: none, or 0..N-1, which they are.
            output_hidden_states: also the embeddings and what each layer gives.
            return_dict: False for a tuple.

        Returns:
            last_hidden_state (B, N, C), exact zeros where the mask is zero; pooler_output (B, C)
            where the checkpoint has a pooler; hidden_states where they are asked for.

        Raises:
            InputError: inputs_embeds or attention weights are asked for, shapes disagree, or an id
                is out of range.
        """
        packed, hidden_TC, states = self._packed(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions, self._said(output_hidden_states, "output_hidden_states"),
        )  # fmt: skip
        hidden = packed.unpack(hidden_TC) if states is None else states[-1]
        out: BaseModelOutput | BaseModelOutputWithPooling
        if self.encoder.pooler is None:
            out = BaseModelOutput(last_hidden_state=hidden, hidden_states=states)
        else:
            first = self.encoder.pooler_output(hidden[:, 0])
            out = BaseModelOutputWithPooling(
                last_hidden_state=hidden, pooler_output=first, hidden_states=states
            )
        return out if self._said(return_dict, "return_dict") else out.to_tuple()


class PyencForMaskedLM(PyencPreTrainedModel):
    """With the checkpoint's masked-LM head; what AutoModelForMaskedLM gives."""

    def __init__(self, config: PyencConfig, checkpoint: Checkpoint | None = None) -> None:
        super().__init__(config, checkpoint)
        try:
            self.encoder.check_head()
        except InputError as error:
            raise CheckpointError(f"{config.name_or_path}: {error}") from error

    def get_output_embeddings(self) -> nn.Module:
        """What holds the decoder's weights: where they are tied, the word embeddings."""
        decoder = self.encoder.check_head().decoder
        return self.encoder.embeddings.word if decoder is None else decoder

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
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """Logits of every word for every token.

        Args:
            labels: (B, N) word ids, -100 where there is nothing to be guessed; the loss is the mean
                cross entropy of the others.
            Others: as of `PyencModel.forward`.

        Returns:
            logits (B, N, V), zeros where the mask is zero; loss where there are labels;
            hidden_states where they are asked for.

        Raises:
            InputError: as of `PyencModel.forward`.
        """
        packed, hidden_TC, states = self._packed(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions, self._said(output_hidden_states, "output_hidden_states"),
        )  # fmt: skip
        logits = packed.unpack(self.encoder.logits(hidden_TC))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        out = MaskedLMOutput(loss=loss, logits=logits, hidden_states=states)
        return out if self._said(return_dict, "return_dict") else out.to_tuple()
