"""What depends on the processor, under every setting that makes another one of it.

python tests/processors.py [--short] [--seed N] [-- arguments of pytest]

Each setting is an environment variable that torch, oneDNN or the C++ kernels read once a process,
so each has a pytest of its own. What this machine lacks is left out, by name.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PATHS = [str(ROOT), str(ROOT / "kernels")]
sys.path[:0] = PATHS

ATEN, ONEDNN, PYENC = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "PYENC_CPU_ISA"
VALUES = {
    ATEN: ("default", "avx2", "avx512"),
    ONEDNN: ("AVX2", "AVX512_CORE", "AVX512_CORE_BF16", "AVX512_CORE_AMX"),
    PYENC: ("generic", "x86-64-v3", "x86-64-v4", "x86-64-v4-bf16", "x86-64-v4-amx"),
}
GOLDEN = "tests/models/test_golden.py"
LINEAR = "tests/ops/linear"
DEPENDS = {
    ATEN: ("tests/ops", "tests/models"),
    ONEDNN: (LINEAR, "tests/models"),
    PYENC: ("tests/ops", "tests/models"),
}
"""Where to look for tests that have the mark `processor`."""
HANDFUL = {
    ATEN: (f"{LINEAR}/test_linear.py::test_against_the_oracle", f"{GOLDEN}::test_all_batches"),
    ONEDNN: (
        f"{LINEAR}/test_linear.py::test_against_the_oracle",
        f"{LINEAR}/test_linear_choice.py::test_halves_are_widened_where_the_table_says_so",
        f"{GOLDEN}::test_all_batches",
    ),
    PYENC: (
        "tests/ops/attention/test_attention_cpu.py::test_backward",
        "tests/ops/norm/test_norm_cpu.py::test_layer_norm",
        "tests/ops/gated/test_gated_cpu.py::test_gated",
        f"{GOLDEN}::test_all_batches",
    ),
}
SEEDS = (20240607, 1, 2)


class Setting(NamedTuple):
    variable: str
    value: str
    lacks: str | None
    """Why this machine cannot, in a few words."""
    as_it_is: bool
    """Whether it is what serves without it, so that `make test` has run it."""

    def __str__(self) -> str:
        return f"{self.variable}={self.value}"


class Run(NamedTuple):
    setting: Setting
    seed: int

    def environment(self) -> dict[str, str]:
        others = {k: v for k, v in os.environ.items() if k not in VALUES}
        path = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])
        mine = {self.setting.variable: self.setting.value, "PYENC_TEST_SEED": str(self.seed)}
        return others | mine | {"PYTHONPATH": path}

    def arguments(self, short: bool, more: Sequence[str]) -> list[str]:
        which = HANDFUL if short else DEPENDS
        mark = ["-m", "processor and not slow"]
        # The oracle in float64 is torch's own arithmetic; of the activations one will do, and of
        # the checkpoints one of each kind of layer.
        checkpoints = " or ".join(("not test_all_batches", *sorted(one_of_each_kind())))
        some = f"not (float64 or silu or relu or gelu_tanh) and ({checkpoints})"
        left_out = ["-k", some] if short else []
        common = ["-q", "-p", "no:cacheprovider", *mark, *left_out]
        return [*common, *more, *which[self.setting.variable]]


def one_of_each_kind() -> frozenset[str]:
    from tests import conftest  # imports torch, which looks at the environment as it is then

    return conftest.HANDFUL


def settings() -> Iterator[Setting]:
    """All of them, as this machine has them."""
    for variable in VALUES:  # they are looked at below, as they are without
        os.environ.pop(variable, None)
    import torch

    from pyenc.ops import extension
    from pyenc.ops.linear.processor import ISAS, here

    capability = torch.backends.cpu.get_cpu_capability().lower()
    has = {ATEN: [value for value in VALUES[ATEN] if value in ("default", capability)]}
    if capability.startswith("avx512"):
        has[ATEN] = list(VALUES[ATEN])
    isas = list(ISAS)
    has[ONEDNN] = [
        value
        for value in VALUES[ONEDNN]
        if here().isa and isas.index(value.lower()) <= isas.index(here().isa)
    ]
    module = extension.load()
    has[PYENC] = [] if module is None else list(module.available_isas())
    what = {
        ATEN: f"torch has {capability}",
        ONEDNN: f"oneDNN has {here().isa or 'no x86'}",
        PYENC: extension.why_missing() or f"this processor or build has {', '.join(has[PYENC])}",
    }
    plain = {ATEN: capability, ONEDNN: here().isa.upper(), PYENC: extension.isa()}
    for variable, values in VALUES.items():
        for value in values:
            lacks = None if value in has[variable] else what[variable]
            yield Setting(variable, value, lacks, value == plain[variable])


def run(one: Run, short: bool, more: Sequence[str]) -> bool:
    """Run and report it; whether all passed."""
    command = [sys.executable, "-m", "pytest", *one.arguments(short, more)]
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=one.environment(), capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    name = f"{one.setting}, seed {one.seed}"
    if done.returncode == 0:
        print(f"passed {name}: {lines[-1].strip('= ')}", flush=True)
        return True
    again = f"{one.setting} PYENC_TEST_SEED={one.seed} python -m pytest"
    again += " " + " ".join(f"'{word}'" if " " in word else word for word in command[3:])
    print(done.stdout, done.stderr, sep="\n")
    print(f"FAILED {name}, after {time.perf_counter() - start:.0f} s; again: {again}", flush=True)
    return False


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a handful of tests, one seed each")
    parser.add_argument("--seed", type=int, action="append", help=f"default: {SEEDS}")
    parser.add_argument("more", nargs="*", help="arguments of pytest, after --")
    options = parser.parse_args(argv)
    seeds = options.seed or SEEDS
    runs = []
    for at, setting in enumerate(settings()):
        if setting.lacks:
            print(f"skipped {setting}: {setting.lacks}", flush=True)
        elif options.short and setting.as_it_is:
            print(f"skipped {setting}: what serves without it", flush=True)
        elif options.short:
            runs.append(Run(setting, seeds[at % len(seeds)]))
        else:
            runs += [Run(setting, seed) for seed in seeds]
    # A pytest of one process keeps a core busy.
    side_by_side = min(4, os.cpu_count() or 1) if options.short else 1
    with ThreadPoolExecutor(side_by_side) as pool:
        passed = list(pool.map(lambda one: run(one, options.short, options.more), runs))
    failed = [
        f"{one.setting}, seed {one.seed}" for one, ok in zip(runs, passed, strict=True) if not ok
    ]
    print(f"{len(runs)} runs, {len(failed)} failed{': ' + '; '.join(failed) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
