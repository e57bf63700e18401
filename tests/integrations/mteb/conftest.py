"""The small tasks under names that `mteb.get_task` finds."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    mteb = pytest.importorskip("mteb")
    from tests.integrations.mteb.small_tasks import SmallRetrieval, SmallSTS

    assert mteb.get_task  # the module of that name is hidden by its function
    registry = sys.modules["mteb.get_tasks"]._TASKS_REGISTRY
    for task in (SmallSTS, SmallRetrieval):
        monkeypatch.setitem(registry, task.metadata.name, task)
