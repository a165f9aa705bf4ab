"""Rivals in Python: how programs read a file from an asyncio loop when they have no qedasync.

``python -m benchmarks.handmade WAY FILE JSON [LOOP]`` prints what it took, as JSON. The file is
raw: these ways know no images.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from importlib import import_module
from importlib.util import find_spec

import aiofiles

from benchmarks.ours import run_on
from benchmarks.workload import Workload

__all__ = ["WAYS", "is_there", "run"]

Reader = Callable[[int, int], Awaitable[object]]
"""Reads so many bytes at an offset."""


async def run(way: str, path: str, work: Workload) -> dict[str, float]:
    """Seconds, and processor seconds, for a stream of reads, ``work.depth`` tasks at once."""
    async with AsyncExitStack() as stack:
        readers = [await WAYS[way](stack, path) for _ in range(work.depth)]
        positions = iter(work.positions())
        begin, used = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as tasks:
            for reader in readers:
                tasks.create_task(_work(reader, work.block, positions))
        return {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - used}


async def _work(read: Reader, block: int, positions: Iterator[int]) -> None:
    for pos in positions:
        await read(block, pos)


async def _aiofiles(stack: AsyncExitStack, path: str) -> Reader:
    """A handle for each task: between a seek and its read nobody else may seek."""
    file = await stack.enter_async_context(aiofiles.open(path, "rb", buffering=0))

    async def read(block: int, pos: int) -> object:
        await file.seek(pos)
        return await file.read(block)

    return read


async def _aiofile(stack: AsyncExitStack, path: str) -> Reader:
    # By name: the package need not be there, for the type checker neither.
    file = await stack.enter_async_context(import_module("aiofile").AIOFile(path, "rb"))

    async def read(block: int, pos: int) -> object:
        return await file.read_bytes(block, pos)

    return read


async def _executor(stack: AsyncExitStack, path: str) -> Reader:
    loop = asyncio.get_running_loop()
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)

    def read(block: int, pos: int) -> Awaitable[object]:
        return loop.run_in_executor(None, os.pread, fd, block, pos)

    return read


WAYS = {"aiofiles": _aiofiles, "aiofile": _aiofile, "executor": _executor}


def is_there(way: str) -> bool:
    """Whether the package that a way needs is installed."""
    return way == "executor" or find_spec(way) is not None


if __name__ == "__main__":
    way, path, wish, *chosen = sys.argv[1:]
    loop = chosen[0] if chosen else "uvloop"
    print(json.dumps(run_on(loop, run(way, path, Workload(**json.loads(wish))))))
