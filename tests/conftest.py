"""What all tests share: where the golden checkpoints are, and the real one."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from examples import bundled
from tests.allocator import keep_memory
from tests.seeds import VARIABLE, seed

keep_memory()
# For the processes that tests start, beside which others run on the same cores: one thread where a
# test does not say how many, as in this one (`one_thread`), and none that spins while it waits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).parent
GOLDEN = ROOT / "golden"
CHECKPOINTS = sorted(p.name for p in GOLDEN.iterdir() if (p / "config.json").is_file())


@dataclass(frozen=True)
class Golden:
    """One golden checkpoint: its folder, and what the original code gave."""

    folder: Path
    io: dict[str, Tensor]
    meta: dict[str, Any]
    texts: list[str]

    def expected(self, batch: str, name: str) -> Tensor | None:
        """The float64 value where there is one, else the stored float32."""
        found = self.io.get(f"{batch}.{name}_f64", self.io.get(f"{batch}.{name}"))
        return None if found is None else found.double()

    def inputs(self, batch: str) -> tuple[Tensor, Tensor, Tensor | None]:
        types = self.io.get(f"{batch}.token_type_ids")
        return (
            self.io[f"{batch}.input_ids"].long(),
            self.io[f"{batch}.attention_mask"].long(),
            None if types is None else types.long(),
        )

    def skipped(self, batch: str) -> Tensor | int:
        """Leading tokens of each row that pooling leaves out, (B,), if there are any."""
        return self.io.get(f"{batch}.instruction_length", 0)

    @property
    def batches(self) -> list[str]:
        return list(self.meta["batches"])


def read_golden(name: str) -> Golden:
    folder = GOLDEN / name
    return Golden(
        folder,
        load_file(folder / "io.safetensors"),
        json.loads((folder / "io_meta.json").read_text("utf-8")),
        json.loads((folder / "texts.json").read_text("utf-8")),
    )


@pytest.fixture(scope="module", params=CHECKPOINTS)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Every golden checkpoint of the families that are served."""
    return read_golden(request.param)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2, where its package is installed."""
    return _real(bundled.minilm)


@pytest.fixture(scope="session")
def mpnet() -> Path:
    """The folder of the real all-mpnet-base-v2, where its packages are installed."""
    return _real(bundled.mpnet)


def _real(find: Callable[[], Path]) -> Path:
    try:
        return find()
    except bundled.WeightsError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture
def poison() -> Iterator[None]:
    """Memory that is not written shows: torch fills what it allocates with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert bool(torch.empty(4).isnan().all())
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny matrices gain nothing from a second thread and wait for it long."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random inputs differ from test to test and repeat from run to run."""
    torch.manual_seed(seed())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(f"seed {seed()}: {VARIABLE}={seed()} draws the same again")
    skipped = terminalreporter.stats.get("skipped", ())
    if missing() and any("tests/integrations" in report.nodeid for report in skipped):
        terminalreporter.write_line(
            f"not installed, so not tested: {', '.join(missing())}; make test-integrations "
            "installs what tests/integrations stand on"
        )


INTEGRATED = {
    "accelerate": "accelerate", "datasets": "datasets", "faiss": "faiss-cpu",
    "haystack": "haystack-ai", "langchain_core": "langchain-core",
    "llama_index": "llama-index-core", "mteb": "mteb", "peft": "peft", "ray": "ray",
    "sentence_transformers": "sentence-transformers", "sentencepiece": "sentencepiece",
    "transformers": "transformers",
}  # fmt: skip
"""What the extra `integrations` brings: as it is imported -> as it is installed."""

REQUIRED = "PYENC_REQUIRE_INTEGRATIONS"
"""In the environment: what is missing of these is a failure."""


def missing() -> list[str]:
    found = importlib.util.find_spec
    return sorted(package for name, package in INTEGRATED.items() if found(name) is None)


def pytest_sessionstart() -> None:
    if os.environ.get(REQUIRED) and missing():
        raise pytest.UsageError(f"{REQUIRED} is set, and not installed: {', '.join(missing())}")


LONGEST = (
    "test_packaging.py", "test_attention_emulated.py", "test_margins.py",
    "test_attention_memory.py", "test_compile.py",
)  # fmt: skip
"""Files that take minutes: begun first, so that no process works on one alone at the end."""


HANDFUL = frozenset({
    "bert_mean_h4", "deberta_v3_like_h4", "gte_base_like_h4", "jina_geglu_h4",
    "modernbert_embed_like_h2", "mosaic_base_h12", "qwen3_embed_like_h4", "t5_instructor_gated_h6",
})  # fmt: skip
"""One checkpoint of each kind of layer: what stands on other libraries is the same for them all, so
that for each of the others it is slow (`make test-integrations`); as is what a processor changes,
in a short look at the others (processors.py)."""


def _checkpoint_of(item: pytest.Item) -> str | None:
    """The one that a test is about by its parameters, if there is one."""
    given = getattr(item, "callspec", None)
    values = () if given is None else given.params.values()
    names = (value.split(":")[0] for value in values if isinstance(value, str))
    return next((name for name in names if name in CHECKPOINTS), None)


def _mark_all_but_a_handful(items: list[pytest.Item]) -> None:
    of: dict[str, dict[str, list[pytest.Item]]] = {}
    for item in items:
        if (name := _checkpoint_of(item)) is not None:
            of.setdefault(item.nodeid.split("[")[0], {}).setdefault(name, []).append(item)
    for by_name in of.values():
        kept = HANDFUL & by_name.keys() or {next(iter(by_name))}
        for name in by_name.keys() - kept:
            for item in by_name[name]:
                item.add_marker("slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; and marks: on what may come out otherwise on another processor
    (kernels, products, whole models), and on what stands on other libraries."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    _mark_all_but_a_handful([i for i in items if i.path.is_relative_to(ROOT / "integrations")])
    for item in items:
        if item.path.is_relative_to(ROOT / "integrations"):
            item.add_marker("integration")
        if any(item.path.is_relative_to(ROOT / name) for name in ("ops", "models")):
            item.add_marker("processor")
