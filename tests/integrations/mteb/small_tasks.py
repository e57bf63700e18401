"""Two small tasks of mteb, of texts written for this repository: data/ beside this file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

DATA = Path(__file__).parent / "data"


def metadata(name: str, kind: str, main_score: str, **more: Any) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        dataset={"path": "pyenc/small", "revision": "1"},
        description="A small task for tests.",
        type=kind,
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
        **more,
    )


class SmallSTS(AbsTaskSTS):
    metadata = metadata("SmallSTS", "STS", "cosine_spearman")

    def load_data(self, **_: Any) -> None:
        lines = (DATA / "sts.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        self.dataset = DatasetDict({"test": Dataset.from_list(rows)})
        self.data_loaded = True


class SmallRetrieval(AbsTaskRetrieval):
    metadata = metadata("SmallRetrieval", "Retrieval", "ndcg_at_10")

    def load_data(self, **_: Any) -> None:
        data = json.loads((DATA / "retrieval.json").read_text("utf-8"))
        corpus = [{"id": key, **document} for key, document in data["corpus"].items()]
        queries = [{"id": key, "text": text} for key, text in data["queries"].items()]
        split = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list(queries),
            "relevant_docs": data["relevant"],
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True
