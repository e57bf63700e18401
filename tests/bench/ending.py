"""A job that may take its process with it, as a compiler's assert does; light to import."""

from __future__ import annotations

import os


def end_at_three(job: int) -> int:
    if job == 3:
        os._exit(9)
    return job
