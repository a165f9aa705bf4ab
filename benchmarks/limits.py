"""Claims that have no rival, only a bound: what opening costs, and what the loop has to bear."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import qedasync
from benchmarks import qemu
from benchmarks.ours import run_on

__all__ = ["loop_delay", "open_cost"]

_OPEN_MS, _OPEN_MIB = 10.0, 4.0
_P99_MS, _P999_MS = 2.0, 10.0
_TASKS = 64
_SECONDS = 5.0
_TICK = 0.001


def open_cost(directory: Path, loop: str) -> dict[str, object]:
    """Opening an image of 64 TiB: milliseconds and memory, each open in a process of its own."""
    image = directory / "64t.qed"
    qemu.create(str(image), 64 << 40)
    runs = [_child("open", image, loop) for _ in range(5)]
    milliseconds = statistics.median(run["ms"] for run in runs)
    mebibytes = statistics.median(run["mib"] for run in runs)
    holds = milliseconds <= _OPEN_MS and mebibytes <= _OPEN_MIB
    return {
        "name": "open-64tib",
        "ms": milliseconds,
        "mib": mebibytes,
        "text": f"{milliseconds:.2f} ms (bar {_OPEN_MS:g}), {mebibytes:.2f} MiB more memory"
        f" (bar {_OPEN_MIB:g}) {'holds' if holds else 'MISSED'}",
    }


def loop_delay(directory: Path, loop: str) -> dict[str, object]:
    """How late a 1 ms timer is while 64 tasks read and write flat out."""
    image = directory / "delay.qed"
    qemu.create(str(image), 1 << 30)
    qemu.fill(str(image), [(0, 256 << 20)])
    runs = [_child("delay", image, loop) for _ in range(3)]
    p99 = statistics.median(run["p99"] for run in runs)
    p999 = statistics.median(run["p999"] for run in runs)
    holds = p99 <= _P99_MS and p999 <= _P999_MS
    return {
        "name": "loop-delay",
        "p99_ms": p99,
        "p999_ms": p999,
        "text": f"p99 {p99:.2f} ms (bar {_P99_MS:g}), p99.9 {p999:.2f} ms (bar {_P999_MS:g})"
        f" {'holds' if holds else 'MISSED'}; {runs[0]['requests'] / _SECONDS / 1e3:.0f} K"
        " requests/s meanwhile",
    }


def _child(what: str, image: Path, loop: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.limits", what, str(image), loop]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


async def _measure_open(image: str) -> float:
    small = image + ".small"
    await qedasync.create(small, 1 << 20)  # what the first open of a process loads is not the image
    async with qedasync.open(small, "r"):
        pass
    before = _resident()
    begin = time.perf_counter()
    disk = await qedasync.open(image, "r+")
    seconds = time.perf_counter() - begin
    grown = _resident() - before
    await disk.close()
    print(json.dumps({"ms": seconds * 1e3, "mib": grown / (1 << 20)}))
    return seconds


def _resident() -> int:
    """Bytes of memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def _measure_delay(image: str) -> float:
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
    answer = {"p99": p99 * 1e3, "p999": p999 * 1e3, "ticks": len(late), "requests": sum(counts)}
    print(json.dumps(answer))
    return p99


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


if __name__ == "__main__":
    measure = {"open": _measure_open, "delay": _measure_delay}[sys.argv[1]]
    run_on(sys.argv[3], measure(sys.argv[2]))
