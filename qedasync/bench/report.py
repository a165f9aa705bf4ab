"""What a run measured, for people and, in fio's keys, for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import qedasync
from qedasync.bench.histogram import Histogram
from qedasync.bench.runner import Result
from qedasync.bench.workload import Workload

__all__ = ["Report", "format_size"]

_PERCENTS = (50.0, 90.0, 99.0, 99.9)
_FIO_PERCENTS = (1.0, 5.0, *map(float, range(10, 100, 10)), 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)


@dataclass(frozen=True, slots=True)
class Report:
    """A result and what it was measured on.

    Attributes:
        result: what :meth:`~qedasync.bench.runner.Run.run` returned.
        image: the image's name, and where it came from if it was made for the run.
        image_size, cluster_size: bytes.
        allocated: share of the image that had clusters before the run, 0 to 1.
        stats: what the image did.
        loop, storage, cache: how it was run.
    """

    result: Result
    image: str
    image_size: int
    cluster_size: int
    allocated: float
    stats: qedasync.Stats
    loop: str
    storage: str
    cache: str

    def human(self) -> str:
        """Lines for a terminal."""
        lines = [
            ("image", self._image_line()),
            ("workload", self._workload_line()),
            *self._operation_lines("read", self.result.reads),
            *self._operation_lines("write", self.result.writes),
            *self._flush_lines(),
            ("loop delay", _delays(self.result.loop_delay)),
            ("counters", self._counter_line()),
            ("measuring", self._measuring_line()),
        ]
        if self.result.workload.verify:
            lines.append(
                ("verified", f"{self.result.verified:,} reads, all as written; tables sound")
            )
        if self.result.interrupted:
            lines.append(("interrupted", "these are the results so far"))
        return "\n".join(f"{name:<11} {text}" for name, text in lines)

    def json(self) -> dict[str, Any]:
        """The same with fio's keys; what fio does not have stands under ``qedasync``."""
        result = self.result
        job: dict[str, Any] = {
            "jobname": "bench",
            "error": 0,
            "job options": _options(result.workload),
            "read": self._direction(result.reads),
            "write": self._direction(result.writes),
            "sync": {"total_ios": len(result.flushes), "lat_ns": _latency(result.flushes)},
            "job_runtime": result.elapsed_ns // 1_000_000,
        }
        ours = {
            "image": self.image,
            "image_size": self.image_size,
            "cluster_size": self.cluster_size,
            "allocated_before": self.allocated,
            "loop": self.loop,
            "storage": self.storage,
            "cache": self.cache,
            "stats": asdict(self.stats),
            "loop_delay_ns": _latency(result.loop_delay),
            "final_flush_ns": result.final_flush_ns,
            "overhead_ns": result.overhead_ns,
            "verified": result.verified,
            "interrupted": result.interrupted,
        }
        return {"qedasync version": qedasync.__version__, "jobs": [job], "qedasync": ours}

    # ------------------------------------------------------------------ human

    def _image_line(self) -> str:
        size, cluster = format_size(self.image_size), format_size(self.cluster_size)
        return f"{self.image}, {size}, clusters of {cluster}, {self.allocated:.0%} allocated before"

    def _workload_line(self) -> str:
        workload, seconds = self.result.workload, self.result.elapsed_ns / 1e9
        mix = f" {workload.read_percent}/{100 - workload.read_percent}" if workload.mixes else ""
        return (
            f"{workload.rw}{mix}, bs {format_size(workload.block_size)}, iodepth {workload.depth},"
            f" {seconds:.2f} s, {self.loop}, storage {self.storage}, cache {self.cache}"
        )

    def _operation_lines(self, name: str, times: Histogram) -> list[tuple[str, str]]:
        n = len(times)
        if n == 0:
            return []
        seconds = max(1, self.result.elapsed_ns) / 1e9
        rate = format_size(n * self.result.workload.block_size / seconds)
        return [
            (name, f"{n / seconds:,.0f} IOPS, {rate}/s, {n:,} operations"),
            ("", _delays(times)),
        ]

    def _flush_lines(self) -> list[tuple[str, str]]:
        lines = []
        if len(self.result.flushes):
            lines.append(("flush", f"{len(self.result.flushes):,}: {_delays(self.result.flushes)}"))
        if self.result.final_flush_ns is not None:
            lines.append(("last flush", f"{_time(self.result.final_flush_ns)}, not in the rates"))
        return lines

    def _counter_line(self) -> str:
        stats = self.stats
        reads = stats.inline_reads + stats.reads
        inline = f"{stats.inline_reads / reads:.1%} of reads inline, " if reads else ""
        return (
            f"{inline}{stats.grouped_writes:,} allocating writes in {stats.groups:,} groups,"
            f" {stats.clusters_allocated:,} clusters allocated, {stats.l2_loads:,} L2 slices loaded"
        )

    def _measuring_line(self) -> str:
        result = self.result
        cost = result.overhead_ns * (len(result.reads) + len(result.writes))
        return (
            f"takes {_time(result.overhead_ns)} an operation,"
            f" {cost / max(1, result.elapsed_ns):.1%} of the run; the rates include it"
        )

    # ------------------------------------------------------------------- JSON

    def _direction(self, times: Histogram) -> dict[str, Any]:
        n, elapsed = len(times), max(1, self.result.elapsed_ns)
        size = n * self.result.workload.block_size
        per_second = size * 1_000_000_000 / elapsed
        return {
            "io_bytes": size,
            "io_kbytes": size >> 10,
            "bw_bytes": int(per_second),
            "bw": int(per_second) >> 10,
            "iops": n * 1_000_000_000 / elapsed,
            "runtime": elapsed // 1_000_000,
            "total_ios": n,
            "lat_ns": _latency(times),
        }


def _options(workload: Workload) -> Mapping[str, str]:
    """The workload as fio would be asked for it; every value is text, as fio prints it."""
    options = {
        "rw": workload.rw,
        "bs": workload.block_size,
        "iodepth": workload.depth,
        "rwmixread": workload.read_percent,
        "offset": workload.offset,
        "size": workload.size,
        "randseed": workload.seed,
        "fsync": workload.flush_interval,
        "runtime": workload.runtime,
        "number_ios": workload.number,
    }
    return {name: str(value) for name, value in options.items() if value is not None}


def _latency(times: Histogram) -> dict[str, Any]:
    percentiles = zip(_FIO_PERCENTS, times.percentiles(_FIO_PERCENTS), strict=True)
    return {
        "min": times.smallest,
        "max": times.largest,
        "mean": times.mean,
        "stddev": times.stddev,
        "N": len(times),
        "percentile": {f"{percent:.6f}": value for percent, value in percentiles},
    }


def _delays(times: Histogram) -> str:
    values = zip(_PERCENTS, times.percentiles(_PERCENTS), strict=True)
    texts = [f"p{percent:g} {_time(value)}" for percent, value in values]
    return ", ".join([*texts, f"max {_time(times.largest)}"])


def _time(ns: float) -> str:
    """A duration with three digits: ``"812 ns"``, ``"4.07 us"``, ``"1.2 s"``."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns < 999.5 * size else f"{ns / size:.0f} {unit}"
    return f"{ns:.0f} ns"


def format_size(size: float) -> str:
    """A number of bytes with a binary unit: ``"4 KiB"``, ``"1.5 GiB"``."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    power = 0
    while size >= 1024 and power < len(units) - 1:
        size /= 1024
        power += 1
    return f"{size:.1f}".removesuffix(".0") + f" {units[power]}"
