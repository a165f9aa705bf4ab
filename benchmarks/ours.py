"""One run of a workload by qedasync, in a process of its own.

``python -m benchmarks.ours IMAGE JSON [LOOP [IMAGE ...]]`` prints what the requests took, as JSON;
opening and closing are left out, as ``qemu-img bench`` does. The loop is ``uvloop`` (the default)
or ``asyncio``. With several images, all on one loop, each gets its share of requests and tasks.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from typing import Any, TypeVar

import uvloop

import qedasync
from benchmarks.workload import Workload
from qedasync.bench import Stream, run_stream

__all__ = ["run", "run_on"]

T = TypeVar("T")

Worker = Callable[[qedasync.Image, int, Iterator[int]], Coroutine[Any, Any, None]]


async def run(images: Sequence[str], work: Workload) -> dict[str, float]:
    """Seconds, and processor seconds, for the whole stream, ``work.depth`` tasks at once."""
    opened = partial(
        qedasync.open,
        mode="r+" if work.write else "r",
        cache=work.cache,  # type: ignore[arg-type]
        map=work.mapped,
    )
    async with AsyncExitStack() as stack:
        disks = [await stack.enter_async_context(opened(path)) for path in images]
        jobs = [_flushing(disks[0], work)] if work.flush_every else _tasks(disks, work)
        begin, used = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as tasks:
            for job in jobs:
                tasks.create_task(job)
        return {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - used}


def _tasks(disks: Sequence[qedasync.Image], work: Workload) -> list[Coroutine[Any, Any, None]]:
    share = work.shared(len(disks))
    positions, depth = share.positions(), share.depth
    jobs: list[Coroutine[Any, Any, None]] = []
    for disk in disks:
        if work.read_percent:
            mixed = zip(map(work.reads, count()), positions, strict=False)
            jobs += [_mix(disk, work.block, mixed) for _ in range(depth)]
        else:
            worker = _worker(work)
            stream = iter(positions)
            jobs += [worker(disk, work.block, stream) for _ in range(depth)]
    return jobs


def _worker(work: Workload) -> Worker:
    if work.write:
        return _zero if work.zero else _write
    return _view if work.view else _read


async def _read(disk: qedasync.Image, block: int, positions: Iterator[int]) -> None:
    for pos in positions:
        await disk.pread(block, pos)


async def _view(disk: qedasync.Image, block: int, positions: Iterator[int]) -> None:
    for pos in positions:
        await disk.read_view(block, pos)


async def _write(disk: qedasync.Image, block: int, positions: Iterator[int]) -> None:
    data = bytes(block)
    for pos in positions:
        await disk.pwrite(data, pos)


async def _zero(disk: qedasync.Image, block: int, positions: Iterator[int]) -> None:
    for pos in positions:
        await disk.write_zeroes(block, pos)


async def _mix(disk: qedasync.Image, block: int, stream: Iterator[tuple[bool, int]]) -> None:
    data = bytes(block)
    for reads, pos in stream:
        if reads:
            await disk.pread(block, pos)
        else:
            await disk.pwrite(data, pos)


async def _flushing(disk: qedasync.Image, work: Workload) -> None:
    """Writes with flushes between, the way ``qemu-img bench --flush-interval`` has it."""
    stream = Stream(
        work.count, work.depth, work.block, work.step, work.start, True, 0, work.flush_every
    )
    await run_stream(disk, stream, disk.size)


def run_on(loop: str, job: Coroutine[Any, Any, T]) -> T:
    """The job's result, from a new loop."""
    return uvloop.run(job) if loop == "uvloop" else asyncio.run(job)


if __name__ == "__main__":
    image, wish, chosen, *more = [*sys.argv[1:], *["uvloop"][len(sys.argv) - 3 :]]
    print(json.dumps(run_on(chosen, run([image, *more], Workload(**json.loads(wish))))))
