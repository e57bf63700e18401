"""Adapters of PEFT: refused by name, with and without whole weights beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import pyenc
from pyenc.errors import CheckpointError
from pyenc.loading import load_checkpoint
from pyenc.loading.hub import SMALL_FILES
from tests.conftest import GOLDEN

MESSAGE = r"adapter_config.json: a PEFT adapter, which is not served.* merge_and_unload\(\)"


@pytest.mark.parametrize("weights", [True, False])
def test_an_adapter(tmp_path: Path, weights: bool) -> None:
    if weights:
        shutil.copytree(GOLDEN / "bert_mean_h4", tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    for load in (pyenc.load, load_checkpoint):
        with pytest.raises(CheckpointError, match=MESSAGE):
            load(tmp_path)


def test_it_is_fetched() -> None:
    assert "adapter_config.json" in SMALL_FILES
