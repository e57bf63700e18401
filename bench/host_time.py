"""What Python takes to launch a layer of an encoder, in microseconds, without a card.

    python bench/host_time.py [--family jina] [--tokens 512] [--texts 1] [--dtype bfloat16]
        [--architecture 9.0]

A layer of Jina-base's shape (MosaicBERT's but for the bias of its norms), a twelfth of an encoder's
forward of packed ids in inference_mode, op by op: linear for q, k and v, attention with ALiBi,
linear, add and norm, gated feed-forward, add and norm. Nothing is computed. --architecture takes
the entries of configs.json of its cards: with 9.0 product and activation of the gated feed-forward
are one kernel, else a linear and a kernel. --family takes another family's layers, of the same
width; of those the whole alone is timed.

Counted is the host's time up to the driver: every Python function of pyenc and torch, the choice of
a backend and of tile sizes, the dispatcher, Triton's binding of arguments and its launcher. Not
counted: the launch itself, in C (mocked_launch.py); torch's matrix products, in place of which what
they return is allocated; and what CUDA's allocator and device guard take in C. Allocations and
views are torch's own, of memory that is never touched.

Each round times the whole and every part, in turns; medians and spreads are told. The parts are
public ops and modules, called one by one with tensors that are there: who calls these alone pays
that, and an encoder may pay less.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    sys.path[:1] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
import triton  # noqa: E402

import pyenc  # noqa: E402
from bench.measure import clock, machine  # noqa: E402
from bench.mocked_launch import mocked, mocked_card  # noqa: E402
from pyenc.models.call import call_of  # noqa: E402
from pyenc.models.meta import on_meta  # noqa: E402
from pyenc.models.rotary import Rotary  # noqa: E402
from pyenc.ops import attention, gated_linear  # noqa: E402

CALLS = 100
"""Of a run, whose time is divided by them."""
LAYERS = 12
WHOLE, PARTS = "a layer", "parts"

BERT = {"position": "absolute", "num_positions": 8192}
PRE_NORM = {"norm_first": True, "embedding_norm": False}
QWEN3: dict[str, Any] = PRE_NORM | {
    "position": "rotary", "rotary": Rotary(1e6), "causal": True, "num_kv_heads": 4,
    "head_norm": True, "norm": "rms", "gated": True, "activation": "silu",
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "jina": {"position": "alibi", "gated": True, "up_bias": False},
    "bert": BERT,
    "mpnet": BERT | {"relative_buckets": 32},
    "long-minilm": {"position": "table_alibi"},
    "nomic": {"position": "rotary", "rotary": Rotary(1e4), "gated": True, "activation": "silu"},
    "t5": PRE_NORM | {"position": "relative", "relative_buckets": 32, "norm": "rms"},
    "modernbert": PRE_NORM | {
        "position": "rotary", "rotary": Rotary(160e3), "local_rotary": Rotary(1e4), "window": 64,
        "local": tuple(layer % 3 > 0 for layer in range(LAYERS)), "gated": True,
    },
    "jina-qk": {
        "position": "alibi", "gated": True, "up_bias": False, "qk_norm": True,
        "second_residual": True,
    },
    "qwen3": QWEN3,
    "gemma": QWEN3 | {
        "causal": False, "local_rotary": Rotary(1e4), "window": 256, "term_norm": True,
        "local": tuple(layer % 6 < 5 for layer in range(LAYERS)), "norm_plus_one": True,
        "activation": "gelu_tanh",
    },
}  # fmt: skip
"""What their layers are made of; biases of products, which cost the host nothing, as it comes."""


def runs(family: str, texts: int, tokens: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """The whole layer, and Jina's parts on what the layer gives them."""
    fields = FAMILIES[family]
    if "local" in fields:
        fields = fields | {"local": fields["local"][:LAYERS]}
    config = pyenc.EncoderConfig(
        vocab_size=8, hidden_size=768, num_layers=LAYERS, num_heads=12, intermediate_size=3072,
        max_length=8192, **fields,
    )  # fmt: skip
    with on_meta():
        encoder = pyenc.Encoder(config).to(dtype).eval()
    encoder.to_empty(device="cpu")
    layer: Any = encoder.layers[0]
    ids, bounds = torch.zeros(texts * tokens, dtype=torch.int64), torch.arange(texts + 1) * tokens

    def whole() -> None:
        encoder.forward_packed(ids, bounds, span=tokens, contiguous=True, checked=True)

    if family != "jina":
        return {WHOLE: whole}
    bias: Any = encoder._bias(ids.device)
    call = call_of(config, bias, len(ids), bounds, None, True, None, None, None)

    x, wide = (torch.empty(texts * tokens, size, dtype=dtype) for size in (768, 3072))
    mixer, up = layer.attention, layer.feed_forward.up
    heads = x.new_empty(3, texts * tokens, *mixer.heads).unbind(0)

    def linears() -> None:
        mixer.qkv(x, call.backend)
        mixer.out(x, call.backend)
        layer.feed_forward.down(wide, call.backend)

    def norms() -> None:
        layer.attention_norm(x, x, call.backend)
        layer.feed_forward_norm(x, x, call.backend)

    return {
        WHOLE: whole,
        "attention": lambda: attention(
            *heads, call.cu_seqlens, bias=call.bias, scale=mixer.scale, backend=call.backend
        ),
        "gated": lambda: gated_linear(x, up.weight, up.bias, "gelu", backend=call.backend),
        "norms": norms,
        "linears": linears,
    }


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of a call of each, in turns."""

    def repeated(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(CALLS):
                call()

        return run

    repeating = {name: repeated(call) for name, call in calls.items()}
    for run in repeating.values():
        run()
    seconds = clock.in_turns(repeating, repeats=rounds)
    layers = {name: CALLS * (LAYERS if name == WHOLE else 1) for name in seconds}
    return {
        name: clock.summary([each / layers[name] for each in times])
        for name, times in seconds.items()
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Microseconds of a layer, and of its parts as ops and modules that are called one by one."""
    lines = [f"{'':<12}{'us':>10}{'fastest':>10}{'spread':>9}"]
    for name, each in found.items():
        fastest, spread = min(each["seconds"]), each["spread"] or 0.0
        lines.append(f"{name:<12}{each['median'] * 1e6:>10.1f}{fastest * 1e6:>10.1f}{spread:>9.0%}")
    if len(found) > 1:
        parts = sum(each["median"] for name, each in found.items() if name != WHOLE)
        lines.append(f"{PARTS:<12}{parts * 1e6:>10.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=FAMILIES, default="jina")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--texts", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--architecture", metavar="MAJOR.MINOR", default="9.0")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    major, minor = map(int, options.architecture.split("."))
    here = machine.environment(("triton",))
    print(
        f"{here['cpu']}, {here['cores']} cores, load {here['load_average']}, {here['system']}, "
        f"torch {torch.__version__}, Triton {triton.__version__}; commit {here['commit']}"
    )
    print(
        f"{options.family}: {options.texts} of {options.tokens} tokens, {options.dtype}, "
        f"for {options.architecture}"
    )
    clock.keep_freed_memory()
    # What little torch computes (tables of angles) is not to wait for others of its threads.
    torch.set_num_threads(1)
    calls = runs(options.family, options.texts, options.tokens, getattr(torch, options.dtype))
    with mocked(), mocked_card((major, minor)), torch.inference_mode():
        found = measure(calls, options.rounds)
    print(table(found))


if __name__ == "__main__":
    main()
