"""One encoder for every family: embeddings, post-norm layers of attention and feed-forward.

Read top to bottom. Shapes as suffixes: B rows, N padded length, T packed tokens, H heads,
D head dim, C channels, F feed-forward.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputAttributeError, InputError, InputTypeError
from ..forking import check_forked
from ..ops import ALiBi, add_layer_norm, alibi_slopes, attention, gated_linear, linear
from ..ops.attention.validation import check_skip_eps
from ..ops.backend import compiling, requested_backend
from .config import EncoderConfig
from .packing import check_packed, pack, places

CPU_ROWS = 1024
"""Tokens that a CPU takes through the feed-forward at a time when no gradient is wanted: the
(T, 2F) between its products is the largest tensor of all, and stays small at this size."""


SETTINGS = ("backend", "skip_eps")
"""What may be set of an encoder that is made."""


class Encoder(nn.Module):
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
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if config.pooler else None

    def __setattr__(self, name: str, value: Any) -> None:
        """As of any module; `backend` and `skip_eps` are looked at here, not at the next call.

        Raises:
            BackendError: no backend has that name.
            InputError: `skip_eps` is out of range, or a new attribute is called almost as one of
                the two, which would have no effect.
        """
        if name == "backend":
            requested_backend(value)
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
        packed = pack(input_ids, attention_mask, token_type_ids)
        hidden_TC = self.forward_packed(
            packed.input_ids,
            packed.cu_seqlens,
            positions=packed.positions,
            token_type_ids=packed.token_type_ids,
            contiguous=not packed.has_holes,
        )
        return packed.unpack(hidden_TC)

    def forward_packed(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        *,
        positions: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        contiguous: bool = False,
        checked: bool = False,
    ) -> Tensor:
        """Hidden states of packed sequences; the form without padding, and without graph breaks.

        Args:
            input_ids: (T,) integers.
            cu_seqlens: (B + 1,) int32 or int64, cumulative lengths.
            positions: (T,) integers, default 0..n-1 in each sequence.
            token_type_ids: (T,) integers, default zeros.
            contiguous: the caller's word that positions rise by one in each sequence, which lets
                relative biases take the faster path.
            checked: the caller's word that `check` has passed all of these, on the CPU say: to look
                at values on a GPU waits for it. What is out of range then goes unnoticed, or ends
                in an error that does not name it.

        Returns:
            (T, C).

        Raises:
            InputError: shapes disagree, or an id or a position is out of range.
        """
        check_forked()
        check_packed(input_ids, cu_seqlens, positions, token_type_ids, values=not checked)
        relative = None if positions is None or contiguous else positions
        if self.config.position == "absolute":
            # Only the table reads them: attention itself has no notion of distance here.
            relative = None
            positions = places(cu_seqlens, input_ids.shape[0]) if positions is None else positions
        if not checked:
            self._check_ranges(input_ids, positions, token_type_ids)
        bias = None
        if self.config.position == "alibi":
            # Made here, not kept as a buffer: buffers come back as garbage from meta devices.
            bias = ALiBi(
                alibi_slopes(self.config.num_heads).to(input_ids.device, non_blocking=True)
            )
        x_TC = self.embeddings(input_ids, positions, token_type_ids, self.backend)
        for layer in self.layers:
            x_TC = layer(x_TC, cu_seqlens, bias, relative, self.backend, self.skip_eps)
        return x_TC

    def check(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        *,
        positions: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> None:
        """Look at the values that `forward_packed` would be given; returns nothing.

        Raises:
            InputError: as there, naming what is wrong and where.
        """
        check_packed(input_ids, cu_seqlens, positions, token_type_ids)
        if self.config.position == "absolute" and positions is None:
            positions = places(cu_seqlens, input_ids.shape[0])
        self._check_ranges(input_ids, positions, token_type_ids)

    def pooler_output(self, first_BC: Tensor) -> Tensor:
        """tanh(dense(x)) of first tokens (B, C), for checkpoints that carry a pooler."""
        if self.pooler is None:
            raise InputError("this checkpoint has no pooler (pooler.dense.weight)")
        return torch.tanh(self.pooler(first_BC))

    def _check_ranges(
        self, input_ids: Tensor, positions: Tensor | None, token_type_ids: Tensor | None
    ) -> None:
        if compiling() or input_ids.numel() == 0:
            return
        limits = [("token id", input_ids, self.config.vocab_size)]
        if token_type_ids is not None:
            limits.append(("token type", token_type_ids, max(1, self.config.type_vocab_size)))
        if positions is not None and self.config.position == "absolute":
            limits.append(("position", positions, self.config.num_positions))
        for what, values, limit in limits:
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= limit:
                bad = low if low < 0 else high
                t = int((values == bad).nonzero()[0])
                raise InputError(
                    f"{what} {bad} at packed token {t} is out of range: this checkpoint has 0 to "
                    f"{limit - 1}"
                )


class Embeddings(nn.Module):
    """norm(word + token type + position)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type: nn.Embedding | None = None
        self.position: nn.Embedding | None = None
        if config.type_vocab_size:
            self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        if config.position == "absolute":
            self.position = nn.Embedding(config.num_positions, config.hidden_size)
        self.norm = Norm(config)
        self.dropout = config.hidden_dropout

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None,
        token_type_ids: Tensor | None,
        backend: str | None,
    ) -> Tensor:
        x_TC = self.word(input_ids)
        if self.token_type is not None:
            if token_type_ids is None:
                x_TC = x_TC + self.token_type.weight[0]
            else:
                x_TC = x_TC + self.token_type(token_type_ids)
        if self.position is not None:
            x_TC = x_TC + self.position(positions)
        return F.dropout(self.norm(x_TC, None, backend), self.dropout, self.training)


class Norm(nn.Module):
    """LayerNorm of a sum; the parameters of one `add_layer_norm`."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.eps = config.norm_eps

    def forward(self, x_TC: Tensor, residual_TC: Tensor | None, backend: str | None) -> Tensor:
        return add_layer_norm(x_TC, residual_TC, self.weight, self.bias, self.eps, backend=backend)[
            0
        ]


class Linear(nn.Linear):
    """The parameters of one `linear`."""

    def forward(  # type: ignore[override]
        self, x_TC: Tensor, backend: str | None, activation: str | None = None
    ) -> Tensor:
        return linear(x_TC, self.weight, self.bias, activation, backend=backend)


class Layer(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + feed_forward(x))."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = Norm(config)
        self.second_norm = Norm(config) if config.second_residual else None
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = Norm(config)
        self.dropout = config.hidden_dropout

    def forward(
        self,
        x_TC: Tensor,
        cu_seqlens: Tensor,
        bias: ALiBi | None,
        positions: Tensor | None,
        backend: str | None,
        skip_eps: float | None,
    ) -> Tensor:
        a_TC = self.attention(x_TC, cu_seqlens, bias, positions, backend, skip_eps)
        h_TC = self.attention_norm(F.dropout(a_TC, self.dropout, self.training), x_TC, backend)
        if self.second_norm is not None:
            h_TC = self.second_norm(x_TC, h_TC, backend)
        return self.feed_forward_norm(self.feed_forward(h_TC, backend), h_TC, backend)


class Attention(nn.Module):
    """q, k, v in one product; optional norms of q and k over their full width; heads; output."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.q_norm = Norm(config) if config.qk_norm else None
        self.k_norm = Norm(config) if config.qk_norm else None
        self.out = Linear(config.hidden_size, config.hidden_size)
        self.heads = (config.num_heads, config.head_dim)
        self.dropout = config.attention_dropout

    def forward(
        self,
        x_TC: Tensor,
        cu_seqlens: Tensor,
        bias: ALiBi | None,
        positions: Tensor | None,
        backend: str | None,
        skip_eps: float | None,
    ) -> Tensor:
        q_TC, k_TC, v_TC = self.qkv(x_TC, backend).chunk(3, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q_TC, k_TC = self.q_norm(q_TC, None, backend), self.k_norm(k_TC, None, backend)
        # Under autocast the norms answer in float32 and the product does not.
        q_THD, k_THD, v_THD = (
            y.to(v_TC.dtype).unflatten(-1, self.heads) for y in (q_TC, k_TC, v_TC)
        )
        out_THD = attention(
            q_THD,
            k_THD,
            v_THD,
            cu_seqlens,
            bias=bias,
            positions=positions,
            dropout_p=self.dropout if self.training else 0.0,
            skip_eps=skip_eps,
            backend=backend,
        )
        assert isinstance(out_THD, Tensor)
        return self.out(out_THD.flatten(1), backend)


class FeedForward(nn.Module):
    """down(activation(gate) * value), or down(activation(up)) where the family is not gated."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        rows = config.intermediate_size * (2 if config.gated else 1)
        self.up = Linear(config.hidden_size, rows, bias=config.up_bias)
        self.down = Linear(config.intermediate_size, config.hidden_size)
        self.activation = config.activation
        self.gated = config.gated
        self.gate_first = config.gate_first
        self.dropout = config.hidden_dropout

    def forward(self, x_TC: Tensor, backend: str | None) -> Tensor:
        whole = torch.is_grad_enabled() or compiling() or x_TC.device.type != "cpu"
        if whole or x_TC.shape[0] <= CPU_ROWS:
            return self.rows(x_TC, backend)
        return torch.cat([self.rows(part_TC, backend) for part_TC in x_TC.split(CPU_ROWS)])

    def rows(self, x_TC: Tensor, backend: str | None) -> Tensor:
        """The arithmetic; each token for itself."""
        if self.gated:
            m_TF = gated_linear(
                x_TC, self.up.weight, self.up.bias, self.activation, self.gate_first,
                backend=backend,
            )  # fmt: skip
            return self.down(F.dropout(m_TF, self.dropout, self.training), backend)
        m_TF = self.up(x_TC, backend, self.activation)
        return F.dropout(self.down(m_TF, backend), self.dropout, self.training)
