"""What a hostile image may cost, and how that is measured in a test."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["MEMORY", "SECONDS", "cheap"]

MEMORY = 64 << 20
"""Bytes that any image may cost."""

SECONDS = 10.0
"""Processor time that any image may cost: five times what it should, for slow and busy machines."""


@contextmanager
def cheap(most: int = MEMORY) -> Iterator[None]:
    """Fail if more than ``most`` bytes are taken up at any moment in between."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= most, f"{peak >> 20} MiB"
