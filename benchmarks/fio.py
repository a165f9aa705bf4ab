"""fio on a raw file: what the kernel gives without an image format."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.workload import Workload

__all__ = ["PERCENTS", "command", "latencies", "took"]

PERCENTS = (50.0, 90.0, 99.0, 99.9, 99.99)


def command(path: str, work: Workload, engine: str) -> list[str]:
    """A run of the same size, kind and depth; fio draws random positions of its own."""
    kind = "write" if work.write else "read"
    return [
        *("fio", "--name=limit", f"--filename={path}", f"--ioengine={engine}"),
        f"--rw={kind if work.sequential else f'rand{kind}'}",
        *(f"--bs={work.block}", f"--iodepth={work.depth}", f"--size={work.size}"),
        *(f"--io_size={work.count * work.block}", f"--direct={int(work.direct)}"),
        *("--norandommap", "--randrepeat=1", "--invalidate=0", "--fallocate=none"),
        *(f"--percentile_list={':'.join(map(str, PERCENTS))}", "--output-format=json"),
    ]


def took(stdout: str, work: Workload) -> dict[str, float]:
    """Seconds, and processor seconds, of the run that fio reports."""
    job = _job(stdout)
    done = job["write" if work.write else "read"]
    seconds = work.count / done["iops"]
    share = (job["usr_cpu"] + job["sys_cpu"]) / 100
    return {"seconds": seconds, "cpu": seconds * share}


def latencies(stdout: str, kind: str = "read") -> dict[str, float]:
    """Percent -> nanoseconds that so many of a hundred requests took at most."""
    found = _job(stdout)[kind]["clat_ns"]["percentile"]
    return {percent: float(ns) for percent, ns in found.items()}


def _job(stdout: str) -> dict[str, Any]:
    # Before the document fio may write notes, such as that it made the file.
    document: dict[str, Any] = json.loads(stdout[stdout.index("{") :])
    job: dict[str, Any] = document["jobs"][0]
    return job
