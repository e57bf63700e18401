"""`pyenc models`: the table of what is served, which docs/checkpoints.md has, and which is true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import GOLDEN, Cli

from pyenc.cli.models import WORDS, markdown, table
from pyenc.loading.shipped import SHIPPED
from pyenc.models.families import FAMILIES, ConfigFile, nearest

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_has_this_table(cli: Cli) -> None:
    said = cli("models", "--markdown")
    assert said.status == 0
    assert said.out in (ROOT / "docs" / "checkpoints.md").read_text("utf-8")
    assert said.out == "\n".join(markdown(table())) + "\n"


def test_the_readme_names_every_family() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [row["family"] for row in table() if row["family"] not in readme] == []


def test_forms(cli: Cli) -> None:
    rows = json.loads(cli("models", "--json").out)
    published = {row["family"] for row in rows if row["status"] != "ours"}
    assert published == {family.name for family in FAMILIES}
    ours = [row["checkpoints"] for row in rows if row["status"] == "ours"]
    assert ours == [each.name for each in SHIPPED]
    assert {row["status"] for row in rows} <= set(WORDS)
    plain = cli("models").out
    for row in rows:
        assert row["checkpoints"].split(", ")[0] in plain
    assert max(map(len, plain.splitlines())) <= 100
    assert "not allowed with" in cli("models", "--json", "--markdown").err
    assert "models takes no argument" in cli("models", "x").err


def test_real_weights_have_a_test() -> None:
    """Who says so has vectors of the published weights among the goldens."""
    real = {path.name.removesuffix("_real") for path in GOLDEN.glob("*_real")}
    rows = [row for row in table() if row["status"] == "real weights"]
    assert len(rows) == len(real)
    assert all(any(name in row["checkpoints"].lower() for name in real) for row in rows)


@pytest.mark.parametrize(
    ("names", "said", "family"),
    [
        (["encoder.layers.0.self_attn.q_proj.weight"], "nomic_bert_moe", "nomic-bert"),
        (["encoder.layer.0.attention.self.q.weight"], "mpnet2", "MPNet"),
        (["decoder.block.0.layer.0.SelfAttention.q.weight"], "umt5", "T5"),
        (["layers.0.attn.Wqkv.weight", "tok.weight"], "modernbert-decoder", "ModernBERT"),
        (["layer.0.attention.self.query.weight", "layer.0.intermediate.x"], "bert", "BERT"),
    ],
)
def test_nearest(names: list[str], said: str, family: str) -> None:
    found = [each.name for each in nearest(names, ConfigFile("config.json", {"model_type": said}))]
    assert family in found
