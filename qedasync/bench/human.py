"""A run in the lines that fio prints, for people and for what reads fio's text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from time import ctime

from qedasync.bench.facts import (
    ALONE,
    PERCENTS,
    Direction,
    depth_shares,
    directions,
    latency_shares,
)
from qedasync.bench.histogram import Histogram
from qedasync.bench.numbers import bandwidth, duration_unit, fixed, io_size, short
from qedasync.bench.result import Result
from qedasync.bench.workload import Workload

__all__ = ["fio_lines"]


def fio_lines(result: Result, version: str) -> Iterator[str]:
    """Line by line; what fio would leave out is left out."""
    workload = result.workload
    done = [each for each in directions(result) if each.count]
    yield f"bench: (g=0): rw={workload.rw}, {_sizes(workload)}, iodepth={workload.depth}"
    yield f"qedasync-{version}"
    yield ""
    ended = ctime(result.started + result.elapsed_ns / 1e9)
    yield f"bench: (groupid=0, jobs={workload.jobs}): err= 0: pid={os.getpid()}: {ended}"
    for each in done:
        yield from _direction_lines(each)
    for unit, shares in latency_shares(result):
        yield from _share_lines(unit, shares)
    yield from _sync_lines(result.flushes)
    yield from _machine_lines(result, done)
    yield ""
    yield "Run status group 0 (all jobs):"
    for each in done:
        yield _status_line(each)


def _sizes(workload: Workload) -> str:
    lengths = zip("RWT", (workload.block_size, *[workload.write_length] * 2), strict=True)
    texts = [f"({name}) {io_size(length)}-{io_size(length)}" for name, length in lengths]
    return f"bs={', '.join(texts)}, ioengine=qedasync"


def _direction_lines(each: Direction) -> Iterator[str]:
    ran = f"{io_size(each.size)}/{_milliseconds(each)}msec"
    rate = bandwidth(each.per_second * each.length)
    zones = "; 0 zone resets" if each.name == "write" else ""
    yield f"  {each.name}: IOPS={''.join(short(each.per_second))}, BW={rate}({ran}){zones}"
    yield _spread_line("clat", each.times)
    yield _spread_line("lat", each.times)
    yield from _percentile_lines("clat", each.times)
    rates, kib = each.iops, each.length / 1024
    if rates.samples:
        yield (
            f"   bw (  KiB/s): min={rates.least * kib:5.0f}, max={rates.most * kib:5.0f},"
            f" per=100.00%, avg={rates.mean * kib:5.2f}, stdev={fixed(rates.deviation * kib, 5)},"
            f" samples={rates.samples}"
        )
        yield (
            f"   iops        : min={rates.least:5.0f}, max={rates.most:5.0f},"
            f" avg={rates.mean:5.2f}, stdev={fixed(rates.deviation, 5)}, samples={rates.samples}"
        )


def _spread_line(name: str, times: Histogram) -> str:
    unit, size = duration_unit(times.smallest, times.mean)
    least, most = ("".join(short(value / size)) for value in (times.smallest, times.largest))
    mean, deviation = (fixed(value / size, 5) for value in (times.mean, times.stddev))
    return f"    {name:>4} ({unit}): min={least}, max={most}, avg={mean}, stdev={deviation}"


def _percentile_lines(name: str, times: Histogram) -> Iterator[str]:
    unit, size = duration_unit(times.smallest, times.mean)
    yield f"    {name} percentiles ({unit}):"
    values = zip(PERCENTS, times.percentiles(PERCENTS), strict=True)
    texts = [f"{percent:5.2f}th=[{value / size:5.0f}]" for percent, value in values]
    rows = list(_rows(texts, 4))
    for row in rows:
        yield f"     | {', '.join(row)}{'' if row is rows[-1] else ','}"


def _share_lines(unit: str, shares: Mapping[str, float]) -> Iterator[str]:
    texts = [f"{name}={share:.2f}%" for name, share in shares.items() if share >= 0.005]
    for row in _rows(texts, 5):
        yield f"  {f'lat ({unit[0]}sec)':<13}: {', '.join(row)}"


def _sync_lines(times: Histogram) -> Iterator[str]:
    if len(times):
        yield "  fsync/fdatasync/sync_file_range:"
        yield _spread_line("sync", times)
        yield from _percentile_lines("sync", times)


def _machine_lines(result: Result, done: Sequence[Direction]) -> Iterator[str]:
    usage, seconds = result.usage, max(result.elapsed_ns, 1) / 1e9
    user, system = (100.0 * share / seconds for share in (usage.user, usage.system))
    yield (
        f"  cpu          : usr={user:.2f}%, sys={system:.2f}%, ctx={usage.switches},"
        f" majf={usage.major}, minf={usage.minor}"
    )
    depths = depth_shares(result.workload.in_flight).items()
    yield f"  IO depths    : {', '.join(f'{name}={share:.1f}%' for name, share in depths)}"
    alone = ", ".join(f"{name}={share:.1f}%" for name, share in ALONE.items())
    yield f"     submit    : {alone}"
    yield f"     complete  : {alone}"
    counts = {each.name: each.count for each in done}
    total = ",".join(str(counts.get(name, 0)) for name in ("read", "write", "trim"))
    yield f"     issued rwts: total={total},{len(result.flushes)} short=0,0,0,0 dropped=0,0,0,0"
    depth = result.workload.depth
    yield f"     latency   : target=0, window=0, percentile=100.00%, depth={depth}"


def _status_line(each: Direction) -> str:
    per_second = each.per_second * each.length
    binary, decimal = (f"{io_size(per_second, base)}/s" for base in (1024, 1000))
    ran = _milliseconds(each)
    return (
        f"{each.name.upper():>7}: bw={binary} ({decimal}), {binary}-{binary} ({decimal}-{decimal}),"
        f" io={io_size(each.size)} ({io_size(each.size, 1000)}), run={ran}-{ran}msec"
    )


def _milliseconds(each: Direction) -> int:
    return max(1, each.elapsed_ns // 1_000_000)


def _rows(texts: Sequence[str], length: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), length):
        yield texts[start : start + length]
