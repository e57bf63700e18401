"""Which of a file's tensors each parameter of the `Encoder` is made of: one or more, laid one under
the other along their rows."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..config import EncoderConfig

Parts = dict[str, tuple[str, ...]]
"""Parameter of `Encoder` -> the file's tensors that stand in its rows, top to bottom."""

Names = frozenset[str]
"""A file's tensor names, prefix stripped."""

RowOrder = Callable[[EncoderConfig, str], "Tensor | None"]
"""Of an encoder and the name of a parameter: for each row of it, which row of the file's tensors
it is, as they lie one under the other, (rows,) int64. None: they are in the same order."""


def in_own_order(rows: Tensor, order: Tensor | None) -> Tensor:
    """A parameter of its tensors as the file has them, one under the other."""
    return rows if order is None else rows[order.to(rows.device)]


def in_file_order(parameter: Tensor, order: Tensor | None) -> Tensor:
    """The inverse of `in_own_order`."""
    if order is None:
        return parameter
    return parameter[order.argsort().to(parameter.device)]


def there(names: Names, layer: str) -> bool:
    """Is a layer in the file? Told by weight and bias, so that either is missed by its name."""
    return f"{layer}.weight" in names or f"{layer}.bias" in names


def both(parameter: str, *tensors: str) -> Parts:
    """Weight and bias of a layer, of one tensor each or of several, one below the other."""
    return {
        f"{parameter}.{w}": tuple(f"{tensor}.{w}" for tensor in tensors) for w in ("weight", "bias")
    }


def rows_of(config: EncoderConfig, parameter: str, rows: int, count: int) -> tuple[int, ...]:
    """How many rows of a parameter each of its `count` tensors has: of queries, keys and values
    as their heads are, of others as many each."""
    if count == 3 and ".attention.qkv." in parameter:
        unit = rows // (config.num_heads + 2 * config.kv_heads)
        return config.num_heads * unit, config.kv_heads * unit, config.kv_heads * unit
    return (rows // count,) * count


def embedding_parts(config: EncoderConfig) -> Parts:
    """Embeddings and pooler as all BERT descendants name them."""
    parts: Parts = {"embeddings.word.weight": ("embeddings.word_embeddings.weight",)}
    if config.type_vocab_size:
        parts["embeddings.token_type.weight"] = ("embeddings.token_type_embeddings.weight",)
    if config.position == "absolute":
        parts["embeddings.position.weight"] = ("embeddings.position_embeddings.weight",)
    if config.task_vocab_size:
        parts["embeddings.task.weight"] = ("embeddings.task_type_embeddings.weight",)
    parts |= both("embeddings.norm", "embeddings.LayerNorm")
    if config.pooler:
        parts |= both("pooler", "pooler.dense")
    return parts


def weights(parameter: str, *tensors: str) -> Parts:
    """As `both`, of a layer without bias."""
    return {f"{parameter}.weight": tuple(f"{tensor}.weight" for tensor in tensors)}


def separate_qkv(ours: str, theirs: str) -> Parts:
    """q, k, v stored apart, held as one matrix."""
    own = (f"{theirs}.attention.self.{x}" for x in ("query", "key", "value"))
    return both(f"{ours}.attention.qkv", *own)


def attention_output(ours: str, theirs: str) -> Parts:
    """The output projection and its norm."""
    return both(f"{ours}.attention.out", f"{theirs}.attention.output.dense") | both(
        f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm"
    )


def plain_feed_forward(ours: str, theirs: str) -> Parts:
    """BERT's two linear layers and norm."""
    return (
        both(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
        | both(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
        | both(f"{ours}.feed_forward_norm", f"{theirs}.output.LayerNorm")
    )


def gated_feed_forward(ours: str, theirs: str) -> Parts:
    """JinaBert's and MosaicBERT's gated layers: gate rows first, no bias."""
    return (
        {f"{ours}.feed_forward.up.weight": (f"{theirs}.mlp.gated_layers.weight",)}
        | both(f"{ours}.feed_forward.down", f"{theirs}.mlp.wo")
        | both(f"{ours}.feed_forward_norm", f"{theirs}.mlp.layernorm")
    )
