"""The C++ kernels of the elementwise ops, on each instruction set that this processor has.

Run as a script, this file checks the kernels of the one that PYENC_CPU_ISA names.
"""

from __future__ import annotations

import pytest
import torch

from pyenc.ops import extension
from tests.instruction_sets import ISAS, run_on
from tests.ops.disentangled import test_disentangled
from tests.ops.gated import test_gated_cpu
from tests.ops.linear import test_few_rows, test_linear_activated
from tests.ops.norm import test_norm_cpu
from tests.ops.norm_rotary import test_norm_rotary_cpu
from tests.ops.rotary import test_rotary_cpu
from tests.seeds import seed

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())


@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set(isa: str) -> None:
    run_on(isa, __file__)


def main() -> None:
    torch.manual_seed(seed(1))
    torch.set_num_threads(1)
    files = (
        test_disentangled, test_few_rows, test_gated_cpu, test_linear_activated, test_norm_cpu,
        test_norm_rotary_cpu, test_rotary_cpu,
    )  # fmt: skip
    for file in files:
        file.main()
    print(extension.isa())


if __name__ == "__main__":
    main()
