"""What an `Encoder` gives beside hidden states: a pooler's vectors and a masked-LM head's logits.

Shapes as suffixes: B rows, N padded length, C channels, V words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..forking import check_forked
from .config import EncoderConfig
from .embeddings import Embeddings
from .head import MaskedLMHead
from .modules import called
from .packing import Packed, pack


class Outputs(nn.Module):
    """Of an encoder that has a pooler or a head, by its config."""

    config: EncoderConfig
    backend: str | None
    embeddings: Embeddings
    pooler: nn.Linear | None
    lm_head: MaskedLMHead | None

    def hidden(self, packed: Packed, states: list[Tensor] | None = None) -> Tensor:
        """Hidden states (T, C) of packed rows; the encoder's own."""
        raise NotImplementedError

    def pooler_output(self, first_BC: Tensor) -> Tensor:
        """tanh(dense(x)) of first tokens (B, C), for checkpoints that carry a pooler."""
        if self.pooler is None:
            raise InputError("this checkpoint has no pooler (pooler.dense.weight)")
        return torch.tanh(self.pooler(first_BC))

    def token_logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits of the masked-LM head, as `logits` of the published models.

        They take N * V numbers a row, and under a mask twice that while they are made. Of some
        tokens alone, such as the masked ones in pretraining: `logits`.

        Args:
            input_ids, attention_mask, token_type_ids: (B, N) each, as of `forward`.

        Returns:
            (B, N, V), dtype of the parameters; V is `config.vocab_size`, also where the tokenizer
            has fewer words. Exact zeros where the mask is zero.

        Raises:
            InputError: as of `forward`, or the checkpoint has no whole masked-LM head.
        """
        check_forked()
        self.check_head()
        packed = pack(input_ids, attention_mask, token_type_ids, self.config.padding_id)
        return packed.unpack(self.logits(self.hidden(packed)))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the masked-LM head for hidden states, those of `forward_packed` say.

        Args:
            hidden: (..., C), in the dtype of the parameters.

        Returns:
            (..., V), in that dtype.

        Raises:
            InputError: the checkpoint has no whole masked-LM head, or the shape is wrong.
        """
        words_VC = self.embeddings.word.weight
        logits: Tensor = called(self.check_head(), self.backend, hidden, words_VC)
        return logits

    def check_head(self) -> MaskedLMHead:
        """The masked-LM head, before anything is computed for it.

        Raises:
            InputError: there is none, or no whole one; the message names what is missing.
        """
        if self.lm_head is None:
            why = self.config.no_lm_head or "its EncoderConfig has no lm_head"
            raise InputError(f"this encoder has no masked-LM head: {why}")
        return self.lm_head
