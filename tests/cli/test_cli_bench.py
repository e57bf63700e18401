"""`pyenc bench`: finding the programs, one parser for all of them, and one real run of an op."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import Cli, python

from pyenc.cli import bench
from pyenc.cli.arguments import parse
from pyenc.cli.bench_options import BESIDES, words

MAIN = """
import json, sys
with open({log!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit({statuses}.get(sys.argv[1], 0))
"""
OPS = ("norm", "rotary")
EVERY = (*OPS, *BESIDES)
Calls = Callable[[], list[list[str]]]


@pytest.fixture
def status() -> dict[str, int]:
    """By op, of the stubs; 0 without an entry."""
    return {}


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: dict[str, int]) -> Calls:
    """Programs that write down how they were called; the returned function reads it."""
    log = tmp_path / "log"
    (tmp_path / "bench" / "ops").mkdir(parents=True)
    (tmp_path / "bench" / "ops" / "__init__.py").touch()
    for op in EVERY:
        folder = tmp_path / "bench" / ("ops" if op in OPS else "")
        (folder / f"{op}.py").write_text(f'"""A stub of {op}.\n\nMore.\n"""\n')
    # Two of one length, written within a second, are one to whoever keeps what it compiled.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    start = bench._command

    def command(given: list[str]) -> list[str]:
        main = MAIN.format(log=str(log), statuses=repr(status))
        (tmp_path / "bench" / "__main__.py").write_text(main)
        return start(given)

    monkeypatch.setattr(bench, "_command", command)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("argv", ["", "--list"])
def test_without_an_op_they_are_listed(cli: Cli, stubs: object, argv: str) -> None:
    said = cli("bench", *argv.split())
    assert said.status == 0
    assert [line.split()[0] for line in said.out.splitlines()] == [*EVERY, "all"]
    assert "A stub of norm." in said.out
    assert "More" not in said.out


# Every option, and what only some programs have.
OF_ALL = (
    "--dtype=float32", "--dtype=float32 --dtype=bfloat16", "--quick", "--cases=*x*",
    "--cases='a b' --cases=c", "--no-plot", "--no-memory", "--list",
    "--quick --no-memory --list --dtype=float16 --cases=y --no-plot",
)  # fmt: skip
OF_SOME = {
    "--device=cuda": ("norm", "rotary", "models", "tune", "all"), "--device=cpu": (*EVERY, "all"),
    "--device=cpu --write": ("tune",),
    "--out=x.json": EVERY, "--plot": ("norm", "rotary", "models", "variants", "all"),
    "--plot --quick --out=x.json": ("norm", "rotary", "models", "variants"),
    "--warm": ("norm", "rotary", "tune", "all"), "--long": ("models",),
    "--architecture=sm_90": ("tune",),
    "--kernel=k": ("tune",), "--kernel=k --shape=64x512": ("tune",), "--write": ("tune",),
}  # fmt: skip


@pytest.mark.parametrize("option", [*OF_ALL, *OF_SOME])
@pytest.mark.parametrize("op", EVERY)
def test_an_option_is_served_or_refused_once(
    cli: Cli, stubs: Calls, monkeypatch: pytest.MonkeyPatch, op: str, option: str
) -> None:
    """The programs are handed what the same parser reads back to the same."""
    handed: list[list[str]] = []
    monkeypatch.setattr(bench, "_start", lambda given: handed.append(given) or 0)
    argv = [op, *shlex.split(option)]
    said = cli("bench", *argv)
    if op not in OF_SOME.get(option, EVERY):
        assert said.status == 2
        assert said.err.count("\n") == 1
        assert not handed
        have = [name for name in OF_SOME[option] if name in ("norm", "tune", "models")]
        assert any(name in said.err for name in have)
        return
    assert said.status == 0, said.err
    (given,) = handed
    assert parse(["bench", *given]) == parse(["bench", *argv])
    assert words(parse(["bench", *given])) == given


@pytest.mark.parametrize("option", [*OF_ALL, "--plot", "--device=cpu"])
def test_all_hands_an_option_to_all(
    cli: Cli, stubs: Calls, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    handed: list[list[str]] = []
    monkeypatch.setattr(bench, "_start", lambda given: handed.append(given) or 0)
    assert cli("bench", "all", *shlex.split(option)).status == 0
    assert [given[0] for given in handed] == ["norm", "rotary", "models"]
    for given in handed:
        assert "--among-all" in given
        wanted = {**vars(parse(["bench", given[0], *shlex.split(option)])), "among_all": True}
        assert vars(parse(["bench", *given])) == wanted


def test_arguments_reach_a_program(cli: Cli, stubs: Calls) -> None:
    argv = ["--device", "cuda", "--dtype", "float32", "--quick", "--no-plot", "--cases", "-x y"]
    assert cli("bench", "rotary", *argv[:-2], "--cases=-x y").status == 0
    assert cli("bench", "models", "--quick", "--", "--long").status == 0
    first, second = stubs()
    assert first[0] == "rotary"
    assert {"--device=cuda", "--dtype=float32", "--quick", "--no-plot", "--cases=-x y"} == set(
        first[1:]
    )
    assert second == ["models", "--quick", "--long"]


def test_all_goes_on_after_a_failure(cli: Cli, stubs: Calls, status: dict[str, int]) -> None:
    status["norm"] = 1
    assert cli("bench", "norm").status == 1
    assert cli("bench", "all", "--quick", "--dtype", "float32").status == 1
    assert [call[0] for call in stubs()] == ["norm", "norm", "rotary", "models"]


def test_all_runs_those_that_have_the_case(cli: Cli, stubs: Calls, status: dict[str, int]) -> None:
    status |= {"norm": bench.NO_SUCH_CASE, "models": bench.NO_SUCH_CASE}
    assert cli("bench", "all", "--cases", "x").status == 0
    status["rotary"] = 1
    assert cli("bench", "all", "--cases", "x").status == 1
    status["rotary"] = bench.NO_SUCH_CASE
    said = cli("bench", "all", "--cases", "x")
    assert said.status == 2
    assert (
        said.err == "pyenc: error: no program has such a case: pyenc bench all --list names them\n"
    )
    assert [call[0] for call in stubs()] == ["norm", "rotary", "models"] * 3


def test_a_card_is_warmed_up_for_the_ops(cli: Cli, stubs: Calls) -> None:
    assert cli("bench", "all", "--device", "cuda").status == 0
    calls = stubs()
    assert sorted(call[0] for call in calls[:2]) == ["norm", "rotary"]  # both at once
    assert all("--warm" in call for call in calls[:2])
    assert [call[0] for call in calls[2:]] == ["norm", "rotary", "models"]
    assert not any("--warm" in call for call in calls[2:])
    assert all("--device=cuda" in call for call in calls)
    said = cli("bench", "all", "--device", "cuda", "--warm")
    assert "models: left out" in said.out
    assert sorted(call[0] for call in stubs()[5:]) == ["norm", "rotary"]


def test_mistakes(fails: Callable[..., str], stubs: object) -> None:
    said = fails("bench", "norn")
    assert "did you mean norm?" in said
    assert "there are: norm, rotary, models, accelerate, variants, tune, all" in said
    assert "did you mean" not in fails("bench", "zzz")
    assert "--out names one file" in fails("bench", "all", "--out", "x.json")
    said = fails("bench", "variants", "--device", "cuda")
    assert "on the CPU alone" in said
    assert "norm, rotary, models, tune" in said
    assert "models has it" in fails("bench", "all", "--long")
    assert "models has it" in fails("bench", "norm", "--long")
    assert "tune has it" in fails("bench", "models", "--kernel", "k")
    assert "--quick writes none without --out" in fails("bench", "norm", "--quick", "--plot")
    assert "name an OP" in fails("bench", "--quick")
    assert "say which with --kernel" in fails("bench", "tune", "--shape", "64")
    assert "64x8192" in fails("bench", "tune", "--kernel", "k", "--shape", "64x")
    assert "int8" in fails("bench", "norm", "--dtype", "int8")
    assert "give one OP, or all" in fails("bench", "norm", "rotary")
    assert "did you mean rotary?" in fails("bench", "rope")
    assert "no --cases beside it" in fails("bench", "models", "--long", "--cases", "x")
    assert "no --device cuda beside it" in fails("bench", "models", "--long", "--device", "cuda")


def test_without_the_repository(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    for argv in (["bench"], ["bench", "attention"], ["bench", "all"]):
        assert "the benchmarks are in the repository" in fails(*argv)


def test_a_quick_look(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From checking to the JSON file and its plot, on the smallest op."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a busy machine makes a second one wait
    out = tmp_path / "rotary.json"
    argv = ["bench", "rotary", "--quick", "--dtype", "float32", "--cases", "*T=512", "--out", out]
    assert cli(*argv).status == 0
    result = json.loads(out.read_text())
    (case,) = result["cases"]
    assert case["subject"].startswith("pyenc")
    assert case["peers"][case["subject"]]["ratio"] == 1.0
    assert all("median" in row or "error" in row for row in case["peers"].values())
    assert "cannot serve" in case["peers"]["torch, compiled rotate_half"]["error"]
    assert result["ceilings"]["copy_gbs"] > 0
    assert {"commit", "command", "cpu", "versions"} <= result["environment"].keys()


REAL = [
    ("rotary --list --dtype bfloat16", 0, "rotary T=8,192 forward+backward, bfloat16"),
    ("rotary --list --dtype float16", 2, "rotary is timed in float32, bfloat16"),
    ("rotary --list --cases zz", 2, "rotary has no case of that name; there are: rotary T=8,192"),
    ("rotary --list --cases zz --among-all", bench.NO_SUCH_CASE, "left out: --cases 'zz'"),
    ("rotary --list --cases backward --cases x", 0, "rotary T=8,192 forward+backward, float32"),
    ("rotary --device cuda:99", 2, "--device 'cuda:99'"),
    ("rotary --device abc", 2, "expected cpu, cuda or cuda:N"),
    ("models --list --dtype bfloat16", 0, "jina 8,192"),
    ("models --list --cases 'minilm*' --quick --no-plot", 0, "minilm 16 to 512"),
    ("models --device cuda:99", 2, "--device 'cuda:99'"),
    ("models --list --cases minilm --dtype float16", 2, "models has no case of that name"),
]
REAL += [
    ("tune --device cpu --list", 0, "256 tokens, 512 to 512, float16"),
    ("tune --device cpu --list --cases zz", 2, "tune has no case of that name; there are: 256"),
    ("tune --device cpu --kernel attention_forward", 2, "--kernel is of Triton kernels"),
    ("tune --device cpu --warm", 2, "--warm is of Triton kernels"),
    ("tune --architecture sm_90 --write", 2, "times nothing: no --write beside it"),
    ("tune --device cpu --architecture sm_90", 2, "times nothing: no --device beside it"),
    ("tune --device cpu --write --quick", 2, "an entry of choices.json is of all cases"),
]
if importlib.util.find_spec("triton") is None:
    REAL.append(("tune --list", 2, "tune needs triton, which is not installed"))
else:
    REAL += [
        ("tune --list --quick --no-memory --cases *768x512*", 0, "segment_mean_sum 768x512, bfl"),
        ("tune --list --dtype float32 --kernel gated_forward --shape 64", 0, "gated_forward 64, f"),
        ("tune --list --kernel gated_foward", 2, "did you mean gated_forward?"),
        ("tune --list --kernel attention_forward --shape 512", 2, "head dims go to 256"),
        ("tune --architecture sm_12", 2, "candidates are compiled for sm_80, sm_86, sm_89, sm_90"),
        ("tune", 2, "tuning needs a GPU"),
    ]


@pytest.fixture(scope="module")
def real() -> list[list[object]]:
    """(status, what was said) of each, all in one process: most of it is importing torch."""
    code = (
        "import contextlib, io, json, shlex, sys\n"
        "from bench.__main__ import main\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    said = io.StringIO()\n"
        "    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):\n"
        "        status = main(shlex.split(line))\n"
        "    print(json.dumps([status, said.getvalue()]))\n"
    )
    done = python("-c", code, json.dumps([line for line, _, _ in REAL]))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("at", range(len(REAL)), ids=[line for line, _, _ in REAL])
def test_the_real_programs(real: list[list[object]], at: int) -> None:
    _, status, words_of_it = REAL[at]
    assert real[at][0] == status, real[at]
    assert words_of_it in str(real[at][1])


def test_run_by_its_path_from_anywhere(tmp_path: Path) -> None:
    """A package named bench where the user stands is none of ours."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = subprocess.run(
        bench._command(["--list"]), cwd=tmp_path, env=bench._environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "segment_mean" in done.stdout


@pytest.mark.parametrize("program", [["attention"], ["all"]])
def test_a_reader_that_goes_away(program: list[str]) -> None:
    """`pyenc bench attention --list | head -0`: no word of an error, as of other commands."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pyenc", "bench", *program, "--list", "--dtype", "float32"],
        env=bench._environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(timeout=120)[1] == b""
    assert process.returncode == 141


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupted_program_leaves_no_trace() -> None:
    """Ctrl-C reaches `pyenc bench` and the program that it started: one line, of the former."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pyenc", "bench", "attention", "--quick", "--no-memory"],
        env=bench._environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline()  # it is at work
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=120)[1] == "pyenc: interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--devise", "--device"), ("--filter", "--cases"), ("-k", "--cases"), ("-o", "--out"),
        ("--dry-run", "--quick"), ("--no-memori", "--no-memory"), ("--kernels", "--kernel"),
        ("--long-", "--long"),
    ],
)  # fmt: skip
def test_an_unknown_option_names_the_nearest(
    fails: Callable[..., str], option: str, meant: str
) -> None:
    said = fails("bench", "attention", option, "x")
    assert f"did you mean {meant}?" in said
    assert "pyenc bench --help" in said
