"""What the process has used of the machine: processor time, switches, page faults."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self

__all__ = ["Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Of the whole process with all its threads, since it began; or between two looks.

    Attributes:
        user, system: seconds of processor time.
        switches: context switches; 0 where nobody counts them.
        major, minor: page faults with and without a read from disk.
    """

    user: float = 0.0
    system: float = 0.0
    switches: int = 0
    major: int = 0
    minor: int = 0

    @classmethod
    def now(cls) -> Self:
        """Since the process began."""
        try:
            import resource
        except ImportError:  # there is none on Windows
            times = os.times()
            return cls(times.user, times.system)
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(
            used.ru_utime,
            used.ru_stime,
            used.ru_nvcsw + used.ru_nivcsw,
            used.ru_majflt,
            used.ru_minflt,
        )

    def since(self, before: Usage) -> Usage:
        """What was used from ``before`` to this."""
        return Usage(
            self.user - before.user,
            self.system - before.system,
            self.switches - before.switches,
            self.major - before.major,
            self.minor - before.minor,
        )
