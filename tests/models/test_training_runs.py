"""Training runs: two processes are one with the doubled batch; a killed one goes on as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyenc.models import Encoder
from tests.models import train_run
from tests.models.train_run import CONFIG, SEED, train
from tests.scripts import run_script

ROOT = Path(__file__).resolve().parents[2]

STEPS = 8


def folder_of(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return found["encoder"]  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch is without gloo")
def test_two_processes_are_one_with_the_doubled_batch(tmp_path: Path) -> None:
    """Under torchrun, with gradient checkpointing; curve and weights."""
    alone, both = (folder_of(tmp_path, name) for name in ("alone", "both"))
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "tests.models.train_run", str(both), str(STEPS),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    curve = torch.tensor(json.loads((both / "curve.json").read_text()))
    expected = torch.tensor(train(alone, STEPS))
    torch.testing.assert_close(curve, expected, rtol=1e-5, atol=0)
    right = weights(alone)
    torch.manual_seed(SEED)
    first = Encoder(CONFIG).state_dict()
    for name, found in weights(both).items():
        torch.testing.assert_close(found, right[name], rtol=0, atol=2e-5, msg=name)
        assert (found - first[name]).abs().max() > 1e-3


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="nothing is killed so there")
def test_killed_and_gone_on_with(tmp_path: Path) -> None:
    """From weights, optimizer and generator: the same curve to the bit, dropout and all."""
    whole, killed = (folder_of(tmp_path, name) for name in ("whole", "killed"))
    expected = train(whole, STEPS, dropout=0.2)
    # Not forked from here: torch's autograd refuses that once it has threads of its own, as a build
    # for CUDA has after a compiled backward.
    done = run_script(train_run.__file__, str(killed), str(STEPS), "0.2", "5")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(killed / "checkpoint.pt", weights_only=True)["curve"] == expected[:5]
    torch.manual_seed(77)
    assert train(killed, STEPS, dropout=0.2) == expected
    for name, found in weights(killed).items():
        assert torch.equal(found, weights(whole)[name]), name
