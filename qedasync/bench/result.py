"""What a run measured, and how far it is while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from qedasync.bench.histogram import Histogram
from qedasync.bench.usage import Usage
from qedasync.bench.workload import Workload

__all__ = ["Result", "Sample", "Series", "Snapshot"]

_MOST = 4096  # samples; then every second one goes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a run is.

    Attributes:
        elapsed: seconds since it began.
        done: share of the run that is over, 0 to 1.
        reads, writes, trims: operations finished.
        workload: what is run.
    """

    elapsed: float
    done: float
    reads: int
    writes: int
    trims: int
    workload: Workload


@dataclass(frozen=True, slots=True)
class Sample:
    """A moment of a run.

    Attributes:
        elapsed_ns: since it began.
        counts: reads, writes and trims finished by then.
    """

    elapsed_ns: int
    counts: tuple[int, int, int]


class Series:
    """Samples from a run's begin to its end, of bounded number however long it takes.

    Attributes:
        samples: in order; the first is of the begin.
        period: seconds between two.
    """

    def __init__(self, period: float = 0.1) -> None:
        self.samples = [Sample(0, (0, 0, 0))]
        self.period = period

    def add(self, sample: Sample) -> None:
        """The next one; too many, and every second one goes."""
        if len(self.samples) == _MOST:
            del self.samples[1::2]
            self.period *= 2
        self.samples.append(sample)

    def rates(self, kind: int, least: float = 0.0) -> list[tuple[float, float]]:
        """(seconds since the begin, operations a second until then) of windows of at least
        ``least`` seconds; of reads, writes or trims for a ``kind`` of 0, 1 or 2. What is left at
        the end and shorter than half of that is left out, unless it is all there is."""
        found: list[tuple[float, float]] = []
        before = self.samples[0]
        for sample in self.samples[1:]:
            took = (sample.elapsed_ns - before.elapsed_ns) / 1e9
            is_last = sample is self.samples[-1]
            if took >= least or (is_last and (took >= least / 2 or not found)):
                if took > 0:
                    done = sample.counts[kind] - before.counts[kind]
                    found.append((sample.elapsed_ns / 1e9, done / took))
                before = sample
        return found


@dataclass(slots=True)
class Result:
    """What a run measured. Every time is in nanoseconds.

    Attributes:
        workload: what was run, fitted to the image.
        reads, writes, trims, flushes: how long each operation took.
        loop_delay: how late a timer of 2 ms was; the loops' timers are good to about 1 ms.
        elapsed_ns: from the first operation's start to the last one's end.
        final_flush_ns: the flush after the last write; None if nothing was written.
        overhead_ns: what the measuring loop itself costs for each operation.
        verified: reads that were checked against what had been written.
        interrupted: stopped before its time.
        series: how many operations were finished when.
        usage: what the process used of the machine meanwhile.
        started: seconds since 1970 when it began.
    """

    workload: Workload
    reads: Histogram = field(default_factory=Histogram)
    writes: Histogram = field(default_factory=Histogram)
    trims: Histogram = field(default_factory=Histogram)
    flushes: Histogram = field(default_factory=Histogram)
    loop_delay: Histogram = field(default_factory=Histogram)
    elapsed_ns: int = 0
    final_flush_ns: int | None = None
    overhead_ns: float = 0.0
    verified: int = 0
    interrupted: bool = False
    series: Series = field(default_factory=Series)
    usage: Usage = field(default_factory=Usage)
    started: float = 0.0

    @property
    def total(self) -> int:
        """Operations, without flushes."""
        return len(self.reads) + len(self.writes) + len(self.trims)

    def sample(self, elapsed_ns: int) -> Sample:
        """What has been counted by now."""
        return Sample(elapsed_ns, (len(self.reads), len(self.writes), len(self.trims)))
