"""What the ahead-of-time table says of a kernel, read from what compiler tools print."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

from bench import ahead_of_time, aot, aot_work, machine_code
from bench.ahead_of_time import Compiled
from bench.aot_work import Work

LOG = """
ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized
ptxas info    : Function properties for attention_forward
    0 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 169 registers, used 1 barriers
"""
CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   STL.64 [R1], R2 ;
.L_x_0:
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0030*/              @!P0 MUFU.EX2 R3, R3 ;
        /*0040*/              @P1  BRA `(.L_x_0) ;
        /*0050*/              @P2  BRA `(.L_x_1) ;
.L_x_2:
        /*0060*/                   FADD R4, R4, R5 ;
        /*0070*/              @P0  BRA `(.L_x_2) ;
.L_x_3:
        /*0080*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0090*/              @P0  BRA `(.L_x_4) ;
        /*00a0*/                   LDL R4, [R1+0x10] ;
        /*00a8*/                   BRA `(.L_x_3) ;
.L_x_4:
        /*00b0*/                   EXIT ;
"""


def test_a_loop_is_what_is_branched_back_over_and_multiplies() -> None:
    """Innermost ones alone, and neither loops without products nor branches ahead."""
    assert machine_code.loops(CODE) == [(3, 0), (4, 1)]
    assert machine_code.loops("") == []
    assert machine_code.loops(CODE.replace("HGMMA", "UTCHMMA")) == [(3, 0), (4, 1)]
    assert machine_code.loops(CODE.replace("HGMMA", "FFMA")) == [(4, 1)]


def test_the_assemblers_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "disassembled", lambda cubin: CODE)
    kernel = SimpleNamespace(
        asm={"ptx": "wgmma.mma_async.sync", "cubin": b""},
        metadata=SimpleNamespace(name="attention_forward", num_warps=8, shared=65536, maxnreg=128),
    )
    found = ahead_of_time._report(kernel, "sm_90", LOG)
    assert found == Compiled(
        "attention_forward",
        "sm_90",
        8,
        169,
        128,
        12,
        1,
        65536,
        ("C7515",),
        (3, 4),
        ("wgmma.mma_async",),
    )
    assert ahead_of_time._report(kernel, "sm_90", LOG.replace("(C7515)", "")).warnings == ()
    with pytest.raises(RuntimeError, match=r"attention_forward for sm_90: no .*registers"):
        ahead_of_time._report(kernel, "sm_90", "")


def test_serialised_products_are_wrong_at_the_main_shapes_alone() -> None:
    good = Compiled("attention_forward", "sm_90", 8, 128, None, 0, 0, 65536, (), (3,), ("wgmma",))
    serial = replace(good, warnings=("C7515",))
    for op in ("alibi", "alibi-whole", "alibi-fixed", "alibi-int64", "t5-fixed", "none"):
        work = Work("sm_90", op, "bfloat16", "64")
        assert aot_work.wrong_with(work, good) is None
        assert "serialised (C7515)" in str(aot_work.wrong_with(work, serial))
        made = {work.key: {"kernels": [serial.row()]}}
        assert aot.all_wrong(made) == [aot_work.wrong_with(work, serial)]
    assert aot_work.wrong_with(Work("sm_90", "dense", "bfloat16", "64"), serial) is None
    assert aot_work.wrong_with(Work("sm_90", "alibi", "bfloat16", "128"), serial) is None


def test_spills_are_wrong_but_outside_loops_where_registers_are_bounded() -> None:
    work = Work("sm_90", "alibi", "bfloat16", "64")
    bounded = Compiled("attention_forward", "sm_90", 8, 128, 128, 60, 0, 9, (), (3,), ("wgmma",))
    assert aot_work.wrong_with(work, bounded) is None
    unbounded = replace(bounded, maxnreg=None)
    assert "spills 60 bytes" in str(aot_work.wrong_with(work, unbounded))
    assert aot_work.wrong_with(work, replace(unbounded, spilled_bytes=16)) is None
    assert "spills 20 bytes" in str(aot_work.wrong_with(work, replace(unbounded, spilled_bytes=20)))
    once = replace(unbounded, spilled_bytes=16, spills_in_loops=1)
    assert "1 instructions spill in its loops" in str(aot_work.wrong_with(work, once))
    measured = Work("A Card", "alibi", "bfloat16", "64")  # the tuner has timed it as it is
    assert aot_work.wrong_with(measured, unbounded) is None
    in_loop = replace(bounded, spills_in_loops=2)
    assert "2 instructions spill in its loops" in str(aot_work.wrong_with(work, in_loop))
    assert aot_work.wrong_with(Work("sm_90", "dense", "bfloat16", "64"), in_loop) is None


def test_what_is_specialised_apart_is_compiled_apart() -> None:
    """Without ranges no pass before the kernels; without a learned bias another dq."""
    whole = aot_work.launched(Work("sm_90", "alibi-whole", "bfloat16", "64"))
    assert not whole & {"key_reach", "key_ranges", "query_hulls"}
    assert whole < aot_work.launched(Work("sm_90", "alibi", "bfloat16", "64"))
    assert {work.op for work in aot.listed() if work.main} == set(aot_work.MAIN)


def test_a_check_goes_on_after_what_the_compiler_fails_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And writes nothing: for other versions of Triton than the table's."""
    work = [Work("sm_100", op, "bfloat16", "64") for op in ("none", "alibi")]
    good = Compiled("attention_forward", "sm_100", 8, 128, None, 0, 0, 65536, (), (3,), ("x",))
    spills = replace(good, spilled_bytes=60)

    def compiled(each: Work) -> list[Compiled]:
        if each.op == "none":
            raise RuntimeError("PassManager::run failed")
        return [good, spills]

    monkeypatch.setattr(aot, "listed", lambda: [*work, Work("sm_90", "none", "bfloat16", "64")])
    monkeypatch.setattr(aot, "compile_work", compiled)
    monkeypatch.setattr(aot, "write", lambda made: pytest.fail("it was written"))
    monkeypatch.setattr("sys.argv", ["aot.py", "--check", "--card", "sm_100"])
    assert aot.main() == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "sm_100/none/bfloat16/64: sm_100/none/bfloat16/64: RuntimeError: " + (
        "PassManager::run failed"
    )
    assert "spills 60 bytes" in said[1]
    assert said[2].endswith("2 wrong")
    monkeypatch.setattr(aot, "compile_work", lambda each: [good])
    assert aot.main() == 0
