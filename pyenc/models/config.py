"""`EncoderConfig`: what one encoder is, for every family alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InputError
from ..ops import ACTIVATIONS
from .convolution import Convolution
from .disentangled import Disentangled
from .experts import Experts
from .position import POSITIONS, Fields, check_fields, check_position
from .rotary import Rotary

MOST_STEPS = 4096
"""Times that a text goes through a layer: where layers are few, a config says it alone, and no
tensor does."""

DROPOUTS = (
    "hidden_dropout", "attention_dropout", "embedding_dropout", "output_dropout", "final_dropout",
)  # fmt: skip
"""Fields of `EncoderConfig` that count in training alone."""


def check_eps(where: str, value: float) -> None:
    """What is added to a variance before its root is taken is a number and not negative."""
    if not 0 <= value < math.inf:
        raise InputError(f"{where}: norm_eps must be finite and not negative: {value}")


@dataclass(frozen=True)
class HeadConfig:
    """A masked-LM head: logits = W norm(activation(dense(x))) + b for every hidden state x, or
    W x + b."""

    transform: bool = True
    """Whether there are dense, activation and norm; the fields about them count only then."""
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dense_bias: bool = True
    norm_bias: bool = True
    bias: bool = True
    """Whether there is b."""
    tied: bool = True
    """Whether W is the word embeddings, one parameter with them, or a parameter of its own."""

    def __post_init__(self) -> None:
        check_eps("HeadConfig", self.norm_eps)
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"HeadConfig: unknown activation {self.activation!r}; known: {ACTIVATIONS}"
            )


@dataclass(frozen=True)
class EncoderConfig:
    """Shape and arithmetic of an `Encoder`; families differ in these fields and in tensor names.

    Post-norm: `x = norm(x + attention(x))`, `x = norm(x + feed_forward(x))`. Pre-norm
    (`norm_first`): `x = x + attention(norm(x))`, `x = x + feed_forward(norm(x))`, and a norm at the
    end.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    position: str
    """A bias of the scores by distance ("alibi", "relative"), a table added to the embeddings
    ("absolute"), a turn of queries and keys ("rotary"), products of words with distances
    ("disentangled"), or the name of a bias of one's own (`register_position`)."""
    max_length: int
    """Tokens a text may have by the checkpoint's word; ALiBi itself has no limit."""
    head_size: int | None = None
    """Channels of a head where they are not `hidden_size / num_heads`."""
    embedding_size: int | None = None
    """Channels of the tables that an encoder begins with, which a linear layer then maps to
    `hidden_size` (ALBERT's, ELECTRA's); None: `hidden_size`, and no such layer."""
    layer_order: tuple[int, ...] = ()
    """Which of the `num_layers` layers comes when, one as often as it is named (ALBERT has fewer
    than a text goes through); empty: each once, in their order."""
    num_kv_heads: int | None = None
    """Heads of keys and values where they are fewer than `num_heads`, of which so many following
    one another share each (Ainslie et al., GQA, arXiv 2305.13245)."""

    position_fields: Any = ()
    """Arguments of a registered variant, a mapping of names to numbers, strings, and lists of
    them; kept as pairs in the order of the names."""
    position_per_layer: bool = False
    """Whether each layer has a registered variant's parameters of its own; otherwise all share
    them."""
    num_positions: int = 0
    """Rows of the absolute position table; 0 without one."""
    padding_id: int | None = None
    """RoBERTa's way to count absolute positions: tokens other than this id, from the id plus one;
    the padding id itself stands at its own number. None: a token's column."""
    relative_buckets: int = 0
    """Rows of a relative position table (T5's buckets) that all layers add to their scores."""
    relative_max_distance: int = 128
    disentangled: Disentangled | None = None
    """Of position "disentangled"."""
    convolution: Convolution | None = None
    """Post-norm: of the embeddings, added to what the first layer gives, and normed."""
    rotary: Rotary | None = None
    """Of position "rotary"; beside a registered variant, both."""
    local_rotary: Rotary | None = None
    """Of layers with a window, where theirs is another."""
    window: int | None = None
    """Keys that a local layer sees on each side of a query; before it alone where `causal`."""
    local: tuple[bool, ...] = ()
    """Which layers see no more than `window`; empty: none."""
    causal: bool = False
    """Whether no token sees one after it, in any layer (a decoder's layers)."""
    scale: float | None = None
    """Factor of the scores; None: head_dim ** -0.5, of disentangled ones the root of their terms
    smaller."""
    log_length: int = 0
    """GTE's log-n scaling: queries times log(n) / log(log_length); 0 without it."""
    log_length_at_least_one: bool = False

    type_vocab_size: int = 0
    padding_row: int | None = None
    """Row of the word embeddings that tokens give no gradient (torch's `padding_idx`), for families
    whose padding is a token of every text as well."""
    embedding_scale: float | None = None
    """Factor of the word embeddings, rounded to their dtype (Gemma's sqrt(hidden_size))."""
    activation: str = "gelu"
    gated: bool = False
    gate_first: bool = True
    """Which half of a gated feed-forward's rows is activated."""
    experts: Experts | None = None
    """Of layers that have a mixture in the place of one feed-forward."""
    qkv_bias: bool = True
    out_bias: bool = True
    up_bias: bool = True
    down_bias: bool = True

    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-12
    norm_bias: bool = True
    norm_plus_one: bool = False
    """All norms multiply by one plus their weight, taken in float32 or wider (Gemma's)."""
    norm_first: bool = False
    """Pre-norm."""
    term_norm: bool = False
    """Pre-norm: what attention and feed-forward give is normed too, before it is added."""
    embedding_norm: bool = True
    first_norm: bool = True
    """Pre-norm: whether the first layer's attention has its norm (ModernBERT's has none)."""
    wide_residual: bool = False
    """Pre-norm in float16: the residual sums and the product before them in float32, for weights
    whose sums pass what float16 holds (T5)."""
    qk_norm: bool = False
    """A norm over the full width of q and of k, before the heads are split."""
    head_norm: bool = False
    """A norm of each head of q and of k, its weight the same for all of them, before rotary."""
    second_residual: bool = False
    """JinaBert qk-post-norm: x is added, and normalised, a second time after attention."""
    pooler: bool = False
    """tanh(dense(first token)), part of many checkpoints, used by few."""
    lm_head: HeadConfig | None = None
    """The masked-LM head, for `Encoder.token_logits`; no part of the hidden states."""
    no_lm_head: str = ""
    """Why there is none, for the error of `token_logits`."""

    hidden_dropout: float = 0.0
    """In training, of the embeddings, of what attention and feed-forward add, and of the last
    norm's result under pre-norm; the three `..._dropout` that are not None say otherwise."""
    attention_dropout: float = 0.0
    """Of the attention weights."""
    embedding_dropout: float | None = None
    output_dropout: float | None = None
    """Of what attention adds."""
    final_dropout: float | None = None
    feed_forward_dropout: Literal["inner", "outer", "both"] | None = None
    """Dropout of the activated values, of the result, or of both; None: inner where gated."""

    def __post_init__(self) -> None:
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
        for name in ("type_vocab_size", "num_positions", "relative_buckets"):
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
        if self.term_norm and not self.norm_first:
            raise InputError("EncoderConfig: term_norm goes with norm_first alone")

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

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads if self.head_size is None else self.head_size

    @property
    def embedding_dim(self) -> int:
        """Channels of the tables that an encoder begins with."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def depth(self) -> int:
        """How many layers a text goes through, one as often as it does."""
        return len(self.layer_order) or self.num_layers

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def drops(self) -> bool:
        """Whether there is dropout anywhere, in training."""
        return any(getattr(self, name) for name in DROPOUTS)

    def dropout_of(self, name: str) -> float:
        """A place's own dropout, or `hidden_dropout` where it has none."""
        own: float | None = getattr(self, name)
        return self.hidden_dropout if own is None else own

    @property
    def by_distance(self) -> bool:
        """Whether attention, or a convolution, depends on how far apart two tokens are, beside what
        rotary does."""
        own = self.position in ("alibi", "disentangled") or self.own_position
        own = own or self.convolution is not None
        return own or self.relative_buckets > 0 or any(self.local)

    @property
    def position_arguments(self) -> tuple[str, int, Fields]:
        """What `make_position` makes a registered variant's module of."""
        return self.position, self.num_heads, self.position_fields

    @property
    def own_position(self) -> bool:
        """Whether the position is a registered variant's."""
        return self.position not in POSITIONS
