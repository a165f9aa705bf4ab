"""A run in the layout of ``fio --output-format=json``: the same keys, types and order.

Requests are taken at once here, as fio's synchronous engines take them; so the time to hand one in
(``slat_ns``) is empty, and ``clat_ns`` is all of it.
"""

from __future__ import annotations

from time import ctime
from typing import Any

from qedasync.bench.facts import (
    ALONE,
    PERCENTS,
    Direction,
    depth_shares,
    directions,
    latency_shares,
)
from qedasync.bench.histogram import Histogram
from qedasync.bench.result import Result
from qedasync.bench.workload import Workload

__all__ = ["fio_layout", "latency"]

_NO_TIMES = {"min": 0, "max": 0, "mean": 0.0, "stddev": 0.0, "N": 0}
_UNKNOWN = (1 << 31) - 1  # of seconds left, as fio has it


def fio_layout(result: Result, version: str, image: str) -> dict[str, Any]:
    """The whole document; every value in it is of the type that fio gives it."""
    ended = result.started + result.elapsed_ns / 1e9
    return {
        "fio version": f"qedasync-{version}",
        "timestamp": int(ended),
        "timestamp_ms": int(ended * 1000),
        "time": ctime(ended),
        "global options": {"ioengine": "qedasync", "filename": image, "group_reporting": "1"},
        "jobs": [_job(result)],
        "disk_util": [],
    }


def _job(result: Result) -> dict[str, Any]:
    workload, usage = result.workload, result.usage
    seconds = max(result.elapsed_ns, 1) / 1e9
    return {
        "jobname": "bench",
        "groupid": 0,
        "error": 0,
        "eta": _UNKNOWN,
        "elapsed": -(-result.elapsed_ns // 1_000_000_000),
        "job options": _options(workload),
        **{each.name: _direction(each) for each in directions(result)},
        "sync": {"total_ios": len(result.flushes), "lat_ns": latency(result.flushes)},
        "job_runtime": result.elapsed_ns // 1_000_000,
        "usr_cpu": 100.0 * usage.user / seconds,
        "sys_cpu": 100.0 * usage.system / seconds,
        "ctx": usage.switches,
        "majf": usage.major,
        "minf": usage.minor,
        "iodepth_level": depth_shares(workload.in_flight),
        "iodepth_submit": ALONE,
        "iodepth_complete": ALONE,
        **{f"latency_{unit}": shares for unit, shares in latency_shares(result)},
        "latency_depth": workload.depth,
        "latency_target": 0,
        "latency_percentile": 100.0,
        "latency_window": 0,
    }


def _options(workload: Workload) -> dict[str, str]:
    """The workload as fio would be asked for it; every value is text, as fio prints it."""
    sizes = {workload.block_size: 0, workload.write_length: 0}
    options = {
        "name": "bench",
        "rw": workload.rw,
        "bs": ",".join(map(str, sizes)),
        "iodepth": workload.depth,
        "numjobs": workload.jobs,
        "rwmixread": workload.read_percent,
        "offset": workload.offset,
        "size": workload.size,
        "randseed": workload.seed,
        "fsync": workload.flush_interval,
        "runtime": workload.runtime,
        "number_ios": workload.number,
        "buffer_pattern": workload.fill,
    }
    return {name: str(value) for name, value in options.items() if value is not None}


def _direction(each: Direction) -> dict[str, Any]:
    rates, per_second = each.iops, each.per_second * each.length
    times = latency(each.times)
    return {
        "io_bytes": each.size,
        "io_kbytes": each.size >> 10,
        "bw_bytes": int(per_second),
        "bw": int(per_second) >> 10,
        "iops": each.per_second,
        "runtime": each.elapsed_ns // 1_000_000,
        "total_ios": each.count,
        "short_ios": 0,
        "drop_ios": 0,
        "slat_ns": _NO_TIMES,
        "clat_ns": times,
        "lat_ns": times,
        "bw_min": int(rates.least * each.length) >> 10,
        "bw_max": int(rates.most * each.length) >> 10,
        "bw_agg": 100.0 if each.count else 0.0,
        "bw_mean": rates.mean * each.length / 1024,
        "bw_dev": rates.deviation * each.length / 1024,
        "bw_samples": rates.samples,
        "iops_min": int(rates.least),
        "iops_max": int(rates.most),
        "iops_mean": rates.mean,
        "iops_stddev": rates.deviation,
        "iops_samples": rates.samples,
    }


def latency(times: Histogram) -> dict[str, Any]:
    """The times as fio tells them; percentiles only if there are any times."""
    if not len(times):
        return dict(_NO_TIMES)
    percentiles = zip(PERCENTS, times.percentiles(PERCENTS), strict=True)
    return {
        "min": times.smallest,
        "max": times.largest,
        "mean": times.mean,
        "stddev": times.stddev,
        "N": len(times),
        "percentile": {f"{percent:.6f}": value for percent, value in percentiles},
    }
