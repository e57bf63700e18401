"""What linear layers in eight bits, and bfloat16, cost in vectors and gain in time.

python bench/int8_quality.py [--model minilm] [--count 2000] [--texts FILE] [--wide down]
                             [--precision int8] [--all-layers] [--out FILE]

Of real weights and real text: sentences of the Python language reference as `pydoc_data` carries
it, or a file's lines. Each text's vector in float32 against its vector in fewer bits (cosine), and
whether the nearest of the other texts is the same one, where all vectors are in fewer bits and
those searched are and the query is not. --wide leaves out more layers, by a part of their name,
and --all-layers leaves out none besides, not even those that `quantize="int8"` does.
`int8` leaves the rest in float32, `int8-bfloat16` in bfloat16. `--precision openvino-int8` and
`openvino-int8-bfloat16` hold OpenVINO's model quantised by nncf against the same vectors.
All texts are encoded in each precision in turns, three times: the medians of the turns' ratios to
float32, text to vector. `pyenc info` says what this measured (pyenc/cli/precisions.json).
"""

from __future__ import annotations

import argparse
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    sys.path[:1] = [str(ROOT), str(ROOT / "kernels")]

import pyenc  # noqa: E402
from bench.measure import machine, record  # noqa: E402
from bench.peers import openvino  # noqa: E402
from bench.peers.encoder_call import Texts  # noqa: E402
from bench.subjects import SUBJECTS  # noqa: E402
from pyenc.models.int8 import WIDE, quantize_layers, quantized_names  # noqa: E402

PRECISIONS = ("int8", "bfloat16", "int8-bfloat16")
PEERS = {"openvino-int8": "int8", "openvino-int8-bfloat16": "int8 and bf16"}
DEFAULT = PRECISIONS[:2]
TURNS = 3
SENTENCE = re.compile(r"[A-Z][^.!?]{28,300}[.!?]")


def sentences(count: int) -> list[str]:
    """That many different sentences of prose, in an order of their own and the same each time."""
    from pydoc_data.topics import topics

    found = set()
    for topic in topics.values():
        for paragraph in re.split(r"\n\s*\n", topic):
            for match in SENTENCE.findall(" ".join(paragraph.split())):
                if sum(c.isalpha() or c == " " for c in match) >= 0.85 * len(match):
                    found.add(match)
    if len(found) < count:
        raise SystemExit(f"there are {len(found)} sentences, not {count}: give --texts")
    texts = sorted(found)
    random.Random(0).shuffle(texts)
    return texts[:count]


def nearest(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(n,): the nearest other row of `vectors` by cosine, for each row of `queries`."""
    scores = queries @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    found: np.ndarray = scores.argmax(1)
    return found


def agreement(exact: np.ndarray, fewer: np.ndarray) -> dict[str, float]:
    """What vectors (n, C) in fewer bits keep of those in float32."""
    exact, fewer = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (exact, fewer))
    cosine = (exact * fewer).sum(1)
    right = nearest(exact, exact)
    return {
        "cosine_mean": float(cosine.mean()),
        "cosine_worst": float(cosine.min()),
        "top1": float((nearest(fewer, fewer) == right).mean()),
        "top1_of_exact_queries": float((nearest(exact, fewer) == right).mean()),
    }


def measure(options: argparse.Namespace, texts: Sequence[str]) -> dict[str, Any]:
    """Precision -> its `agreement`, printed as it comes."""
    precisions = options.precision or DEFAULT
    exact = loaded(options.model, "float32", ())
    others = {
        name: openvino.texts(SUBJECTS[options.model].source(), precision=PEERS[name])
        if name in PEERS
        else loaded(options.model, name, options.wide, options.all_layers)
        for name in precisions
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("float32", *others)}
    vectors: dict[str, np.ndarray] = {}
    for _ in range(TURNS):
        for name, encode in {"float32": exact, **others}.items():
            begun = time.perf_counter()
            vectors[name] = encode(list(texts))
            seconds[name].append(time.perf_counter() - begun)
    found = {}
    for name in others:
        kept = agreement(vectors["float32"], vectors[name])
        ratios = [a / b for a, b in zip(seconds["float32"], seconds[name], strict=True)]
        kept["speed"] = statistics.median(ratios)
        found[name] = kept
        figures = ", ".join(f"{what} {value:.4f}" for what, value in kept.items())
        print(f"{options.model}, {name}: {figures}", flush=True)
    return found


def loaded(model: str, precision: str, wide: Sequence[str], every: bool = False) -> Texts:
    """The model's `encode`, with its linear layers, or all of it, in fewer bits."""
    dtype = "float32" if precision == "int8" else precision.removeprefix("int8-")
    encoder = pyenc.load(SUBJECTS[model].source(), device="cpu", dtype=dtype)
    if precision.startswith("int8"):
        left = () if every else WIDE
        kept = [
            name
            for name in quantized_names(encoder.model, left)
            if any(part in name for part in wide)
        ]
        ends = tuple(name.removeprefix("layers.") for name in kept)
        quantize_layers(encoder.model, wide=(*left, *ends))
    return encoder.encode


def main() -> int:
    """Measure, print a line a precision, and write the result where `--out` says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    real = [name for name, subject in SUBJECTS.items() if subject.texts]
    parser.add_argument("--model", choices=real, default="minilm")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--wide", action="append", default=[])
    parser.add_argument("--all-layers", action="store_true")
    parser.add_argument("--precision", choices=(*PRECISIONS, *PEERS), action="append")
    parser.add_argument("--out")
    options = parser.parse_args()
    if SUBJECTS[options.model].source() is None:
        raise SystemExit(f"{options.model}: absent: {SUBJECTS[options.model].absent}")
    if options.texts is None:
        source = f"pydoc_data of Python {platform.python_version()}"
        texts = sentences(options.count)
    else:
        source = options.texts.name
        texts = options.texts.read_text("utf-8").splitlines()[: options.count]
    result: dict[str, Any] = {
        "op": "int8_quality", "environment": machine.environment(), "model": options.model,
        "texts": len(texts), "source": source,
        "wide": [*([] if options.all_layers else WIDE), *options.wide],
        "precisions": measure(options, texts),
    }  # fmt: skip
    if options.out:
        record.write_result(Path(options.out), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
