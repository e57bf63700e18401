"""Tokens a second of a training step, beside torch and sentence-transformers' trainer, on the CPU.

python bench/training.py [--case NAME] [--rounds 7] [--without compiled] [--profile] [--high]
                         [--out FILE]
python bench/training.py --memory [--without torch] [--out FILE]

A step is the gradient of mean((mean of a text's states - target)^2) and one of AdamW, fused, from
token ids; float32, no dropout. All programs take turns, and a ratio is of one round. MiniLM's
weights are the packaged ones, from strings tokenised once; Jina-small's shape is random. torch's
rows are padded, ALiBi a dense bias made once; it is run eager and compiled. Two of its steps and
ours are compared before anything is timed.

--high: all of them after `torch.set_float32_matmul_precision("high")`.

--memory: instead, what a step of Jina-small's shape on one long text takes beyond what stays, the
weights and AdamW's averages. Each length in a process of its own, after a step on a short text.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    sys.path[:1] = [str(ROOT), str(ROOT / "kernels")]

import pyenc  # noqa: E402
from bench import subjects, workloads  # noqa: E402
from bench.measure import clock, machine, memory, record  # noqa: E402
from bench.peers import sentence_training, torch_training  # noqa: E402
from examples import bundled  # noqa: E402
from pyenc.loading import load_checkpoint  # noqa: E402
from pyenc.ops import segment_mean  # noqa: E402

OURS = "pyenc"
RATE = 1e-5
NEAR = 1e-4
"""Between two programs' first losses, as a share."""
AS_FAR = 0.05
"""Between how far the first step takes them down, which is made of all gradients."""

Step = Callable[[], Tensor]


class Case(NamedTuple):
    name: str
    model: str
    lengths: tuple[int, ...]


CASES = (
    Case("minilm mixed", "minilm", tuple(round(16 * 16 ** (i / 23)) for i in range(24))),
    Case("jina 512", "jina", (512,) * 8),
    Case("jina 4096", "jina", (4096,)),
)
"""24 texts of 16 to 256 tokens, log-uniform; 8 of 512; one of 4,096."""

SHORT, DOUBLED = 16, (1024, 2048, 4096, 8192)
"""Tokens of the one text, of which memory is measured."""
FURTHEST = {"torch": 4096}
"""To where, for whom a dense bias grows with the square."""
LINEAR = 2.2
"""Times the memory that half as many tokens take, at the most: resident memory has slack."""


class PackedVectors(nn.Module):
    """Means of packed texts."""

    def __init__(self, encoder: pyenc.Encoder, rows: Sequence[Tensor]) -> None:
        super().__init__()
        self.encoder = encoder
        self.take(rows)

    def take(self, rows: Sequence[Tensor]) -> None:
        """From now on these."""
        self.ids = torch.cat(list(rows))
        self.bounds = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)

    def forward(self) -> Tensor:
        return segment_mean(self.encoder.forward_packed(self.ids, self.bounds), self.bounds)


def step_of(vectors: nn.Module, target: Tensor, *, compiled: bool = False) -> Step:
    parameters = [p for n, p in vectors.named_parameters() if ".pooler." not in n]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, fused=True)
    forward = torch.compile(vectors, dynamic=False) if compiled else vectors

    def step() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = (forward() - target).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def programs(
    encoder: pyenc.Encoder, rows: Sequence[Tensor], target: Tensor, without: Sequence[str]
) -> dict[str, Step]:
    """Ours and torch's, each with a copy of the weights, but for those that are left out."""
    made = {
        "torch": lambda: step_of(torch_training.PaddedVectors(encoder, rows), target),
        "torch compiled": lambda: step_of(
            torch_training.PaddedVectors(encoder, rows), target, compiled=True
        ),
        # Last, since it trains the encoder that the others copy.
        OURS: lambda: step_of(PackedVectors(encoder, rows), target),
    }
    return {n: make() for n, make in made.items() if not any(w in n for w in without)}


def disagreements(steps: dict[str, Step]) -> list[str]:
    """Whose first loss or step is not ours; these warm up, too."""
    losses = {name: [float(step()) for _ in range(2)] for name, step in steps.items()}
    first, second = losses[OURS]
    return [
        f"{name}: losses {a:.6g}, {b:.6g} beside {first:.6g}, {second:.6g}"
        for name, (a, b) in losses.items()
        if not (
            abs(a - first) <= NEAR * first
            and abs((a - b) - (first - second)) <= AS_FAR * abs(first - second)
        )
    ]


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Warm up, compare, take turns."""
    texts: list[str] = []
    if case.model == "minilm":
        folder = bundled.minilm()
        encoder = load_checkpoint(folder, device="cpu").encoder
        tokenizing = subjects.tokenizing(folder)
        texts = workloads.texts_of(case.lengths, tokenizing)
        rows = [torch.from_numpy(t.ids) for t in tokenizing.tokenizer(texts, max(case.lengths))]
    else:
        encoder = subjects.jina_small()
        rows = workloads.token_ids(case.lengths, encoder.config.vocab_size)
    torch.manual_seed(0)
    target = torch.randn(len(rows), encoder.config.hidden_size)
    steps = programs(encoder, rows, target, options.without)
    absent = []
    for name, ours in (("sentence-transformers", False), ("accelerated", True)):
        if texts and not any(w in name for w in options.without):
            try:
                steps[name] = sentence_training.step_of(folder, texts, target, ours, RATE)
            except ImportError as error:
                absent.append(f"{name}: {error}")
    wrong = disagreements(steps)
    rounds = [
        {name: clock.wall_clock(step) for name, step in steps.items()}
        for _ in range(options.rounds)
    ]
    tokens = sum(case.lengths)
    found: dict[str, Any] = {"name": case.name, "texts": len(rows), "tokens": tokens}
    found |= {"absent": absent, "wrong": wrong, "programs": {}}
    for name in steps:
        ratios = [r[name] / r[OURS] for r in rounds]
        seconds = [r[name] for r in rounds]
        found["programs"][name] = clock.summary(seconds) | {
            "tokens_a_second": tokens / statistics.median(seconds),
            "times_slower": [min(ratios), statistics.median(ratios), max(ratios)],
        }
    if options.profile:
        found["profile"] = profile(steps[OURS])
    return found


def profile(step: Step, rows: int = 14) -> list[list[Any]]:
    """Where a step's time goes: (op, share of all, calls), the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        step()
    events = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return [[e.key, e.self_cpu_time_total / whole, e.count] for e in events[:rows]]


def memories(without: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Of each program and length `taken`, printed on the way; and where ours is not linear."""
    found: dict[str, Any] = {}
    missed = []
    print("\nmemory of a step on one text, in MB; bytes a token; beside half as many")
    for name in (OURS, "torch"):
        if any(part in name for part in without):
            continue
        before = None
        for tokens in (n for n in DOUBLED if n <= FURTHEST.get(name, n)):
            task = {"program": name, "tokens": tokens}
            got = memory.in_child(["--memory"], task, script=Path(__file__))
            found.setdefault(name, []).append(task | got)
            mb = got.get("mb")
            if mb is None:
                missed.append(f"{name}, {tokens:,} tokens: {got.get('error', 'not measured')}")
                continue
            ratio = mb / before if before else None
            print(
                f"  {name:<6} {tokens:>5,} {mb:>8,.0f} {mb * 1e6 / tokens:>10,.0f}"
                + (f" {ratio:>6.2f} times" if ratio else ""),
                flush=True,
            )
            if name == OURS and ratio and ratio > LINEAR:
                missed.append(f"{name}, {tokens:,} tokens: {ratio:.2f} times that of half as many")
            before = mb
    return found, missed


def taken(program: str, tokens: int) -> dict[str, Any]:
    """In a process of its own: how far memory rises in a step, its text's making included."""
    encoder = subjects.jina_small()
    vocabulary, width = encoder.config.vocab_size, encoder.config.hidden_size
    kind = PackedVectors if program == OURS else torch_training.PaddedVectors
    vectors = kind(encoder, workloads.token_ids((SHORT,), vocabulary))
    del encoder
    step = step_of(vectors, torch.randn(1, width))
    step()  # AdamW's averages are there from now on
    # A step begins without gradients; what they leave is to serve nothing that is measured.
    vectors.zero_grad()

    def run() -> Tensor:
        vectors.take(workloads.token_ids((tokens,), vocabulary))
        return step()

    return {"mb": memory.growth_mb(run)}


def show(found: dict[str, Any]) -> None:
    print(f"\n{found['name']}: {found['texts']} texts, {found['tokens']} tokens")
    for name, result in found["programs"].items():
        low, middle, high = result["times_slower"]
        print(
            f"  {name:<22} {result['tokens_a_second']:>9,.0f} tokens a second, "
            f"{middle:.2f} ({low:.2f} to {high:.2f}) times our time"
        )
    for line in found["absent"]:
        print(f"  absent: {line}")
    for op, share, calls in found.get("profile", []):
        print(f"  {share:6.1%} {op} ({calls} calls)")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the result where `--out` says.

    Returns:
        0; 1 where a program's losses are not ours, or our memory is not linear.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", choices=[c.name for c in CASES])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--without", action="append", default=[], help="part of a program's name")
    parser.add_argument("--profile", action="store_true", help="where our step's time goes")
    parser.add_argument("--high", action="store_true", help="products of less than float32")
    parser.add_argument("--memory", action="store_true", help="of a step, in place of its time")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out")
    options = parser.parse_args(argv)
    if options.child:
        memory.report(taken(**memory.task()))
        return 0
    if OURS in options.without:
        parser.error(f"--without {OURS}: the others are compared with it")
    asked = "high" if options.high else "highest"
    torch.set_float32_matmul_precision(asked)
    start = time.perf_counter()
    environment = machine.environment()
    versions = ", ".join(f"{k} {v or 'absent'}" for k, v in environment["versions"].items())
    print(f"{environment['cpu']}, {environment['threads']} threads; {versions}")
    if (environment["load_average"] or 0) > 0.5:
        print(f"the machine is not quiet: load average {environment['load_average']}")
    result: dict[str, Any] = {"op": "training", "environment": environment, "cases": []}
    result["float32_matmul_precision"] = asked
    missed: list[str] = []
    if options.memory:
        result["memory"], missed = memories(options.without)
    for case in () if options.memory else CASES:
        if options.case and case.name not in options.case:
            continue
        found = measure(case, options)
        result["cases"].append(found)
        show(found)
        for line in found["wrong"]:
            print(f"DISAGREES: {line}", file=sys.stderr)
    result["seconds"] = time.perf_counter() - start
    if options.out:
        record.write_result(Path(options.out), result)
    for line in missed:
        print(f"MISSED: {line}", file=sys.stderr)
    return int(bool(missed) or any(found["wrong"] for found in result["cases"]))


if __name__ == "__main__":
    sys.exit(main())
