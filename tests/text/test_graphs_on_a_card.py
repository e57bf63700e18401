"""Graphs captured and replayed on a card: the vectors that there are without."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pyenc.loading import load_checkpoint
from pyenc.text import graphs
from pyenc.text.finish import Finish
from pyenc.text.packed import Packed, run_packed
from pyenc.text.recipe import Recipe, read_recipe
from tests.conftest import CHECKPOINTS, read_golden
from tests.text.test_graphs import batch_of, graphs_of, small

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize("name", [n for n in CHECKPOINTS if not n.endswith("_real")])
def test_every_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run, the captured one and replays: the same bits, and near the unfilled ones;
    nothing waits for the card."""
    golden = read_golden(name)
    checkpoint = load_checkpoint(golden.folder)
    model = checkpoint.encoder.cuda()
    recipe = read_recipe(golden.folder, checkpoint.pooling)
    for output in ("pooled", "tokens"):
        finish = Finish(10**6, normalize=False)
        for lengths in ([3], [17, 1, 30, 9, 2]):
            batch = batch_of(model, lengths)
            with monkeypatch.context() as without:
                without.setattr(graphs, "shape_for", lambda *_: None)
                plain = run_packed(model, recipe, batch, output, finish)
            first = run_packed(model, recipe, batch, output, finish)
            torch.cuda.set_sync_debug_mode("error")
            try:
                rest = [run_packed(model, recipe, batch, output, finish) for _ in range(3)]
            finally:
                torch.cuda.set_sync_debug_mode("default")
            other = run_packed(model, recipe, batch_of(model, lengths, 1), output, finish)
            again = run_packed(model, recipe, batch, output, finish)
            assert first.shape == plain.shape
            assert torch.equal(first, again)
            assert all(torch.equal(first, each) for each in rest)
            assert not torch.equal(first, other)
            assert (first - plain).abs().max() <= 2e-5
    captured = 0 if model.config.disentangled is not None else 2
    assert len(graphs_of(model).by_key) == captured, graphs_of(model).why_not()


def test_positions_of_the_librarys_own() -> None:
    torch.manual_seed(0)
    fields = {"position_fields": {"reach": 9}, "position_per_layer": True}
    model = small(position="table_alibi", **fields).cuda()
    recipe, finish = Recipe(), Finish(32, normalize=True)
    for lengths in ([3], [400, 2, 93]):
        batch = batch_of(model, lengths)
        got = [run_packed(model, recipe, batch, "pooled", finish) for _ in range(4)]
        assert all(torch.equal(got[0], each) for each in got)
    assert len(graphs_of(model).by_key) == 2, graphs_of(model).why_not()


def test_weights_that_change_and_batches_of_other_shapes() -> None:
    torch.manual_seed(0)
    model = small().cuda().bfloat16()
    recipe, finish = Recipe(), Finish(32, normalize=True)
    lengths = [[n % 41 + 1 for n in range(seed, seed + 1 + seed % 7)] for seed in range(60)]
    wanted = [run_packed(model, recipe, batch_of(model, x), "pooled", finish) for x in lengths]
    for _ in range(2):
        got = [run_packed(model, recipe, batch_of(model, x), "pooled", finish) for x in lengths]
        assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    batch = batch_of(model, lengths[5])
    changed = run_packed(model, recipe, batch, "pooled", finish)
    assert not torch.equal(changed, wanted[5])
    fresh = copy.deepcopy(model)
    assert torch.equal(changed, run_packed(fresh, recipe, batch, "pooled", finish))
    model.double()
    assert run_packed(model, recipe, batch, "pooled", finish).dtype == torch.float32


def test_threads_share_a_model() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = small().cuda()
    recipe, finish = Recipe(), Finish(32, normalize=True)
    batches = [batch_of(model, [7, 9], seed) for seed in range(64)]
    wanted = [run_packed(model, recipe, batch, "pooled", finish).cpu() for batch in batches]

    def run(batch: Packed) -> Tensor:
        with torch.cuda.stream(torch.cuda.Stream()):
            return run_packed(model, recipe, batch, "pooled", finish).cpu()

    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(run, batches))
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))


def test_models_on_streams_of_one_card() -> None:
    """Few rows of wide layers, whose products are split along their sums and meet in memory that
    all captures of a card have in common."""
    from concurrent.futures import ThreadPoolExecutor

    sizes = {"hidden_size": 256, "intermediate_size": 8192, "num_heads": 4}
    models = [small(**sizes).cuda().bfloat16() for _ in range(4)]
    recipe, finish = Recipe(), Finish(256, normalize=True)
    batch = batch_of(models[0], [7, 9])
    wanted = [run_packed(model, recipe, batch, "pooled", finish).cpu() for model in models]

    def run(index: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            got = [run_packed(models[index], recipe, batch, "pooled", finish) for _ in range(200)]
            return all(torch.equal(wanted[index], each.cpu()) for each in got)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, range(4)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_models_on_two_cards() -> None:
    models = [small().to(torch.device("cuda", index)) for index in (0, 1)]
    recipe, finish = Recipe(), Finish(32, normalize=True)
    for model in models:
        batches = [batch_of(model, [7, 9], seed) for seed in range(3)]
        wanted = [
            run_packed(copy.deepcopy(model), recipe, batch, "pooled", finish) for batch in batches
        ]
        for _ in range(2):
            got = [run_packed(model, recipe, batch, "pooled", finish) for batch in batches]
            assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
        assert len(graphs_of(model).by_key) == 1
