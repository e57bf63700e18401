"""Operations of the registered ops, for `torch.utils.flop_counter.FlopCounterMode`.

    import pyenc.ops.flops  # from here on torch's counter knows them

Not imported with the package: torch's counter takes longer to import than torch. Counted is what
torch counts of its own ops, two operations a multiplication of the matrix products. Of attention
those are of all pairs of a query and a key of its sequence, whatever a window hides or `skip_eps`
leaves out (`computed_share` tells). Attention with a bias of one's own pair by pair (`block`,
`score`) is not counted, or not all of it.

Shapes: M, K, N of a product; T packed tokens, H heads, D head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from . import attention as _attention  # noqa: F401  what is registered here
from . import disentangled_attention as _disentangled  # noqa: F401
from . import experts as _experts  # noqa: F401
from . import gated_linear as _gated  # noqa: F401
from . import linear as _linear  # noqa: F401
from .linear import int8 as _int8  # noqa: F401

_ops: Any = torch.ops.pyenc


def _pairs(tokens: int, cu_seqlens: Tensor) -> int:
    """Of a query and a key of its sequence; where lengths have no values, of equal ones."""
    n_sequences = cu_seqlens.shape[0] - 1
    if isinstance(cu_seqlens, FakeTensor) or cu_seqlens.device.type == "meta":
        return tokens * tokens // max(n_sequences, 1)
    return int(cu_seqlens.long().diff().square().sum())


@register_flop_formula(_ops.product)
def _product_flops(a: tuple[int, ...], b: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


@register_flop_formula(
    [
        _ops.linear, _ops.linear_wide, _ops.linear_few_rows, _ops.linear_activated,
        _ops.int8_linear, _ops.gated_linear,
    ]
)  # fmt: skip
def _linear_flops(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x[:-1]) * weight[0] * weight[1]


@register_flop_formula(_ops.gated_linear_backward)
def _gated_backward_flops(
    _: Any, x: tuple[int, ...], weight: tuple[int, ...], *__: Any, **___: Any
) -> int:
    """The product is made once more."""
    return _linear_flops(x, weight)


@register_flop_formula(_ops.experts)
def _experts_flops(
    x: tuple[int, ...], chosen: tuple[int, ...], _: Any, up: tuple[int, ...], *__: Any, **___: Any
) -> int:
    """Two products for each of a token's experts."""
    return 2 * 2 * chosen[0] * chosen[1] * up[1] * up[2]


@register_flop_formula(_ops.experts_backward)
def _experts_backward_flops(
    _: Any, x: tuple[int, ...], chosen: tuple[int, ...], weights: Any, up: tuple[int, ...],
    *__: Any, **___: Any,
) -> int:  # fmt: skip
    """Two for each of the two, and the first once more."""
    return _experts_flops(x, chosen, weights, up) // 2 * 5


@register_flop_formula(_ops.attention, get_raw=True)
def _attention_flops(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *_: Any, **__: Any
) -> int:
    """q k^T and p v."""
    tokens, heads, head_dim = q.shape
    return 2 * 2 * heads * head_dim * _pairs(tokens, cu_seqlens)


@register_flop_formula(_ops.attention_backward, get_raw=True)
def _attention_backward_flops(
    _: Any, __: Any, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *___: Any, **____: Any
) -> int:
    """Scores once more, dp, dq, dk and dv."""
    return _attention_flops(q, k, v, cu_seqlens) // 2 * 5


@register_flop_formula(_ops.disentangled_attention, get_raw=True)
def _disentangled_flops(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None, queries: Tensor | None,
    cu_seqlens: Tensor, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """The same, and each token with every row of either table."""
    return _attention_flops(q, k, v, cu_seqlens) + _table_flops(q, keys, queries)


@register_flop_formula(_ops.disentangled_attention_backward, get_raw=True)
def _disentangled_backward_flops(
    _: Any, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None, queries: Tensor | None,
    cu_seqlens: Tensor, *__: Any, **___: Any,
) -> int:  # fmt: skip
    """As attention's; of tables once more, and the gradients of both factors."""
    pairs = _attention_flops(q, k, v, cu_seqlens) // 2 * 5
    return pairs + 3 * _table_flops(q, keys, queries)


def _table_flops(q: Tensor, keys: Tensor | None, queries: Tensor | None) -> int:
    rows = sum(0 if table is None else table.shape[0] for table in (keys, queries))
    return 2 * math.prod(q.shape) * rows
