"""`pyenc verify --model-card`: the scores that a card publishes, beside ours on the data here."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .serving import attention_backend, encode_options, load_encoder
from .streams import printing

if TYPE_CHECKING:
    from ..integrations.mteb import CardResult, NotRun, Rerun

TOLERANCE = 1e-3
"""Of scores up to 1: a tenth of a point of 100. Cards are rounded, and were computed with other
versions of everything."""


def run(args: argparse.Namespace) -> int:
    """The command: 0 where all that was run is within the tolerance, 1 where something is not.

    Raises:
        InputError: options that do not go together, no readable card, or one of which nothing could
            be run.
        MissingPackageError: mteb is not installed.
    """
    for name, value in (("--texts", args.texts), ("--against", args.against)):
        if value is not None:
            raise InputError(f"--model-card runs the texts of its tasks: it goes without {name}")
    # Imported here: it stands on mteb, which takes its time.
    from ..integrations import mteb

    results = mteb.read_card(args.model_card)
    encoder = load_encoder(args)
    server = attention_backend(encoder)
    options = {**encode_options(args), "batch_tokens": args.batch_tokens}
    options = {name: value for name, value in options.items() if value is not None}
    scored = mteb.PyencEncoder(encoder, encode_kwargs=options)
    allowed = TOLERANCE if args.tolerance is None else args.tolerance
    counts: Counter[str] = Counter()
    with printing():
        dtype = str(encoder.model.dtype).removeprefix("torch.")
        print(f"{args.model} on {encoder.device} in {dtype}, attention by {server}")
        print(f"against the card {args.model_card}: {len(results)} results")
        print(f"{'card':>9} {'ours':>9} {'ours - card':>11}")
    for outcome in mteb.rerun(scored, results):
        with printing():
            if isinstance(outcome, mteb.NotRun):
                counts["not run"] += 1
                print(f"{_stated(outcome):>9} {'-':>9} {'-':>11}  {_place(outcome.result)}: "
                      f"not run: {outcome.why}")  # fmt: skip
                continue
            # Written so that NaN fails.
            good = abs(outcome.largest[1]) <= allowed
            counts["within" if good else "off"] += 1
            for line in _lines(outcome, good):
                print(line)
    ran = counts["within"] + counts["off"]
    if not ran:
        raise InputError(f"{args.model_card}: none of its {len(results)} results could be run")
    with printing():
        print(
            f"{ran} of {len(results)} results run, {counts['off']} of them off by more than "
            f"{allowed:g} of 1"
        )
        print("ok: within the tolerance" if not counts["off"] else "FAILED: see the lines above")
    return 1 if counts["off"] else 0


def _lines(outcome: Rerun, good: bool) -> list[str]:
    card, ours = outcome.compared[outcome.main]
    line = f"{card:>9.4f} {ours:>9.4f} {ours - card:>+11.4f}  {_place(outcome.result)}, "
    line += outcome.main
    name, off = outcome.largest
    if len(outcome.compared) > 1:
        shown = "NaN" if math.isnan(off) else f"{off * outcome.unit:+.4f}"
        line += f"; of {len(outcome.compared)} metrics {name} is furthest off, by {shown}"
    lines = [line + ("" if good else "  OFF")]
    indent = " " * 33
    if outcome.revision is not None:
        lines.append(
            f"{indent}data at revision {outcome.revision}; the card's were at "
            f"{outcome.result.revision}"
        )
    if outcome.left_out:
        more = len(outcome.left_out) - 5
        tail = f" and {more} more" if more > 0 else ""
        lines.append(
            f"{indent}not compared, no such score here or no number there: "
            f"{', '.join(outcome.left_out[:5])}{tail}"
        )
    return lines


def _stated(outcome: NotRun) -> str:
    metrics: Any = outcome.result.metrics
    value = metrics.get("main_score", next(iter(metrics.values()), None))
    return "-" if value is None else f"{value:.4f}"


def _place(result: CardResult) -> str:
    subset = f" ({result.subset})" if result.subset else ""
    return f"{result.task}{subset}{' ' + result.split if result.split else ''}"
