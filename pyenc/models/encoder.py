"""One encoder for every family: embeddings, then layers of attention and feed-forward.

They are in `embeddings.py`, and what layers are made of in `layers.py`. Shapes as suffixes: B rows,
N padded length, T packed tokens, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputAttributeError, InputTypeError
from ..forking import check_forked
from ..ops import ALiBi, RelativePositionBias
from ..ops.attention.bias import slopes_on
from ..ops.attention.own_object import OwnBias
from ..ops.attention.terms import Bias
from ..ops.attention.validation import check_skip_eps
from ..ops.backend import check_for_all, compiling
from ..ops.registered import unwatched
from ..ops.sharing import sharing
from . import row_counts
from .call import Call, call_of
from .config import EncoderConfig
from .distances import DistanceTable
from .embeddings import Embeddings
from .head import MaskedLMHead
from .layers import Layer, PreNormLayer
from .modules import Norm, called, untouched
from .neighbours import Neighbours
from .outputs import Outputs
from .packing import Packed, check_packed, check_ranges, count_from_padding, pack
from .places import places
from .position import check_apart, make_position
from .recompute import Recomputing
from .score_cap import Capped
from .straight import straight, straight_pre_norm

SETTINGS = ("backend", "skip_eps")
"""What may be set of an encoder that is made."""


class Encoder(Recomputing, Outputs, Capped):
    """Token ids in, hidden states out.

    Parameters are made as torch's own modules make them: random, in torch's default dtype and on
    its default device. `pyenc.load` depends on neither.

    Args:
        config: what to build.
        backend: name of the backend of every op, or None for the choice by device.
        skip_eps: see `pyenc.ops.attention`.
    """

    def __init__(
        self, config: EncoderConfig, *, backend: str | None = None, skip_eps: float | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.skip_eps = skip_eps
        self.embeddings = Embeddings(config)
        self.relative_bias: nn.Embedding | None = None
        if config.relative_buckets:
            self.relative_bias = nn.Embedding(config.relative_buckets, config.num_heads)
        self.position_bias: nn.Module | None = None
        if config.own_position and not config.position_per_layer:
            self.position_bias = make_position(*config.position_arguments)
        self.distances: DistanceTable | None = None
        if config.disentangled is not None:
            self.distances = DistanceTable(config, config.disentangled)
        kind = PreNormLayer if config.norm_first else Layer
        self.layers = nn.ModuleList(kind(config, i) for i in range(config.num_layers))
        if config.position_per_layer:
            check_apart(
                config.position, [cast(Any, layer).attention.position_bias for layer in self.layers]
            )
        self.neighbours: Neighbours | None = None
        if config.convolution is not None:
            self.neighbours = Neighbours(config, config.convolution)
        self.final_norm = Norm(config) if config.norm_first else None
        self.dropout = config.dropout_of("final_dropout")
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if config.pooler else None
        self.lm_head = MaskedLMHead(config, config.lm_head) if config.lm_head else None
        self.hold_soft_cap()

    def __setattr__(self, name: str, value: Any) -> None:
        """As of any module; `backend` and `skip_eps` are looked at here, not at the next call.

        Raises:
            BackendError: no backend of all ops has that name.
            InputError: `skip_eps` is out of range, or a new attribute is called almost as one of
                the two, which would have no effect.
        """
        if name == "backend":
            check_for_all(value, "backend=")
        elif name == "skip_eps":
            try:
                check_skip_eps(value)
            except TypeError as error:
                raise InputTypeError(
                    f"skip_eps must be None or in [0, 1), got {type(value).__name__} {value!r:.80}"
                ) from error
        elif not hasattr(self, name) and (near := get_close_matches(name, SETTINGS, 1, 0.75)):
            raise InputAttributeError(
                f"an Encoder has no attribute {name!r}; the nearest is {near[0]!r}"
            )
        super().__setattr__(name, value)

    @property
    def device(self) -> torch.device:
        return self.embeddings.word.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embeddings.word.weight.dtype

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of padded rows, as `last_hidden_state` of the published models.

        Args:
            input_ids: (B, N) integers.
            attention_mask: (B, N) zeros and ones, any arrangement; default all ones.
            token_type_ids: (B, N) integers, default zeros.

        Returns:
            (B, N, C); exact zeros where the mask is zero, so an all-padding row is all zeros.

        Raises:
            InputError: shapes disagree, or an id or a position is out of range.
        """
        check_forked()
        packed = pack(input_ids, attention_mask, token_type_ids, self.config.padding_id)
        return packed.unpack(self.hidden(packed))

    def hidden(self, packed: Packed, states: list[Tensor] | None = None) -> Tensor:
        """`forward_packed` of what `pyenc.models.packing.pack` made: (T, C)."""
        tokens, ids = packed.input_ids.shape[0], packed.input_ids
        if unwatched(ids) and row_counts.pays(self, tokens):
            packed = row_counts.filled_packed(packed, self.config.padding_id)
        hidden_TC = self.forward_packed(
            packed.input_ids,
            packed.cu_seqlens,
            positions=packed.positions,
            position_ids=packed.position_ids,
            token_type_ids=packed.token_type_ids,
            contiguous=not packed.has_holes,
            span=packed.shape[1],
            states=states,
        )
        if packed.input_ids is ids:
            return hidden_TC
        if states is not None:
            states[:] = [x_TC[:tokens] for x_TC in states]
        return hidden_TC[:tokens]

    def forward_packed(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        *,
        positions: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        contiguous: bool = False,
        span: int | None = None,
        checked: bool = False,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states of packed sequences; the form without padding, and without graph breaks.

        Args:
            input_ids: (T,) integers.
            cu_seqlens: (B + 1,) int32 or int64, cumulative lengths.
            positions: (T,) integers, columns of the padded row, default 0..n-1 in each sequence:
                what distances are differences of.
            position_ids: (T,) integers, rows of the absolute position table; default `positions`,
                or by the ids where the family counts from its padding id (`config.padding_id`).
            token_type_ids: (T,) integers, default zeros.
            contiguous: the caller's word that positions rise by one in each sequence, which lets
                relative biases take the faster path.
            span: the caller's word that positions of a sequence are less than this apart: what
                torch.compile has to know of a registered variant's, where there are any, and what
                keeps a GPU's lines of distances short.
            checked: the caller's word that `check` has passed all of these, on the CPU say: to look
                at values on a GPU waits for it. What is out of range then goes unnoticed, or ends
                in an error that does not name it.
            states: a list to put (T, C) states in: the embeddings and what each layer gives, the
                last one as it is returned.

        Returns:
            (T, C).

        Raises:
            InputError: shapes disagree, or an id or a position is out of range.
        """
        check_forked()
        check_packed(
            input_ids, cu_seqlens, positions, token_type_ids, position_ids, values=not checked
        )
        position_ids = self._position_ids(input_ids, cu_seqlens, positions, position_ids)
        if not checked:
            check_ranges(self.config, input_ids, position_ids, token_type_ids)
        call = call_of(
            self.config, self._bias(input_ids.device), input_ids.shape[0], cu_seqlens, positions,
            contiguous, span, self.backend, self.skip_eps,
        )  # fmt: skip
        x_TC = called(self.embeddings, self.backend, input_ids, position_ids, token_type_ids)
        if self.distances is not None:
            # Positions of one's own may be further apart than there are tokens; a graph is not to
            # be made again for every length.
            known = not compiling() and (call.span is not None or call.positions is None)
            reach = call.reach(input_ids.shape[0]) if known else None
            call = replace(call, distances=called(self.distances, self.backend, reach))
        if compiling():
            return self._through(x_TC, call, states)
        with sharing():
            return self._through(x_TC, call, states)

    def _through(self, x_TC: Tensor, call: Call, states: list[Tensor] | None) -> Tensor:
        """The layers and what comes after them."""
        again = self._recompute if self.training and torch.is_grad_enabled() else None
        order = self.config.layer_order
        modules = [self.layers[i] for i in order] if order else list(self.layers)
        layers = [
            partial(layer, call=call) if again is None else partial(again, i, layer, call=call)
            for i, layer in enumerate(modules)
        ]
        if self.final_norm is None:
            embeddings_TC = x_TC
            for step, (layer, module) in enumerate(zip(layers, modules, strict=True)):
                _put(states, x_TC)
                found = straight(module, x_TC, call)
                x_TC = layer(x_TC) if found is None else found
                if step == 0 and self.neighbours is not None:
                    given = (embeddings_TC, x_TC, call.cu_seqlens, call.positions)
                    x_TC = called(self.neighbours, self.backend, *given)
            _put(states, x_TC)
            return x_TC
        dtype = x_TC.dtype
        if self.config.wide_residual and dtype == torch.float16:
            x_TC = x_TC.float()
        term_TC: Tensor | None = None
        for layer, module in zip(layers, modules, strict=True):
            _put(states, x_TC, term_TC)
            made = straight_pre_norm(module, x_TC, term_TC, call)
            x_TC, term_TC = layer(x_TC, term_TC) if made is None else made
        x_TC, _ = called(self.final_norm, self.backend, x_TC, term_TC)
        x_TC = F.dropout(x_TC.to(dtype), self.dropout, self.training)
        _put(states, x_TC)
        return x_TC

    def check(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        *,
        positions: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> None:
        """Look at the values that `forward_packed` would be given; returns nothing.

        Raises:
            InputError: as there, naming what is wrong and where.
        """
        check_packed(input_ids, cu_seqlens, positions, token_type_ids, position_ids)
        position_ids = self._position_ids(input_ids, cu_seqlens, positions, position_ids)
        check_ranges(self.config, input_ids, position_ids, token_type_ids)

    def _position_ids(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        positions: Tensor | None,
        position_ids: Tensor | None,
    ) -> Tensor | None:
        """Rows of the absolute position table; None without one."""
        if self.config.position != "absolute" or position_ids is not None:
            return position_ids if self.config.position == "absolute" else None
        if self.config.padding_id is not None:
            return count_from_padding(input_ids, cu_seqlens, self.config.padding_id)
        return places(cu_seqlens, input_ids.shape[0]) if positions is None else positions

    def _bias(self, device: torch.device) -> Bias:
        """What every layer adds to its scores."""
        if self.config.position == "alibi":
            # Made here, not kept as a buffer: buffers come back as garbage from meta devices.
            return ALiBi(slopes_on(self.config.num_heads, device))
        if self.relative_bias is not None:
            table = self.relative_bias.weight
            if not untouched(self.relative_bias, nn.Embedding):
                rows = torch.arange(self.config.relative_buckets, device=device)
                table = self.relative_bias(rows)
            return RelativePositionBias(table, self.config.relative_max_distance)
        if self.config.score_cap is not None:
            return self.soft_cap_on(device)
        return cast(OwnBias | None, self.position_bias)


def _put(states: list[Tensor] | None, x_TC: Tensor, term_TC: Tensor | None = None) -> None:
    """Keep a state, where somebody wants them; under pre-norm with the term not yet added."""
    if states is not None:
        states.append(x_TC if term_TC is None else x_TC + term_TC)
