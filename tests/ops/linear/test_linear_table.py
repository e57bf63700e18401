"""The choice is a property of the processor: what it has, what is allowed, what the table says."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pyenc.ops import linear
from pyenc.ops.backend import explain
from pyenc.ops.linear import backend_table, choices, processor, product
from pyenc.ops.linear import onednn as linear_onednn
from pyenc.ops.linear import wide as linear_wide
from pyenc.ops.linear.processor import Processor
from tests.ops.linear.linear_support import DTYPES, layer, pin_table

ROOT = Path(__file__).resolve().parents[3]

SSE = "fpu sse sse2 ssse3 sse4_1 sse4_2"
AVX2 = f"{SSE} avx f16c fma avx2"
AVX512 = f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl"
ZEN4 = f"{AVX512} avx512_vnni avx512_bf16"
SAPPHIRE_RAPIDS = f"{ZEN4} avx_vnni avx512_fp16 amx_bf16 amx_tile amx_int8"
FLAGS = {
    "fpu sse2": "",
    SSE: "sse41",
    f"{SSE} avx": "avx",
    f"{SSE} avx avx2": "avx",  # fused multiply-add is masked
    AVX2: "avx2",
    f"{AVX2} avx_vnni": "avx2_vnni",
    f"{AVX2} avx_vnni avx_vnni_int8 avx_ne_convert": "avx2_vnni_2",
    f"{AVX2} avx512f avx512cd": "avx2",  # Knights Landing's part of AVX-512
    AVX512: "avx512_core",
    f"{AVX512} avx512_vnni": "avx512_core_vnni",
    ZEN4: "avx512_core_bf16",
    f"{ZEN4} avx512_fp16": "avx512_core_fp16",
    SAPPHIRE_RAPIDS: "avx512_core_amx",
    f"{SAPPHIRE_RAPIDS} amx_fp16": "avx512_core_amx_fp16",
}


def at(tmp_path: Path, flags: str, monkeypatch: pytest.MonkeyPatch, **more: str) -> Processor:
    """The processor that a machine with such a /proc/cpuinfo finds."""
    facts = {"processor": "0", "vendor_id": "GenuineIntel", "cpu family": "6", "model": "143"}
    lines = [f"{name}\t: {value}" for name, value in (facts | more | {"flags": flags}).items()]
    other = ["", "processor\t: 1", "vendor_id\t: another", ""]
    (tmp_path / "cpuinfo").write_text("\n".join(lines + other))
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
    return processor.here.__wrapped__()


LIMITED = {name: os.environ[name] for name in processor.LIMITS if name in os.environ}


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    processor.here()  # kept as this process has it, which oneDNN was told too
    for name in processor.LIMITS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("flags", "isa"), FLAGS.items())
def test_the_instruction_set(
    flags: str, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = at(tmp_path, flags, monkeypatch)
    assert (found.vendor, found.family, found.model, found.isa) == ("GenuineIntel", "6", "143", isa)
    assert found.torch == torch.backends.cpu.get_cpu_capability()
    # torch's words for the same.
    words = {"avx512f": "avx512_f", "avx512bw": "avx512_bw", "fma": "fma3"}
    torchs = {words.get(flag, flag): True for flag in flags.split()} | {"cpu_name": "x"}
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "nothing")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: torchs, raising=False)
    assert processor.here.__wrapped__() == Processor(isa=isa, torch=found.torch)


@pytest.mark.parametrize(
    ("capability", "isa"),
    [
        ("DEFAULT", "sse41"),
        ("AVX2", "avx2"),
        ("AVX512", "avx512_core"),
        ("AVX512_X", "avx512_core"),
    ],
)
def test_where_nothing_but_torch_tells(
    capability: str, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "nothing")
    monkeypatch.setattr(processor.platform, "machine", lambda: "AMD64")
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert processor.here.__wrapped__() == Processor(isa=isa, torch=capability)
    monkeypatch.setattr(processor.platform, "machine", lambda: "arm64")
    assert processor.here.__wrapped__().keys == ("default",)


@pytest.mark.parametrize(
    ("environment", "isa"),
    [
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "avx2"),
        ({"ONEDNN_MAX_CPU_ISA": "avx512_core_bf16"}, "avx512_core_bf16"),
        ({"DNNL_MAX_CPU_ISA": "SSE41"}, "sse41"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "SSE41"}, "avx2"),
        ({"ONEDNN_MAX_CPU_ISA": "", "DNNL_MAX_CPU_ISA": "SSE41"}, "sse41"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX_FP16"}, "avx512_core_amx"),
        ({"ONEDNN_MAX_CPU_ISA": "DEFAULT"}, "avx512_core_amx"),
        ({"ONEDNN_MAX_CPU_ISA": "ALL"}, "avx512_core_amx"),
        ({"ONEDNN_MAX_CPU_ISA": "nonsense"}, "avx512_core_amx"),
        ({}, "avx512_core_amx"),
    ],
)
def test_onednns_limits(
    environment: Mapping[str, str], isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert at(tmp_path, SAPPHIRE_RAPIDS, monkeypatch).isa == isa


def test_the_limit_is_the_one_that_oneDNN_keeps() -> None:
    """Its own words, in a process of its own: it reads the variable once."""
    if not (processor.here().isa and torch.backends.mkldnn.is_available()):
        pytest.skip("no oneDNN for x86 here")
    script = (
        "import torch; from pyenc.ops.linear import onednn, processor; "
        "print('ours', processor.here().isa); onednn.why_not(torch.float32)"
    )
    said = printed(start(script, ONEDNN_MAX_CPU_ISA="SSE41", ONEDNN_VERBOSE="1"))
    assert "ours sse41" in said
    assert "isa:Intel SSE4.1" in said


def test_keys_go_from_the_kind_to_the_classes() -> None:
    kind = Processor("AuthenticAMD", "25", "1", "avx2", "AVX2")
    assert kind.keys == (
        "AuthenticAMD 25 1, avx2, torch AVX2",
        *("AuthenticAMD 25, avx2", "AuthenticAMD, avx2", "avx2"),
        *("AuthenticAMD 25, avx", "AuthenticAMD, avx", "avx"),
        *("AuthenticAMD 25, sse41", "AuthenticAMD, sse41", "sse41", "default"),
    )
    assert Processor("AuthenticAMD", isa="sse41").keys == (
        *("AuthenticAMD, sse41", "sse41", "default"),
    )
    assert Processor(isa="sse41").keys == ("sse41", "default")
    assert Processor().keys == ("default",)
    # What was measured with other instructions allowed says nothing.
    for other in ("AVX2", "DEFAULT"):
        assert Processor("AuthenticAMD", "25", "1", "sse41", other).name not in kind.keys


INTEL, AMD = "GenuineIntel", "AuthenticAMD"


@pytest.mark.parametrize(
    ("vendor", "isa", "packed", "widened"),
    [
        ("", "", (), ()),
        (INTEL, "sse41", (), (torch.bfloat16, torch.float16)),
        (INTEL, "avx2", (), (torch.bfloat16, torch.float16)),
        (AMD, "avx2_vnni", (), (torch.bfloat16, torch.float16)),
        (INTEL, "avx2_vnni_2", (), ()),
        (INTEL, "avx512_core_vnni", (), (torch.float16,)),
        (AMD, "avx512_core", (torch.float32,), (torch.float16,)),
        (AMD, "avx512_core_bf16", (torch.float32,), (torch.float16,)),
        (INTEL, "avx512_core_bf16", (torch.bfloat16,), (torch.float16,)),
        (INTEL, "avx512_core_fp16", (torch.bfloat16,), ()),
        (INTEL, "avx512_core_amx", (torch.bfloat16,), ()),
        (INTEL, "avx512_core_amx_fp16", (torch.bfloat16,), ()),
    ],
)
def test_what_the_shipped_table_prefers(
    vendor: str,
    isa: str,
    packed: tuple[torch.dtype, ...],
    widened: tuple[torch.dtype, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a processor without an entry of its own."""
    kind = Processor(vendor, "0", "0", isa, "AVX2")
    pin_table(monkeypatch, choices.table(), kind)
    assert tuple(d for d in DTYPES if linear_onednn.not_preferred(d) is None) == packed
    assert tuple(d for d in DTYPES if linear_wide.preferred(d)) == widened
    assert not any(linear_onednn.fuses(d) for d in DTYPES)
    units = isa.startswith("avx512_core_amx")
    elsewhere = "onednn" if torch.float32 in packed else None
    assert product.preferred(torch.float32) == ("bf16x6" if units else elsewhere)
    monkeypatch.setattr(linear_onednn, "precision", lambda: "tf32")
    assert product.preferred(torch.float32) == ("bf16x3" if units else elsewhere)


def test_the_shipped_table() -> None:
    names = {str(dtype).removeprefix("torch.") for dtype in DTYPES}
    table = choices.table()
    vendors = ("", f"{INTEL}, ", f"{AMD}, ", f"{AMD} 25, ")
    classes = {f"{who}{isa}" for isa in processor.ISAS for who in vendors}
    assert table["default"] == {"source": "nothing is known of it: F.linear serves"}
    for key, entry in table.items():
        assert entry["source"]
        assert set(entry) <= {"source", *names}
        measured_here = key not in classes | {"default"}
        if measured_here:
            vendor_family_model, isa, capability = key.split(", ")
            assert len(vendor_family_model.split()) == 3
            assert isa in processor.ISAS
            assert capability.startswith("torch ")
            assert entry["source"].startswith("measured 20")
            assert set(entry) == {"source", *names}
        for name in names & set(entry):
            assert set(entry[name]) <= set(choices.WAYS)
            for gain in entry[name].values():
                assert gain is True or (isinstance(gain, float) and gain > 0)
                assert not (measured_here and gain is True)


def test_this_projects_processor() -> None:
    """What was measured on it decides, not the class."""
    kind = Processor(AMD, "25", "1", "avx2", "AVX2")
    for dtype in DTYPES:
        found = choices.lookup(choices.table(), kind, dtype)
        assert found.entry == kind.name
        assert found.prefers("wide") == (dtype != torch.float32)
        assert not found.prefers("onednn")
    found = choices.lookup(choices.table(), kind, torch.float32)
    assert found.why_not("onednn") == (
        f"choices.json has {found.gains['onednn']:.2f}x F.linear, needs 1.15x ({kind.name})"
    )


def test_a_processor_whose_float32_is_onednns() -> None:
    kind = Processor(AMD, "26", "2", "avx512_core_bf16", "AVX512")
    found = choices.lookup(choices.table(), kind, torch.float32)
    assert found.entry == kind.name
    assert found.prefers("onednn")
    assert found.prefers("unpacked")
    assert not found.prefers("gelu_fused")
    assert choices.lookup(choices.table(), kind, torch.float16).prefers("wide")


@pytest.mark.parametrize("model", ["17", "97"])
def test_a_family_whose_units_are_narrower_than_its_instructions(model: str) -> None:
    """AMD's family 25: what a pack gains in float32 is not what it costs in memory."""
    kind = Processor(AMD, "25", model, "avx512_core_bf16", "AVX512")
    found = choices.lookup(choices.table(), kind, torch.float32)
    assert found.entry == (kind.name if model == "17" else "AuthenticAMD 25, avx512_core")
    assert not found.prefers("onednn")
    assert not found.prefers("unpacked")
    assert found.prefers("forward")
    assert found.prefers("few_rows")
    assert choices.lookup(choices.table(), kind, torch.bfloat16).prefers("forward")


def test_the_first_entry_that_has_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Processor(INTEL, "6", "1", "avx512_core", "AVX512")
    table: dict[str, Any] = {
        "default": {"source": "last", "float16": {"wide": 3.0}},
        "avx2": {"source": "third", "bfloat16": {"wide": 3.0}, "float32": {"onednn": 3.0}},
        kind.name: {"source": "first", "float32": {}},
    }
    pin_table(monkeypatch, table, kind)
    found = {dtype: choices.choice(dtype) for dtype in (*DTYPES, torch.float64)}
    assert [each.entry for each in found.values()] == [kind.name, "avx2", "default", "default"]
    assert [each.source for each in found.values()][:3] == ["first", "third", "last"]
    assert not found[torch.float32].prefers("onednn")
    assert not any(found[torch.float64].prefers(way) for way in choices.WAYS)


def test_what_was_chosen_for_another_processor_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = choices.choice(torch.float16)
    kind = Processor(INTEL, "6", "1", "avx512_core", "AVX512")
    monkeypatch.setattr(processor, "here", lambda: kind)
    assert choices.choice(torch.float16) == choices.lookup(choices.table(), kind, torch.float16)
    file = tmp_path / "choices.json"
    file.write_text('{"default": {"source": "another", "float16": {}}}')
    monkeypatch.setattr(choices, "FILE", file)
    assert choices.choice(torch.float16).source == "another"
    monkeypatch.undo()
    assert choices.choice(torch.float16) == before


SCRIPT = """
import json, os, sys, threading, time
import torch
def multiply(x=torch.ones(500, 500)):
    while True:
        x @ x
threading.Thread(target=multiply, daemon=True).start()
ticks = iter(range(10**9))
lie = lambda: next(ticks) ** 2 % 1013  # a clock that is none
time.perf_counter = time.monotonic = time.process_time = time.time = lie
from tests.ops.linear import test_linear_table as test
print(json.dumps({str(dtype): test.answer(dtype) for dtype in test.DTYPES[::-1]}), flush=True)
os._exit(0)  # the thread does not end by itself
"""


def answer(dtype: torch.dtype) -> list[str]:
    """(why not oneDNN, whether widened, the bits): of a product that is large enough to choose."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, (weight, bias) = torch.randn(150, 384).to(dtype), layer(384, 384, dtype)
    with torch.no_grad():
        y = linear(x, weight, bias, "gelu")
        reason = explain(backend_table(x, weight, bias))["onednn"]
    bits = hashlib.sha256(y.float().numpy().tobytes()).hexdigest()
    return [reason, str(linear_wide.preferred(dtype)), bits]


def start(script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Another process with the settings of this one."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    kept = {k: v for k, v in os.environ.items() if k != linear_onednn.VARIABLE}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=kept | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def printed(process: subprocess.Popen[str]) -> str:
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    return said


def test_every_process_gives_the_same_bits() -> None:
    """Whatever else runs, whatever its clock says, in whatever order it meets the dtypes."""
    other = start(SCRIPT, **LIMITED)
    here = {str(dtype): answer(dtype) for dtype in DTYPES}
    assert json.loads(printed(other)) == here
