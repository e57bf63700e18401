"""What an `EncoderConfig` says, field by field, and what follows; `config.py` looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .convolution import Convolution
from .disentangled import Disentangled
from .experts import Experts
from .head_config import HeadConfig
from .position import POSITIONS, Fields
from .rotary import Rotary

DROPOUTS = (
    "hidden_dropout", "attention_dropout", "embedding_dropout", "output_dropout", "final_dropout",
)  # fmt: skip
"""Fields of `EncoderConfig` that count in training alone."""


@dataclass(frozen=True)
class ConfigFields:
    """The fields of `EncoderConfig`."""

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
    score_cap: float | None = None
    """Soft cap of the scaled scores, `score_cap * tanh(score / score_cap)`, before anything is
    hidden (Gemma 2); None: none. Beside positions that add nothing to the scores."""
    log_length: int = 0
    """GTE's log-n scaling: queries times log(n) / log(log_length); 0 without it."""
    log_length_at_least_one: bool = False

    type_vocab_size: int = 0
    task_vocab_size: int = 0
    """Rows of a table of tasks, of which every token is given the first (ERNIE)."""
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
