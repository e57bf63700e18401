"""What an encoder begins with: rows of its tables, summed up and normed.

Shapes as suffixes: T packed tokens, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..ops import embedding_norm
from ..ops.embedding import few_rows
from .config import EncoderConfig
from .modules import FORWARDS, Linear, Norm, called, calls_forward


class Embeddings(nn.Module):
    """norm(scale * word + token type + position + first task), widened where `embedding_size` says
    so."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.embedding_dim
        self.word = nn.Embedding(config.vocab_size, width, config.padding_row)
        self.token_type: nn.Embedding | None = None
        self.position: nn.Embedding | None = None
        self.task: nn.Embedding | None = None
        if config.type_vocab_size:
            self.token_type = nn.Embedding(config.type_vocab_size, width)
        if config.position == "absolute":
            self.position = nn.Embedding(config.num_positions, width)
        if config.task_vocab_size:
            self.task = nn.Embedding(config.task_vocab_size, width)
        self.norm = Norm(config, width) if config.embedding_norm else None
        wider = config.embedding_size is not None
        self.project = Linear(width, config.hidden_size) if wider else None
        self.scale = config.embedding_scale
        self.dropout = config.dropout_of("embedding_dropout")

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        token_type_ids: Tensor | None,
        backend: str | None,
    ) -> Tensor:
        # Gradients, and whatever others make of a table's module, are of the modules' own calls.
        if self.norm is None or torch.is_grad_enabled() or not self._plain():
            x_TC = self._apart(input_ids, position_ids, token_type_ids, backend)
        else:
            types = self._types()
            positions = self.position
            x_TC = embedding_norm(
                input_ids,
                self.word.weight,
                self.norm.gain(),
                self.norm.bias,
                self.norm.eps,
                token_type_ids=None if self.token_type is None else token_type_ids,
                token_type=types,
                position_ids=None if positions is None else position_ids,
                position=None if positions is None else positions.weight,
                rms=self.norm.rms,
                backend=backend,
            )
        x_TC = F.dropout(x_TC, self.dropout, self.training)
        if self.project is None:
            return x_TC
        # Under autocast a product is made in half, and what layers add to stays as it was.
        wide_TC: Tensor = called(self.project, backend, x_TC)
        return wide_TC.to(x_TC.dtype)

    def _apart(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        token_type_ids: Tensor | None,
        backend: str | None,
    ) -> Tensor:
        x_TC: Tensor = self.word(input_ids)
        if self.scale is not None:
            # Written on its device: a copy from the host would be waited for.
            x_TC = x_TC * torch.full((), self.scale, dtype=x_TC.dtype, device=x_TC.device)
        tables = [table for table in (self.token_type, self.task) if table is not None]
        plain = all(_untouched(table) and _gathers(table) for table in tables)
        rows = self._types() if plain else None
        if rows is not None:
            ids = None if self.token_type is None else token_type_ids
            x_TC = x_TC + (rows[0] if ids is None else few_rows(ids, rows))
        elif self.token_type is not None:
            zero = input_ids.new_zeros(1)
            x_TC = x_TC + self.token_type(zero if token_type_ids is None else token_type_ids)
        if self.position is not None:
            x_TC = x_TC + self.position(position_ids)
        if self.task is not None and rows is None:
            x_TC = x_TC + self.task(input_ids.new_zeros(1))
        if self.norm is not None:
            x_TC, _ = called(self.norm, backend, x_TC, None)
        return x_TC

    def _types(self) -> Tensor | None:
        """Rows that tokens are given by their types, with the task's in each, which is one for all
        tokens: one row where there are no types, None where there is neither."""
        types = None if self.token_type is None else self.token_type.weight
        if self.task is None:
            return types
        return self.task.weight[:1] if types is None else types + self.task.weight[:1]

    def _plain(self) -> bool:
        """Whether each module is torch's own or ours, and its call nothing but its formula."""
        modules = (self.word, self.token_type, self.position, self.task, self.norm)
        return self.scale is None and all(_untouched(m) for m in modules if m is not None)


def _untouched(module: nn.Module) -> bool:
    """Not another in its place, without hooks, not given another `forward`, call or weight."""
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return False  # which is written into the table at a call
    hooks = module._forward_hooks or module._forward_pre_hooks or _has_any_global_hook()
    own = type(module) in (nn.Embedding, Norm) and type(module.weight) is nn.Parameter
    own = own and type(module).forward is FORWARDS[type(module)]
    return own and not hooks and calls_forward(module)


def _gathers(table: nn.Embedding) -> bool:
    """Whether its gradient is a gather's and nothing else, which nobody listens to."""
    hooks = table._backward_hooks or table._backward_pre_hooks
    other = table.padding_idx is not None or table.sparse or table.scale_grad_by_freq
    return not (hooks or other)
