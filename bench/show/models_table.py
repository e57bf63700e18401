"""Results of whole encoders as text: one line a case and program, and Markdown for the README."""

from __future__ import annotations

from typing import Any


def explanation(result: dict[str, Any]) -> str:
    """Of the tables of a result, on a CPU or a card."""
    card = "gpu" in result["environment"]
    memory, gemm = ("the card's", "bf16") if card else ("resident", "fp32")
    return f"""\
x pyenc: how many times faster pyenc, in the same precision, is than this program (above 1: pyenc
is faster).
+ MB: how far {memory} memory rises above the loaded model, at its highest, in one call.
of GEMM: arithmetic done per second as a share of this machine's own {gemm} GEMM rate.
difference: largest difference of a number from pyenc's."""


def case_lines(case: dict[str, Any], gemm_gflops: float) -> str:
    """The block of one case."""
    title = (
        f"{case['model']} at {case['name']} tokens ({case['texts']} texts, "
        f"{case['tokens']:,} tokens, {case['gflop']:.0f} GFLOP)"
    )
    columns = ("", "tokens/s", "spread", "runs", "x pyenc", "of GEMM", "+ MB", "difference")
    rows = [[f"{columns[0]:34}", *(f"{column:>11}" for column in columns[1:])]]
    for name, peer in case["peers"].items():
        row = [f"  {name:32}"]
        if "median" not in peer:
            rows.append([*row, f"  {peer['error']}"])
            continue
        spread = "-" if peer["spread"] is None else f"{peer['spread']:.0%}"
        rate = case["gflop"] / peer["median"] / gemm_gflops
        cells = (
            f"{case['tokens'] / peer['median']:,.0f}",
            spread,
            str(len(peer["seconds"])),
            _times(peer.get("ratio")),
            f"{rate:.0%}",
            _megabytes(peer.get("peak_mb")),
            "-" if peer.get("difference") is None else f"{peer['difference']:.0e}",
        )
        rows.append([*row, *(f"{cell:>11}" for cell in cells)])
    for kind, best in case["best"].items():
        if best is not None:
            times = _times(best["ratio"])
            rows.append([f"  best of the others, {kind}: {best['peer']}, pyenc is {times} as fast"])
    return "\n".join(["", title, *("".join(row) for row in rows)])


def markdown(result: dict[str, Any]) -> str:
    """A table a model: tokens a second and peak memory of each program, its ratio to pyenc."""
    lines: list[str] = []
    # Older files have no titles.
    titles = {case["model"]: case["model"] for case in result["cases"]} | result.get("titles", {})
    for model, title in titles.items():
        cases = [case for case in result["cases"] if case["model"] == model]
        if not cases:
            continue
        names = list(cases[0]["peers"])
        lines += ["", f"{title}:", "", "| tokens a text | " + " | ".join(names) + " |"]
        lines.append("|---" + "|---:" * len(names) + "|")
        for case in cases:
            cells = [_cell(case, case["peers"][name]) for name in names]
            lines.append(f"| {case['name']} | " + " | ".join(cells) + " |")
    e = result["environment"]
    cpu = f"{e['cpu']}, {e['cores']} cores, {e['instruction_set']}"
    where = e.get("gpu", {}).get("name") or cpu
    versions = ", ".join(f"{k} {v or 'absent'}" for k, v in e["versions"].items())
    lines += [
        "",
        f"Tokens a second (times pyenc's speed-up), extra peak memory. {where}; {versions}; "
        + ("bf16." if "gpu" in e else "fp32."),
    ]
    return "\n".join(lines)


def _cell(case: dict[str, Any], peer: dict[str, Any]) -> str:
    if "median" not in peer:
        return str(peer["error"])
    cell = f"{case['tokens'] / peer['median']:,.0f}"
    if peer.get("ratio") is not None and peer["ratio"] != 1:
        cell += f" ({_times(peer['ratio'])})"
    if peer.get("peak_mb") is not None:
        cell += f", {_megabytes(peer['peak_mb'])} MB"
    return cell


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"x{ratio:.2f}"


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
