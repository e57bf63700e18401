"""What this processor is, and which instructions oneDNN's and torch's products may use on it.

Instruction sets go by oneDNN's names, those that ONEDNN_MAX_CPU_ISA takes: what is limited there is
not there.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")

LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables, the first that is set counts; oneDNN reads them once a process too."""

AVX2 = ("avx2", "fma3")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
BF16 = (*AVX512, "avx512vnni", "avx512bf16")
AMX = (*BF16, "avx512fp16", "amxtile", "amxbf16", "amxint8")
ISAS: dict[str, tuple[str, ...]] = {
    "sse41": ("sse41",),
    "avx": ("avx",),
    "avx2": AVX2,
    "avx2_vnni": (*AVX2, "avxvnni"),
    "avx2_vnni_2": (*AVX2, "avxvnni", "avxvnniint8", "avxneconvert"),
    "avx512_core": AVX512,
    "avx512_core_vnni": (*AVX512, "avx512vnni"),
    "avx512_core_bf16": BF16,
    "avx512_core_fp16": (*BF16, "avx512fp16"),
    "avx512_core_amx": AMX,
    "avx512_core_amx_fp16": (*AMX, "amxfp16"),
}
"""Instruction set, the weakest first -> the features it needs, without their underscores."""


@dataclass(frozen=True)
class Processor:
    """One kind of processor, as far as it decides which product of a linear layer serves."""

    vendor: str = ""
    """As the processor says it ("AuthenticAMD"); with family and model empty where unknown."""
    family: str = ""
    model: str = ""
    isa: str = ""
    """The strongest of `ISAS` that oneDNN may use; empty on other architectures."""
    torch: str = ""
    """What torch's own kernels use: `torch.backends.cpu.get_cpu_capability()`."""

    @property
    def name(self) -> str:
        """Under which figures measured here are filed; empty where the kind is not known."""
        known = self.vendor and self.family and self.model and self.isa
        words = f"{self.vendor} {self.family} {self.model}, {self.isa}, torch {self.torch}"
        return words if known else ""

    @property
    def keys(self) -> tuple[str, ...]:
        """Where to look in a table, best first: the kind, then the classes of its instruction set
        and of every weaker one, each of its vendor's family, of its vendor and of all."""
        isas = list(ISAS)
        weaker = isas[: isas.index(self.isa) + 1] if self.isa else []
        of = [""]
        if self.vendor:
            of = [f"{self.vendor}, ", *of]
            of = [f"{self.vendor} {self.family}, ", *of] if self.family else of
        classes = [words + isa for isa in reversed(weaker) for words in of]
        return tuple(key for key in (self.name, *classes, "default") if key)


@functools.cache
def here() -> Processor:
    """This process's; looked at once, so that nothing that happens later changes a choice."""
    facts = _first_of(CPUINFO) if CPUINFO.is_file() else {}
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return Processor(
        vendor=facts.get("vendor_id", ""),
        family=facts.get("cpu family", ""),
        model=facts.get("model", ""),
        isa=strongest(_features(facts), limit(os.environ)) if x86 else "",
        torch=torch.backends.cpu.get_cpu_capability(),
    )


def strongest(features: frozenset[str], most: str) -> str:
    """The last of `ISAS` that a processor with these features has, none beyond `most`."""
    isas = list(ISAS)
    allowed = isas[: isas.index(most) + 1]
    return next((isa for isa in reversed(allowed) if features.issuperset(ISAS[isa])), "")


def limit(environment: Mapping[str, str]) -> str:
    """The strongest of `ISAS` that oneDNN is allowed; a name it does not know limits nothing."""
    asked = next((environment[name] for name in LIMITS if environment.get(name)), "").lower()
    return asked if asked in ISAS else list(ISAS)[-1]


def _first_of(path: Path) -> dict[str, str]:
    """What /proc/cpuinfo says of the first processor: all of them take long where they are many."""
    facts: dict[str, str] = {}
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                break
            facts[name.strip()] = value.strip()
    return facts


def _features(facts: Mapping[str, str]) -> frozenset[str]:
    """Names without underscores, in which Linux and torch differ."""
    if "flags" in facts:
        names = facts["flags"].split()
    else:
        # Not in torch 2.11; what its own kernels use then says the rest.
        ask = getattr(torch.cpu, "get_capabilities", None)
        names = [name for name, has in ask().items() if has is True] if ask else []
    found = {name.replace("_", "") for name in names}
    if not found:
        capability = torch.backends.cpu.get_cpu_capability()
        found = {"sse41"}
        found |= {"avx", *AVX2} if capability.startswith("AVX") else set()
        found |= set(AVX512) if capability.startswith("AVX512") else set()
    # Linux says fma of what torch calls fma3.
    return frozenset(found | ({"fma3"} if "fma" in found else set()))
