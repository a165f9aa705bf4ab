"""What a run measured and what it was measured on: for people, for programs, as a page."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import qedasync
from qedasync.bench.facts import directions
from qedasync.bench.histogram import Histogram
from qedasync.bench.human import fio_lines
from qedasync.bench.layout import fio_layout, latency
from qedasync.bench.numbers import duration
from qedasync.bench.result import Result

__all__ = ["Report", "format_size"]

_PERCENTS = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Report:
    """A result and what it was measured on.

    Attributes:
        result: what :meth:`~qedasync.bench.runner.Run.run` returned.
        image: the image's name, and where it came from if it was made for the run.
        image_size: bytes.
        cluster_size: bytes; None for a raw image.
        allocated: share of the image that was data before the run, 0 to 1.
        stats: what the image did; None if it does not count.
        loop, storage, cache: how it was run.
        format: the image's.
        command: the command line that asked for it.
    """

    result: Result
    image: str
    image_size: int
    cluster_size: int | None
    allocated: float
    stats: qedasync.Stats | None
    loop: str
    storage: str
    cache: str
    format: str = "qed"
    command: str = ""

    def human(self) -> str:
        """Lines for a terminal: fio's, and what fio has no words for."""
        lines = fio_lines(self.result, qedasync.__version__)
        ours = (f"{name:<11} {text}" for name, text in self.own_lines())
        return "\n".join([*lines, "", *ours])

    def json(self) -> dict[str, Any]:
        """The same in fio's layout; what fio does not have stands under ``qedasync``."""
        result, version = self.result, qedasync.__version__
        ours = {
            "image": self.image,
            "image_size": self.image_size,
            "format": self.format,
            "cluster_size": self.cluster_size,
            "allocated_before": self.allocated,
            "loop": self.loop,
            "storage": self.storage,
            "cache": self.cache,
            "stats": asdict(self.stats) if self.stats else {},
            "loop_delay_ns": latency(result.loop_delay),
            "final_flush_ns": result.final_flush_ns,
            "overhead_ns": result.overhead_ns,
            "verified": result.verified,
            "interrupted": result.interrupted,
            "machine": machine(),
        }
        return {
            "qedasync version": version,
            **fio_layout(result, version, self.image),
            "qedasync": ours,
        }

    def html(self) -> str:
        """The same as a page that needs nothing else, with plots."""
        from qedasync.bench.html import page

        return page(self)

    def own_lines(self) -> Iterator[tuple[str, str]]:
        """(name, text) of what fio has no words for."""
        result = self.result
        yield "image", self._image_line()
        yield "run", f"{self.loop}, storage {self.storage}, cache {self.cache}"
        yield "machine", machine()
        for each in directions(result):
            if each.count:
                rate = format_size(each.per_second * each.length)
                yield each.name, f"{each.per_second:,.0f} IOPS, {rate}/s, {_delays(each.times)}"
        if result.final_flush_ns is not None:
            yield "last flush", f"{duration(result.final_flush_ns)}, not in the rates"
        yield "loop delay", _delays(result.loop_delay)
        if self.stats is not None:
            yield "counters", _counter_line(self.stats)
        yield "measuring", self._measuring_line()
        if result.workload.verify:
            yield "verified", f"{result.verified:,} reads, all as written; tables sound"
        if result.interrupted:
            yield "interrupted", "these are the results so far"

    def _image_line(self) -> str:
        clusters = (
            f", clusters of {format_size(self.cluster_size)}"
            if self.cluster_size is not None
            else ""
        )
        return (
            f"{self.image}, {self.format}, {format_size(self.image_size)}{clusters},"
            f" {self.allocated:.0%} allocated before"
        )

    def _measuring_line(self) -> str:
        result = self.result
        cost = result.overhead_ns * result.total
        return (
            f"takes {duration(result.overhead_ns)} an operation,"
            f" {cost / max(1, result.elapsed_ns):.1%} of the run; the rates include it"
        )


def machine() -> str:
    """Where this runs: processors, system, Python."""
    return (
        f"{os.cpu_count() or 1} processors ({platform.machine()}), {platform.system()}"
        f" {platform.release()}, {platform.python_implementation()} {platform.python_version()}"
    )


def _counter_line(stats: qedasync.Stats) -> str:
    reads = stats.inline_reads + stats.reads
    inline = f"{stats.inline_reads / reads:.1%} of reads inline, " if reads else ""
    return (
        f"{inline}{stats.grouped_writes:,} allocating writes in {stats.groups:,} groups,"
        f" {stats.clusters_allocated:,} clusters allocated, {stats.l2_loads:,} L2 slices loaded"
    )


def _delays(times: Histogram) -> str:
    values = zip(_PERCENTS, times.percentiles(_PERCENTS), strict=True)
    texts = [f"p{percent:g} {duration(value)}" for percent, value in values]
    return ", ".join([*texts, f"max {duration(times.largest)}"])


def format_size(size: float) -> str:
    """A number of bytes with a binary unit: ``"4 KiB"``, ``"1.5 GiB"``."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    power = 0
    while size >= 1024 and power < len(units) - 1:
        size /= 1024
        power += 1
    return f"{size:.1f}".removesuffix(".0") + f" {units[power]}"
