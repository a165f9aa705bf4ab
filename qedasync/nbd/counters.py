"""What a server has done, for its owner and for Prometheus."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["BUCKETS", "Counters"]

BUCKETS = tuple(2**n * 1e-6 for n in range(4, 25, 2))
"""Upper bounds of the latency buckets, in seconds: 16 microseconds to 16 seconds."""


@dataclass(slots=True)
class Counters:
    """Counters, each since the server began, and what is going on.

    Attributes:
        connections: now; ``accepted`` ever; ``refused`` for being too many; ``failed`` by a fault
            of the client.
        inline_reads, inline_writes: requests that were done at once.
        requests: all others, by the command's name.
        bytes_read, bytes_written: payload.
        in_flight: requests now; ``bytes_in_flight`` of theirs.
        latency: requests a bucket of :data:`BUCKETS`, one more for the rest.
        latency_sum: seconds.
    """

    connections: int = 0
    accepted: int = 0
    refused: int = 0
    failed: int = 0
    inline_reads: int = 0
    inline_writes: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_written: int = 0
    in_flight: int = 0
    bytes_in_flight: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    latency_sum: float = 0.0
