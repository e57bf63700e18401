"""A folder of texts in a vector store, and questions to it: pyenc, LangChain and FAISS.

    python examples/vector_store.py                       the documents below, four questions
    python examples/vector_store.py --index FOLDER        keeps the index there, or uses it
    python examples/vector_store.py --model NAME "..."    another checkpoint, a question of your own

Needs: pip install 'pyenc[demo,integrations]'
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from examples import bundled
from pyenc import PyencError
from pyenc.integrations.langchain import PyencEmbeddings

DOCUMENTS = {
    "tides": "The moon pulls at the sea, and twice a day the water rises and falls.",
    "waves": "Wind that blows over open water for long raises waves.",
    "bread": "Rye flour, water and salt are mixed with sourdough, left to rise and baked.",
    "chess": "A bishop moves along the diagonals, a rook along ranks and files.",
    "bees": "Worker bees gather nectar from flowers and store it as honey.",
    "iron": "Ore is melted in a furnace with coke, and the molten metal is drawn off below.",
    "rust": "Iron left in damp air turns to rust within days.",
    "organ": "Wind from a bellows sounds the pipes of an organ.",
}
QUESTIONS = (
    "why does the water level at the beach change?",
    "how do I make a loaf?",
    "where does honey come from?",
    "what becomes of a nail in wet weather?",
)


class Hit(NamedTuple):
    name: str
    text: str
    score: float


class Store:
    """Documents by name, and a FAISS index of their unit vectors: inner products are cosines."""

    def __init__(self, embeddings: PyencEmbeddings) -> None:
        self.embeddings = embeddings
        self.documents: list[tuple[str, str]] = []
        self.index = faiss.IndexFlatIP(embeddings.encoder.dim)

    def add(self, documents: dict[str, str]) -> None:
        vectors = np.array(self.embeddings.embed_documents([*documents.values()]), np.float32)
        faiss.normalize_L2(vectors)
        self.index.add(vectors)
        self.documents += documents.items()

    def search(self, question: str, top: int = 3) -> list[Hit]:
        vector = np.array([self.embeddings.embed_query(question)], np.float32)
        faiss.normalize_L2(vector)
        scores, rows = self.index.search(vector, min(top, len(self.documents)))
        return [
            Hit(*self.documents[row], float(score))
            for score, row in zip(scores[0], rows[0], strict=True)
        ]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        faiss.write_index(self.index, str(folder / "vectors.faiss"))
        told = {"model": self.embeddings.encoder.name, "documents": self.documents}
        (folder / "documents.json").write_text(json.dumps(told, indent=1), "utf-8")

    def load(self, folder: Path) -> None:
        """What `save` wrote.

        Raises:
            ValueError: it is of another model, whose vectors mean nothing to this one.
        """
        told = json.loads((folder / "documents.json").read_text("utf-8"))
        if told["model"] != self.embeddings.encoder.name:
            raise ValueError(
                f"{folder}: an index of {told['model']}, not of {self.embeddings.encoder.name}"
            )
        self.index = faiss.read_index(str(folder / "vectors.faiss"))
        self.documents = [(name, text) for name, text in told["documents"]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A vector store, end to end.")
    parser.add_argument("question", nargs="*", help="default: four of the program's own")
    parser.add_argument("--model", help="folder or Hub name (default: all-MiniLM-L6-v2)")
    parser.add_argument("--index", type=Path, metavar="FOLDER", help="where the index is kept")
    args = parser.parse_args(argv)
    try:
        store = Store(PyencEmbeddings(args.model or bundled.minilm()))
        if args.index is not None and (args.index / "documents.json").is_file():
            store.load(args.index)
            print(f"{len(store.documents)} documents from {args.index}")
        else:
            store.add(DOCUMENTS)
            print(f"{len(store.documents)} documents embedded")
            if args.index is not None:
                store.save(args.index)
    except (PyencError, bundled.WeightsError, ValueError) as error:
        print(f"vector_store: {error}", file=sys.stderr)
        return 2
    for question in args.question or QUESTIONS:
        print(f"\n{question}")
        for hit in store.search(question):
            print(f"  {hit.score:.3f}  {hit.name:<6} {hit.text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
