"""`EncoderConfig`: what one encoder is, for every family alike; its fields are in
`config_fields.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError
from ..ops import ACTIVATIONS
from .config_fields import DROPOUTS, ConfigFields
from .field_types import check_types
from .head_config import check_eps
from .position import check_fields, check_position

MOST_STEPS = 4096
"""Times that a text goes through a layer: where layers are few, a config says it alone, and no
tensor does."""


@dataclass(frozen=True)
class EncoderConfig(ConfigFields):
    """Shape and arithmetic of an `Encoder`; families differ in these fields and in tensor names.

    Post-norm: `x = norm(x + attention(x))`, `x = norm(x + feed_forward(x))`. Pre-norm
    (`norm_first`): `x = x + attention(norm(x))`, `x = x + feed_forward(norm(x))`, and a norm at the
    end.

    Raises:
        InputTypeError: a field is of another type than it says; a list is taken for a tuple.
        InputError: the fields make no encoder, or two of them do not go together.
    """

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise InputError(f"EncoderConfig: {name} must be positive: {getattr(self, name)}")
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise InputError(
                f"EncoderConfig: hidden_size {self.hidden_size} is not a multiple of num_heads "
                f"{self.num_heads}"
            )
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"EncoderConfig: unknown activation {self.activation!r}; known: {ACTIVATIONS}"
            )
        self._check_numbers()
        self._check_heads()
        self._check_experts()
        self._check_positions()
        self._check_disentangled()
        for name in DROPOUTS:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise InputError(f"EncoderConfig: {name} must be in [0, 1): {value}")

    def _check_numbers(self) -> None:
        for name in ("type_vocab_size", "task_vocab_size", "num_positions", "relative_buckets"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"EncoderConfig: {name} must not be negative: {getattr(self, name)}"
                )
        for name in ("head_size", "embedding_size", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"EncoderConfig: {name} must be positive: {value}")
        if self.padding_row is not None and not 0 <= self.padding_row < self.vocab_size:
            raise InputError(
                f"EncoderConfig: padding_row {self.padding_row} must be one of vocab_size "
                f"{self.vocab_size} rows"
            )
        check_eps("EncoderConfig", self.norm_eps)
        for name in ("scale", "embedding_scale"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError(f"EncoderConfig: {name} must be finite: {value}")
        if (cap := self.score_cap) is not None and not 1e-30 <= cap <= 1e30:
            # Beyond, float32 has no reciprocal of it to the last digit, or not the number itself.
            raise InputError(f"EncoderConfig: score_cap must be in [1e-30, 1e+30]: {cap}")

    def _check_heads(self) -> None:
        if self.num_kv_heads is not None and (
            self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads
        ):
            raise InputError(
                f"EncoderConfig: num_heads {self.num_heads} must be a multiple of num_kv_heads "
                f"{self.num_kv_heads}, which is at least 1"
            )
        if self.qk_norm and self.head_norm:
            raise InputError(
                "EncoderConfig: qk_norm and head_norm are two norms of the same, one of them served"
            )
        for name, plain in (("term_norm", False), ("first_norm", True), ("wide_residual", False)):
            if (value := getattr(self, name)) is not plain and not self.norm_first:
                raise InputError(f"EncoderConfig: {name} {value} goes with norm_first alone")

    def _check_experts(self) -> None:
        if self.experts is None:
            return
        if (said := len(self.experts.layers)) < self.num_layers:
            raise InputError(f"EncoderConfig: experts names {said} of {self.num_layers} layers")
        if self.gated or self.wide_residual or self.feed_forward_dropout in ("inner", "both"):
            raise InputError(
                "EncoderConfig: experts go with a feed-forward that is not gated, without "
                'wide_residual, and without dropout inside (feed_forward_dropout None or "outer")'
            )

    def _check_disentangled(self) -> None:
        if (kind := self.convolution) is not None:
            if self.norm_first:
                raise InputError("EncoderConfig: a convolution goes without norm_first")
            if self.hidden_size % kind.groups:
                raise InputError(
                    f"EncoderConfig: hidden_size {self.hidden_size} is not a multiple of the "
                    f"convolution's groups {kind.groups}"
                )
        if (self.position == "disentangled") != (self.disentangled is not None):
            raise InputError(
                'EncoderConfig: position "disentangled" needs the field disentangled, others none'
            )
        if self.disentangled is None:
            return
        strange = {
            "relative_buckets": self.relative_buckets, "local": any(self.local),
            "causal": self.causal, "log_length": self.log_length, "qk_norm": self.qk_norm,
            "head_norm": self.head_norm, "num_kv_heads": self.kv_heads != self.num_heads,
        }  # fmt: skip
        if found := [name for name, there in strange.items() if there]:
            raise InputError(
                f"EncoderConfig: {found[0]} {getattr(self, found[0])!r} is not served beside "
                'position "disentangled"'
            )

    def _check_positions(self) -> None:
        check_position(self.position)
        object.__setattr__(self, "position_fields", check_fields(self.position_fields))
        if not self.own_position and (self.position_fields or self.position_per_layer):
            raise InputError(
                "EncoderConfig: position_fields and position_per_layer go with a registered "
                f"variant, not with position {self.position!r}"
            )
        if self.position == "absolute" and self.num_positions < 1:
            raise InputError("EncoderConfig: absolute positions need num_positions")
        if self.position != "absolute" and self.num_positions:
            # Left over from another encoder it would cap the length of texts by no table at all.
            raise InputError(
                f'EncoderConfig: num_positions {self.num_positions} goes with position "absolute" '
                f"alone; beside {self.position!r} it must be 0"
            )
        adds = self.position not in ("absolute", "rotary") or self.relative_buckets
        if self.score_cap is not None and adds:
            raise InputError(
                f"EncoderConfig: score_cap {self.score_cap} is served beside positions that add "
                f'nothing to the scores ("absolute", "rotary"), not beside {self.position!r}'
                f"{' and relative_buckets' * bool(self.relative_buckets)}"
            )
        if self.padding_id is not None and self.padding_id < 0:
            raise InputError(f"EncoderConfig: padding_id must not be negative: {self.padding_id}")
        if not self.own_position and (self.position == "rotary") != (self.rotary is not None):
            raise InputError(
                'EncoderConfig: position "rotary" needs the field rotary, other built-in ones none'
            )
        if self.rotary is not None and self.head_dim % 2:
            raise InputError(f"EncoderConfig: rotary needs even heads, not {self.head_dim}")
        if self.rotary is not None and self.rotary.dynamic_factor and self.head_dim < 4:
            raise InputError(
                f"EncoderConfig: dynamic rotary scaling needs heads of 4, not {self.head_dim}"
            )
        if self.position == "relative" and self.relative_buckets < 1:
            raise InputError("EncoderConfig: relative positions need relative_buckets")
        if self.relative_buckets and (
            self.position == "alibi"
            or self.own_position
            or self.relative_buckets % 4
            or self.relative_max_distance <= self.relative_buckets // 4
        ):
            raise InputError(
                f"EncoderConfig: relative_buckets {self.relative_buckets} must be a multiple of 4, "
                f"with relative_max_distance {self.relative_max_distance} above a quarter of it, "
                "and not beside alibi or a registered variant"
            )
        if self.window is not None and not self.local:
            raise InputError(
                f"EncoderConfig: window {self.window} is of the layers that local names, one True "
                "or False a layer; it names none"
            )
        if self.local_rotary is not None and (self.rotary is None or not self.local):
            lacks = "local names none" if self.rotary else "rotary, of the others, is None"
            raise InputError(
                "EncoderConfig: local_rotary is of those layers that local names, one True or "
                f"False a layer, beside the rotary of the others; {lacks}"
            )
        if any(self.local) and (self.window is None or self.window < 0):
            raise InputError(f"EncoderConfig: local layers need a window >= 0, not {self.window}")
        if self.local and len(self.local) < self.num_layers:
            raise InputError(
                f"EncoderConfig: local names {len(self.local)} of {self.num_layers} layers"
            )
        if self.embedding_size is not None and self.lm_head and not self.lm_head.transform:
            raise InputError(
                "EncoderConfig: a lm_head without transform goes with no embedding_size"
            )
        if (steps := len(self.layer_order)) > MOST_STEPS:
            raise InputError(
                f"EncoderConfig: layer_order has {steps:,} steps; at most {MOST_STEPS:,}"
            )
        if any(not 0 <= i < self.num_layers for i in self.layer_order):
            raise InputError(
                f"EncoderConfig: layer_order must name layers from 0 to {self.num_layers - 1}"
            )
        if self.log_length and self.log_length < 2:
            raise InputError(f"EncoderConfig: log_length must be at least 2: {self.log_length}")
