"""What a run of `pyenc embed` counts, and what it has to say of it at its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .ids import CAPACITY, SeenIds
from .parts import Part
from .rows import Cut


@dataclass
class Tally:
    """What the run has to say at its end."""

    texts: int = 0
    resumed: int = 0
    cut: Cut = field(default_factory=Cut)
    skipped: int = 0
    reason: str = ""
    """Why the first row was left out."""
    notes: set[str] = field(default_factory=set)
    """Warnings that are not about length, each once."""
    seen: SeenIds = field(default_factory=SeenIds)

    def add(self, part: Part, resumed: bool) -> None:
        self.texts += len(part.rows)
        self.resumed += len(part.rows) if resumed else 0
        self.cut = self.cut.and_then(part.cut)
        self.skipped += len(part.skipped)
        if part.skipped and not self.reason:
            self.reason = part.skipped[0][2]
        again = self.seen.add(part.ids) if part.ids else None
        if again is not None and part.ids and not any("repeat" in note for note in self.notes):
            self.notes.add(
                f"id {part.ids[again]!r} of row {part.rows[again]} stands at a row before it too; "
                "rows that repeat an id: {repeated}"
            )

    def warnings(self) -> Iterator[str]:
        """What to warn of, a line each."""
        for note in sorted(self.notes):
            text = " ".join(note.split())
            yield text.replace("{repeated}", f"{self.seen.repeated:,}")
        if self.seen.full:
            yield f"beyond {CAPACITY:,} ids, each was compared with those alone"
        if self.cut.texts:
            had = "had" if self.cut.exact else "had at least"
            yield (
                f"{self.cut.texts:,} of {self.texts:,} texts were cut to the maximum length; the "
                f"longest {had} {self.cut.longest:,} tokens"
            )
