"""Redraws results from their JSON files, without measuring.

python bench/plots.py bench/results/attention-*.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by its path: what is imported is `bench.show`, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.show import drawing


def main(files: Sequence[str]) -> int:
    for file in files:
        drawing.draw(Path(file))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
