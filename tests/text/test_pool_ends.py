"""When a pool's processes are begun and ended, and on which devices: without any."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch

import pyenc
from pyenc.errors import InputError, InputTypeError
from pyenc.text import processes


class Team:
    """Stands for the processes."""

    made: list[Team]

    def __init__(self, encoder: Any, devices: Any, threads: int | None = None) -> None:
        self.encoder, self.devices, self.threads = encoder, devices, threads
        self.closed = self.waited = False
        Team.made.append(self)

    def ready(self) -> None:
        self.waited = True
        if len(self.devices) == 3:
            raise InputError("no room for three")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def teams(monkeypatch: pytest.MonkeyPatch) -> list[Team]:
    """Those that were begun, in order."""
    Team.made = []
    monkeypatch.setattr(processes, "Team", Team)
    return Team.made


def test_a_pool_is_ended_by_who_leaves_it(bert: pyenc.TextEncoder, teams: list[Team]) -> None:
    with bert.pool(["cpu"], threads=3) as pool:
        assert teams[0].waited
        assert (teams[0].closed, teams[0].threads) == (False, 3)
        assert repr(pool).endswith("['cpu'], open)")
    assert teams[0].closed
    assert repr(pool).endswith("['cpu'], closed)")
    with pytest.raises(KeyError), bert.pool(["cpu"]):
        raise KeyError
    three = bert.pool(["cpu"] * 3)
    with pytest.raises(InputError, match="no room for three"), three:
        pass
    assert [team.closed for team in teams] == [True] * 3


def test_a_pool_is_ended_by_who_forgets_it(bert: pyenc.TextEncoder, teams: list[Team]) -> None:
    pool = bert.pool(["cpu"])
    assert not teams[0].closed
    del pool
    gc.collect()
    assert teams[0].closed


def test_processes_of_one_call_end_with_it(bert: pyenc.TextEncoder, teams: list[Team]) -> None:
    def fail(team: Any) -> None:
        assert team is teams[0]
        assert not team.closed
        raise KeyError

    with pytest.raises(KeyError), processes.team_for(bert, ["cpu"]) as team:
        fail(team)
    assert teams[0].closed
    waiting = processes.team_for(bert, ["cpu"])
    assert len(teams) == 1
    del waiting
    with pytest.raises(InputError, match="devices is empty"):  # at once
        processes.team_for(bert, [])


def test_a_pool_has_the_settings_that_there_were(
    bert: pyenc.TextEncoder, teams: list[Team]
) -> None:
    encoder = copy.copy(bert)
    pool = encoder.pool(["cpu"])
    before = encoder.max_length
    encoder.max_length = 7
    assert pool._encoder().max_length == before


def test_cards_are_counted_and_not_tried(
    bert: pyenc.TextEncoder, teams: list[Team], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card that is tried holds memory of this process."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    tried: list[Any] = []
    plain = processes.check_device
    monkeypatch.setattr(
        processes, "check_device", lambda name: (tried.append(str(name)), plain(name))[1]
    )
    bert.pool()
    bert.pool(["cuda", torch.device("cuda:1"), "cpu"])
    first, second = ([str(device) for device in team.devices] for team in teams)
    assert (first, second) == (["cuda:0", "cuda:1"], ["cuda", "cuda:1", "cpu"])
    assert tried == ["cpu"]
    with pytest.raises(InputError, match="'cuda:2' is not available: 2 CUDA cards are here"):
        bert.pool(["cuda:0", "cuda:2"])
    with pytest.raises(InputTypeError, match="devices must be a list"):
        bert.pool(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=r"no CUDA card here; devices=\['cpu', 'cpu'\] asks"):
        bert.pool()
    with pytest.raises(InputError, match="device 'cuda' is not available: 0 CUDA cards"):
        bert.pool(["cuda"])
    assert len(teams) == 2
