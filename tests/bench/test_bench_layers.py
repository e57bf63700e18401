"""Imports inside bench run one way and in no circle; every op has its one file everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_layers import circles, graph_of, within

ROOT = Path(__file__).resolve().parents[2]

# From the floor up: a module imports those of its own layer and of those before it.
LAYERS = (
    ("bench.measure",),
    (
        "bench.compare",
        "bench.attention_data",
        "bench.variant_data",
        "bench.bert_folder",
        "bench.workloads",
        "bench.show",
        "bench.subjects",
        "bench.machine_code",
    ),
    ("bench.peers",),
    ("bench.ops",),
    (
        "bench.check",
        "bench.chosen",
        "bench.tunables",
        "bench.ahead_of_time",
        "bench.aot_calls",
        "bench.aot_work",
        "bench.occupancy",
        "bench.processes",
        "bench.pruning",
        "bench.mocked_launch",
    ),
    (
        "bench.op",
        "bench.models",
        "bench.card_models",
        "bench.encoder_rows",
        "bench.long_attention",
        "bench.tune",
        "bench.tune_linear",
    ),
    ("bench.accelerate", "bench.variants"),
    (
        "bench.along_ratios",
        "bench.host_time",
        "bench.int8_quality",
        "bench.range_shares",
        "bench.training",
    ),
    ("bench.aot", "bench.plots"),
    ("bench.__main__", "bench.test_bench_ops"),
)


def sources() -> dict[str, tuple[str, bool]]:
    found = {}
    for path in sorted((ROOT / "bench").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = parts[-1] == "__init__"
        found[".".join(parts[:-1] if package else parts)] = (path.read_text("utf-8"), package)
    return found


def layer_of(module: str) -> int | None:
    for i, layer in enumerate(LAYERS):
        if any(within(module, each) for each in layer):
            return i
    return None


def violations(graph: dict[str, set[str]]) -> list[str]:
    found = []
    for module, imported in graph.items():
        own = layer_of(module)
        for other in imported:
            above = layer_of(other)
            if own is not None and above is not None and above > own:
                found.append(f"{module} imports {other}: from a layer above")
            if within(module, "bench.show") and above == own and not within(other, "bench.show"):
                found.append(f"{module} imports {other}: results are shown from their JSON alone")
    return found


def test_imports_run_one_way() -> None:
    graph = graph_of(sources())
    assert len(graph) > 30
    assert not violations(graph)


def test_no_circle() -> None:
    assert not circles(graph_of(sources()))


def test_every_module_has_a_layer() -> None:
    lost = [module for module in sources() if layer_of(module) is None and module != "bench"]
    assert not lost, f"give them a place in LAYERS: {lost}"


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("bench.measure.x", "from bench.compare import Case", "above"),
        ("bench.peers.x", "def f():\n    from bench import op", "above"),
        ("bench.show.x", "from bench.compare import Case", "JSON alone"),
        ("bench.ops.x", "from bench.check import Checks", "above"),
    ],
)
def test_the_check_finds(module: str, source: str, fault: str) -> None:
    house = sources() | {module: (source, False)}
    (found,) = violations(graph_of(house))
    assert fault in found


def test_a_circle_is_found() -> None:
    house = sources()
    name = "bench.measure.machine"
    house[name] = (house[name][0] + "\nfrom .ceilings import ceilings", False)
    assert circles(graph_of(house)) == [{name, "bench.measure.ceilings"}]


def test_an_op_is_named_alike_everywhere() -> None:
    """A folder in pyenc/ops is a file in bench/ops, and the other way round."""
    there = {path.parent.name for path in (ROOT / "pyenc" / "ops").glob("*/__init__.py")}
    timed = {path.stem for path in (ROOT / "bench" / "ops").glob("[!_]*.py")}
    assert timed == there
