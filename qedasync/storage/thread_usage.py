"""What the kernel counts of the running thread; Linux only."""

from __future__ import annotations

import resource

__all__ = ["major_faults", "waits"]


def waits() -> int:
    """How often it has waited for something other than the processor."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def major_faults() -> int:
    """How often it has waited for a page of a file or of swap."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
