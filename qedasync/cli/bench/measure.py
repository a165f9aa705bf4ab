"""``qedasync bench`` in fio's words: opens or makes the image, runs the workload, reports."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from signal import SIGINT
from typing import Any, Literal, cast

import qedasync
from qedasync.bench import Report, Result, Run, Snapshot, Workload, format_size, make_image
from qedasync.cli.bench.page import page_file
from qedasync.cli.bench.qemu import check_native
from qedasync.cli.bench.workload import choice, either, workload
from qedasync.cli.common import CACHES, open_named
from qedasync.cli.options import Parsed, ToolError
from qedasync.cli.progress import progress_line
from qedasync.cli.run import program_name, run_async
from qedasync.errors import QEDError

__all__ = ["run"]

_MADE_SIZE = 256 << 20
_SIGNALLED = 128


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the options ask for besides the workload."""

    parsed: Parsed
    workload: Workload
    image: str | None
    cache: str
    storage: str
    loop: str
    command: str


def run(parsed: Parsed, words: Sequence[str]) -> int:
    """Do it; answers the exit code."""
    if len(parsed.names) > 1:
        raise ToolError("Expecting one image file name, or none")
    wish = _Wish(
        parsed=parsed,
        workload=workload(parsed),
        image=parsed.names[0] if parsed.names else None,
        cache=_cache(parsed),
        storage=choice(parsed, "storage", ("auto", "posix", "aiofiles", "memory"), "auto"),
        loop=_loop(parsed),
        command=shlex.join([program_name(), "bench", *words]),
    )
    as_json = _wants_json(parsed)
    loop_factory = _loop_factory(wish.loop)
    with page_file(parsed.last("html")) as write_page:
        report, signal = run_async(_bench(wish), loop_factory)
        write_page(report.html)
    print(json.dumps(report.json(), indent=2) if as_json else report.human())
    return _SIGNALLED + signal if signal else 0


def _cache(parsed: Parsed) -> str:
    cache = either(parsed, "cache", "t") or "writeback"
    if cache not in CACHES:
        raise ToolError(f"--cache is '{cache}'; it must be one of {', '.join(CACHES)}")
    check_native(parsed, "".join(parsed.names), cache)
    return cache


def _wants_json(parsed: Parsed) -> bool:
    choice(parsed, "output", ("human", "json"), "human")
    choice(parsed, "output-format", ("normal", "json"), "normal")
    return either(parsed, "output", "output-format") == "json"


def _loop(parsed: Parsed) -> str:
    word = choice(parsed, "loop", ("asyncio", "uvloop", ""), "")
    return word or ("uvloop" if find_spec("uvloop") else "asyncio")


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        raise ToolError("uvloop is not installed; choose --loop asyncio") from None
    return uvloop.new_event_loop


async def _bench(wish: _Wish) -> tuple[Report, int]:
    """The report, and the number of the signal that ended the run, 0 if none did."""
    async with _image(wish) as (path, name), _opened(wish, path) as (disk, fmt):
        workload = wish.workload.fitted(disk.size)
        allocated = await _allocated(disk)
        result, signal = await _measure(disk, workload, quiet=wish.parsed.has("q"))
        if workload.verify:
            await _check(disk)
        report = Report(
            result=result,
            image=name,
            image_size=disk.size,
            cluster_size=getattr(disk, "cluster_size", None),
            allocated=allocated,
            stats=getattr(disk, "stats", None),
            loop=wish.loop,
            storage=wish.storage,
            cache=wish.cache,
            format=fmt,
            command=wish.command,
        )
        return report, signal


# ------------------------------------------------------------------------- image


@asynccontextmanager
async def _image(wish: _Wish) -> AsyncIterator[tuple[str, str]]:
    """The image to measure and what to call it: the given one, or one made here."""
    if wish.image is not None:
        yield wish.image, wish.image
        return
    asked, keep = wish.workload, wish.parsed.has("keep")
    length = _MADE_SIZE if asked.size is None else asked.offset + asked.size
    with _directory(keep) as directory:
        say = partial(print, file=sys.stderr)
        path, origin = await make_image(directory, length, say=say)
        yield str(path), f"{path if keep else path.name}: {origin}"


@contextmanager
def _directory(keep: bool) -> Iterator[Path]:
    """A new directory, removed afterwards unless it is to be kept."""
    prefix = "qedasync-bench-"
    if keep:
        yield Path(tempfile.mkdtemp(prefix=prefix))
    else:
        with tempfile.TemporaryDirectory(prefix=prefix) as name:
            yield Path(name)


@asynccontextmanager
async def _opened(wish: _Wish, path: str) -> AsyncIterator[tuple[qedasync.Disk, str]]:
    """The open image, and its format."""
    writable = wish.workload.rw.writes
    if wish.storage == "auto":
        parsed = wish.parsed if wish.image is not None else Parsed()
        node = await open_named(parsed, path, writable=writable, cache=wish.cache)
        try:
            yield node.disk, node.format
        finally:
            await node.close()
        return
    fmt = wish.parsed.last("format") or (await qedasync.probe(path)).format
    mode: Literal["r", "r+"] = "r+" if writable else "r"
    cache = cast(Any, wish.cache)
    if fmt == "raw":
        opening: Any = qedasync.open_raw(path, mode, cache=cache, storage=wish.storage)
    else:
        opening = qedasync.open(path, mode, cache=cache, storage=wish.storage)
    async with opening as disk:
        yield disk, fmt


async def _allocated(disk: qedasync.Disk) -> float:
    """The share of the image that is data."""
    data = 0
    async for extent in disk.extents():
        if extent.kind == "data":
            data += extent.length
    return data / disk.size if disk.size else 0.0


async def _check(disk: qedasync.Disk) -> None:
    """Raise QEDError unless the image's tables are sound; a raw file has none."""
    if not isinstance(disk, qedasync.Image):
        return
    found = await disk.check()
    if not found.ok:
        raise QEDError(
            f"verify failed: after the run, the check of {disk.path!r} finds {found.corruptions}"
            f" corruptions and {found.check_errors} tables that cannot be read"
        )


# --------------------------------------------------------------------------- run


async def _measure(disk: qedasync.Disk, workload: Workload, *, quiet: bool) -> tuple[Result, int]:
    """Run the workload; an interrupt ends it early, and its number is answered."""
    with progress_line() as show:
        tell = None if quiet else lambda now: show(now.done, _line(now))
        run = Run(disk, workload, progress=tell)
        task = asyncio.ensure_future(run.run())
        try:
            return await asyncio.shield(task), 0
        except asyncio.CancelledError as cancelled:
            run.stop()
            result = await task
            current = asyncio.current_task()
            assert current is not None
            current.uncancel()
            return result, next(iter(cancelled.args), SIGINT)


def _line(now: Snapshot) -> str:
    workload, rates = now.workload, []
    for name, n, length in (
        ("read", now.reads, workload.block_size),
        ("write", now.writes, workload.write_length),
        ("trim", now.trims, workload.write_length),
    ):
        if n:
            per_second = n / now.elapsed
            rates.append(f"{name} {per_second:,.0f} IOPS {format_size(per_second * length)}/s")
    return f"{now.elapsed:.1f} s  {', '.join(rates)}"
