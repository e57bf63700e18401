"""What is said when something fails."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The message of an error, its lines joined."""
    lines = (line.strip() for line in str(error).splitlines())
    return "; ".join(line for line in lines if line) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch has its own way of saying so on each device."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    )
