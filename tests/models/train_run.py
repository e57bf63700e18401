"""A training run for tests: in one process or under torchrun, killed or not, and gone on with.

`torchrun -m tests.models.train_run FOLDER STEPS` trains as `train` does, and the first process
writes the curve to FOLDER/curve.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pyenc.models import Encoder, EncoderConfig
from pyenc.ops import segment_mean

CONFIG = EncoderConfig(
    vocab_size=50, hidden_size=24, num_layers=2, num_heads=3, intermediate_size=40,
    position="alibi", max_length=64, gated=True, up_bias=False,
)  # fmt: skip

SEED = 5
"""Of the first weights."""

TEXTS = 6
"""Of one step, in all processes together."""


class Vectors(nn.Module):
    """Packed ids in, means out."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, bounds: Tensor) -> Tensor:
        return segment_mean(self.encoder.forward_packed(ids, bounds), bounds)


def batch_of(step: int, rank: int, processes: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, bounds, target vectors): texts of many lengths and the means of what their words are
    in another table; each process has its share of them."""
    generator = torch.Generator().manual_seed(1000 + step)
    lengths = torch.randint(1, 30, (TEXTS,), generator=generator).tolist()
    texts = [torch.randint(0, 50, (n,), generator=generator) for n in lengths]
    table = torch.randn(50, CONFIG.hidden_size, generator=torch.Generator().manual_seed(1))
    targets = torch.stack([table[text].mean(0) for text in texts])
    own = slice(rank * TEXTS // processes, (rank + 1) * TEXTS // processes)
    bounds = torch.tensor([0, *lengths[own]]).cumsum(0)
    return torch.cat(texts[own]), bounds, targets[own]


def train(
    folder: Path, steps: int, *, dropout: float = 0.0, checkpointing: bool = False, die_in: int = -1
) -> list[float]:
    """The loss of each step, going on from what is in the folder; every step is saved. In the
    middle of the step `die_in` the process kills itself."""
    distributed = dist.is_available() and dist.is_initialized()
    rank, processes = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    torch.manual_seed(SEED)
    config = replace(CONFIG, hidden_dropout=dropout, attention_dropout=dropout)
    encoder = Encoder(config).train()
    if checkpointing:
        encoder.gradient_checkpointing_enable()
    model: nn.Module = Vectors(encoder)
    if distributed:
        model = DistributedDataParallel(model)
    # Not Adam, which divides by what is only noise where a gradient is zero.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    curve: list[float] = []
    if (saved := folder / "checkpoint.pt").is_file():
        state = torch.load(saved, weights_only=True)
        encoder.load_state_dict(state["encoder"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        curve = state["curve"]
    for step in range(len(curve), steps):
        ids, bounds, target = batch_of(step, rank, processes)
        optimizer.zero_grad()
        loss = (model(ids, bounds) - target).square().mean()
        loss.backward()
        if step == die_in:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.step()
        whole = loss.detach().clone()
        if distributed:
            dist.all_reduce(whole)
        curve.append(float(whole) / processes)
        if rank == 0:
            state = {
                "encoder": encoder.state_dict(), "optimizer": optimizer.state_dict(),
                "random": torch.get_rng_state(), "curve": curve,
            }  # fmt: skip
            torch.save(state, folder / "checkpoint.new")
            (folder / "checkpoint.new").replace(saved)
    return curve


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    if len(sys.argv) > 3:  # alone, and not to its end
        train(folder, int(sys.argv[2]), dropout=float(sys.argv[3]), die_in=int(sys.argv[4]))
        return
    dist.init_process_group("gloo")
    curve = train(folder, int(sys.argv[2]), checkpointing=True)
    if dist.get_rank() == 0:
        (folder / "curve.json").write_text(json.dumps(curve))
    dist.barrier()
    # All is written, and how torch takes down gloo's threads is no part of a run. A process of one
    # ended with SIGABRT once, "terminate called without an active exception": most likely there.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
