"""One op's results as text: a line a peer."""

from __future__ import annotations

from typing import Any

from bench.measure.ceilings import Ceilings, gemm_for, peak_for

EXPLANATION = """\
x pyenc: how many times faster the first row is than this one (above 1: pyenc is faster).
spread: (slowest - fastest) / median of the runs. Above 10% the machine was not quiet.
of peak: share of what the unit that multiplies allows in this dtype, registers or AMX tiles; of
GEMM: of torch's matrix product in it; of copy: of a plain copy's bytes a second; all measured in
this run.
+ MB: memory beyond inputs and results at its highest, in a process of its own.
wall, replay: on a GPU, a call in a loop of them, with what Python takes to launch it, and replayed
as a CUDA graph; "ms" is the card's own time, its second-level cache overwritten before each run.
error, allowed: largest distance from the float64 oracle on the timed inputs, and the bound."""

WIDTH = 34


def case_lines(case: dict[str, Any], ceilings: Ceilings) -> str:
    """The block of one case."""
    columns = ["ms", "spread", "runs", "x pyenc"]
    launched = [
        key for key in ("wall", "replay") if any(key in row for row in case["peers"].values())
    ]
    columns += [f"{key} ms" for key in launched]
    columns += ["GFLOP/s", "of peak", "of GEMM"] if case["gflop"] else []
    columns += ["GB/s", "of copy"] if case["gigabytes"] else []
    rows = case["peers"].values()
    shown = [
        (name, key)
        for name, key in (("tiles", "tiles"), ("+ MB", "extra_mb"))
        if any(key in row for row in rows)
    ]
    columns += [name for name, _ in shown] + ["error", "allowed"]
    width = 10
    lines = ["", title(case), f"{'':{WIDTH}}" + "".join(f"{column:>{width}}" for column in columns)]
    for name, row in case["peers"].items():
        head = f"  {name:{WIDTH - 2}}"
        if "median" not in row:
            lines.append(f"{head}  {row['error']}")
            continue
        rates = shares(case, row["median"], ceilings)
        cells = [
            f"{row['median'] * 1e3:,.2f}",
            percent(row["spread"]),
            str(len(row["seconds"])),
            "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
            *("-" if key not in row else f"{row[key] * 1e3:,.3f}" for key in launched),
        ]
        if case["gflop"]:
            cells += [f"{rates['gflops']:,.1f}", percent(rates["of_peak"])]
            cells += [percent(rates["of_gemm"])]
        if case["gigabytes"]:
            cells += [f"{rates['gbs']:,.1f}", percent(rates["of_copy"])]
        for _, key in shown:
            value = row.get(key)
            form = percent(value) if key == "tiles" else f"{value or 0:,.0f}"
            cells.append("-" if value is None else form)
        cells += [f"{row['distance']:.0e}", f"{row['allowed']:.0e}"]
        wrong = "" if row["right"] else "  DISAGREES"
        lines.append(head + "".join(f"{cell:>{width}}" for cell in cells) + wrong)
    return "\n".join(lines)


def title(case: dict[str, Any]) -> str:
    work = [f"{case['gflop']:,.1f} GFLOP"] if case["gflop"] else []
    work += [f"{case['gigabytes']:.3f} GB"] if case["gigabytes"] else []
    return f"{case['name']}, {case['dtype']} ({', '.join(work)})"


def shares(case: dict[str, Any], seconds: float, ceilings: Ceilings) -> dict[str, float | None]:
    """Rates of one run of the case, and what part of the machine's own they are."""
    gflops, gbs = case["gflop"] / seconds, case["gigabytes"] / seconds
    return {
        "gflops": gflops,
        "of_peak": _part(gflops, peak_for(case["dtype"], ceilings)),
        "of_gemm": _part(gflops, gemm_for(case["dtype"], ceilings)),
        "gbs": gbs,
        "of_copy": _part(gbs, ceilings.get("copy_gbs")),
    }


def _part(rate: float, ceiling: float | None) -> float | None:
    return rate / ceiling if ceiling else None


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
