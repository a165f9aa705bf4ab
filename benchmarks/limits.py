"""Claims without a rival, only a bound, and the latencies, which ``qemu-img bench`` does not tell.

``python -m benchmarks.limits WHAT IMAGE LOOP`` is one measurement; it prints its figures as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import qedasync
from benchmarks import fio, process
from benchmarks.images import Recipe, Shelf
from benchmarks.ours import run_on
from benchmarks.results import Bound, Curve, Figure
from benchmarks.workload import Workload
from qedasync import bench

__all__ = ["BOUNDS", "LATENCY", "latency", "loop_delay", "open_cost"]

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

_OPEN_MS, _OPEN_MIB = 10.0, 4.0
_P99_MS, _P999_MS = 2.0, 10.0
_TASKS = 64
_SECONDS = 5.0
_TICK = 0.001
_LATENCY = Workload(count=100_000, block=4 * KIB, step=17 * 4 * KIB, size=256 * MIB)


def open_cost(shelf: Shelf, loop: str) -> Bound:
    """Opening images of 1 GiB and of 64 TiB: milliseconds and memory, each in a new process."""
    values: dict[str, float] = {}
    for name, size in (("1 GiB", GIB), ("64 TiB", 64 * TIB)):
        (image,) = shelf.standing(Recipe(size), "qed")
        runs = [_child("open", image, loop) for _ in range(5)]
        for unit in ("ms", "mib"):
            values[f"{name}, {unit}"] = statistics.median(run[unit] for run in runs)
    milliseconds, mebibytes = values["64 TiB, ms"], values["64 TiB, mib"]
    return Bound(
        "open-64tib",
        "Opening an image of 64 TiB",
        "The header and the used part of L1 are read, whatever the size.",
        f"{milliseconds:.2f} ms (bar {_OPEN_MS:g}) and {mebibytes:.2f} MiB more memory"
        f" (bar {_OPEN_MIB:g}); of 1 GiB: {values['1 GiB, ms']:.2f} ms",
        milliseconds <= _OPEN_MS and mebibytes <= _OPEN_MIB,
        values,
    )


def loop_delay(shelf: Shelf, loop: str) -> Bound:
    """How late a 1 ms timer is while 64 tasks read and write flat out."""
    (image,) = shelf.standing(Recipe(GIB, ((0, 256 * MIB),), owner="loop-delay"), "qed")
    runs = [_child("delay", image, loop) for _ in range(3)]
    shelf.forget("loop-delay")
    p99 = statistics.median(run["p99"] for run in runs)
    p999 = statistics.median(run["p999"] for run in runs)
    rate = statistics.median(run["requests"] for run in runs) / _SECONDS
    return Bound(
        "loop-delay",
        "Loop delay while 64 tasks read and write flat out",
        "What finishes inline never waits; a budget keeps timers and other connections alive.",
        f"p99 {p99:.2f} ms (bar {_P99_MS:g}), p99.9 {p999:.2f} ms (bar {_P999_MS:g}), about 1 ms"
        f" of it the timer's own; {rate / 1e3:.0f} K requests a second meanwhile",
        p99 <= _P99_MS and p999 <= _P999_MS,
        {"p99, ms": p99, "p99.9, ms": p999, "requests a second": rate},
    )


BOUNDS = {"open-64tib": open_cost, "loop-delay": loop_delay}
"""Name -> what measures it."""

LATENCY = "latency-read-4k"


def latency(shelf: Shelf, loop: str) -> Figure:
    """Percentiles of cached reads, ours on an image and fio's on a raw file."""
    recipe = Recipe(_LATENCY.size, ((0, _LATENCY.size),))
    (image,), (raw,) = (shelf.standing(recipe, kind) for kind in ("qed", "raw"))
    curves = []
    for style, (depth, engine) in enumerate(((1, "psync"), (64, "io_uring"))):
        ours = _child(f"latency-{depth}", image, loop)
        curves.append(_percentiles(f"qedasync, depth {depth}", 2 * style, ours))
        try:
            ended = process.run(fio.command(raw, replace(_LATENCY, depth=depth), engine))
        except process.Failed:
            continue
        theirs = fio.latencies(ended.stdout)
        curves.append(_percentiles(f"fio {engine}, depth {depth}", 2 * style + 1, theirs))
    return Figure(
        LATENCY,
        "Latency",
        "Cached 4 KiB reads: how long the slowest take",
        "From a call to its answer. A task that has not had its turn yet has not called; fio counts"
        " from when it hands a request to the kernel, and reads a raw file.",
        "so many of a hundred",
        "took at most",
        curves,
        x_unit="%",
        y_unit="ns",
        command=f"python -m benchmarks {LATENCY}",
    )


def _percentiles(name: str, style: int, found: dict[str, float]) -> Curve:
    """Over "one in so many", which spreads the nines out evenly."""
    points = [(1 / (1 - float(percent) / 100), ns) for percent, ns in found.items()]
    return Curve(name, style, sorted(points))


def _child(what: str, image: str, loop: str) -> dict[str, float]:
    ended = process.run([sys.executable, "-m", "benchmarks.limits", what, image, loop])
    answer: dict[str, float] = json.loads(ended.stdout)
    return answer


# --------------------------------------------------------------- in the child


async def _measure_open(image: str) -> dict[str, float]:
    small = image + ".small"
    await qedasync.create(small, MIB)  # what the first open of a process loads is not the image
    async with qedasync.open(small, "r"):
        pass
    before = _resident()
    begin = time.perf_counter()
    disk = await qedasync.open(image, "r+")
    seconds = time.perf_counter() - begin
    grown = _resident() - before
    await disk.close()
    await asyncio.to_thread(os.unlink, small)
    return {"ms": seconds * 1e3, "mib": grown / MIB}


def _resident() -> int:
    """Bytes of memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def _measure_delay(image: str) -> dict[str, float]:
    late: list[float] = []
    async with qedasync.open(image, "r+") as disk:
        stop = time.perf_counter() + _SECONDS
        counts = [0] * _TASKS
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_tick(stop, late))
            for task in range(_TASKS):
                tasks.create_task(_load(disk, task, stop, counts))
    late.sort()
    p99, p999 = late[int(len(late) * 0.99)], late[int(len(late) * 0.999)]
    return {"p99": p99 * 1e3, "p999": p999 * 1e3, "ticks": len(late), "requests": sum(counts)}


async def _tick(stop: float, late: list[float]) -> None:
    while (now := time.perf_counter()) < stop:
        await asyncio.sleep(_TICK)
        late.append(time.perf_counter() - now - _TICK)


async def _load(disk: qedasync.Image, task: int, stop: float, counts: list[int]) -> None:
    """Reads from the filled quarter, a write in place now and then, and some into new clusters."""
    data = bytes(4096)
    number = task
    while time.perf_counter() < stop:
        number += _TASKS
        offset = (number * 69632) % (256 << 20)
        if number % 10 < 7:
            await disk.pread(4096, offset)
        elif number % 50 < 49:
            await disk.pwrite(data, offset)
        else:
            await disk.pwrite(data, (256 << 20) + (number * 65536) % (768 << 20))
        counts[task] += 1


async def _measure_latency(image: str, depth: int) -> dict[str, float]:
    work = bench.Workload(
        rw=bench.Pattern.RANDREAD,
        block_size=_LATENCY.block,
        depth=depth,
        runtime=None,
        number=_LATENCY.count,
    )
    async with qedasync.open(image) as disk:
        result = await bench.Run(disk, work.fitted(disk.size)).run()
    found = result.reads.percentiles(fio.PERCENTS)
    return {str(percent): float(ns) for percent, ns in zip(fio.PERCENTS, found, strict=True)}


def _main(what: str, image: str, loop: str) -> None:
    name, _, depth = what.partition("-")
    if name == "latency":
        found = run_on(loop, _measure_latency(image, int(depth)))
    else:
        found = run_on(loop, {"open": _measure_open, "delay": _measure_delay}[name](image))
    print(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
