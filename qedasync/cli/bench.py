"""``qedasync bench``: measure an image, or one made for the purpose.

An image that is given is never written to without ``--write``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import qedasync
from qedasync.bench import Pattern, Report, Result, Run, Snapshot, Workload, format_size, make_image
from qedasync.cli.arguments import Parser, size
from qedasync.cli.progress import progress_line
from qedasync.errors import QEDError, RequestError

__all__ = ["main"]

_MADE_SIZE = 256 << 20
_INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Run ``qedasync bench``; answers the exit code."""
    options = _parser().parse_args(arguments)
    workload = _workload(options)
    options.loop = options.loop or ("uvloop" if find_spec("uvloop") else "asyncio")
    with asyncio.Runner(loop_factory=_loop_factory(options.loop)) as runner:
        report = runner.run(_bench(options, workload))
    if options.output == "json":
        print(json.dumps(report.json(), indent=2))
    else:
        print(report.human())
    return _INTERRUPTED if report.result.interrupted else 0


def _parser() -> Parser:
    parser = Parser("bench", "Measure concurrent reads and writes of a QED image, in fio's words.")
    parser.add_argument(
        "image",
        nargs="?",
        help="the image; without one, a real file system is made into one, and removed afterwards",
    )
    _add_workload(parser)
    _add_surroundings(parser)
    return parser


def _add_workload(parser: Parser) -> None:
    group = parser.add_argument_group("workload")
    group.add_argument(
        "--rw",
        choices=[str(pattern) for pattern in Pattern],
        help="kind of operations (default: randrw; randread for a given image without --write)",
    )
    group.add_argument("--bs", type=size, default="4k", help="bytes of an operation")
    group.add_argument("--iodepth", type=int, default=64, help="operations in flight")
    group.add_argument("--runtime", type=float, help="seconds to run (default: 5, or --number)")
    group.add_argument("--number", type=int, help="operations to do (default: no limit)")
    group.add_argument("--rwmixread", type=int, default=70, help="percentage of reads in a mix")
    group.add_argument("--offset", type=size, default="0", help="where in the image to begin")
    group.add_argument(
        "--size",
        type=size,
        help="bytes of the image to work on (default: to its end); also the made image's size",
    )
    group.add_argument("--seed", type=int, default=0, help="of the random numbers")
    group.add_argument(
        "--flush-interval", type=int, default=0, help="flush after so many writes; 0 for never"
    )
    group.add_argument(
        "--verify", action="store_true", help="stamp what is written and check what is read"
    )


def _add_surroundings(parser: Parser) -> None:
    group = parser.add_argument_group("surroundings")
    group.add_argument("--write", action="store_true", help="allow writing to the given image")
    group.add_argument("--keep", action="store_true", help="do not remove the image made")
    group.add_argument(
        "--cache",
        choices=["writeback", "writethrough", "none", "unsafe"],
        default="writeback",
        help="when writes are durable",
    )
    group.add_argument(
        "--storage",
        choices=["auto", "posix", "aiofiles", "memory"],
        default="auto",
        help="what moves the bytes",
    )
    group.add_argument(
        "--loop", choices=["asyncio", "uvloop"], help="event loop (default: uvloop where it is)"
    )
    group.add_argument("--output", choices=["human", "json"], default="human", help="report's form")


def _workload(options: argparse.Namespace) -> Workload:
    """The workload that was asked for; refuses writes that were not allowed."""
    given_readonly = options.image is not None and not options.write
    rw = Pattern(options.rw or ("randread" if given_readonly else "randrw"))
    if rw.writes and given_readonly:
        raise RequestError(
            f"bench: --rw {rw} would overwrite data in {options.image!r};"
            " add --write if that is wanted, or choose randread or read"
        )
    runtime = options.runtime
    if runtime is None and options.number is None:
        runtime = 5.0
    return Workload(
        rw=rw,
        block_size=options.bs,
        depth=options.iodepth,
        runtime=runtime,
        number=options.number,
        read_percent=options.rwmixread,
        offset=options.offset,
        size=options.size,
        seed=options.seed,
        flush_interval=options.flush_interval,
        verify=options.verify,
    )


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        raise RequestError("bench: uvloop is not installed; choose --loop asyncio") from None
    return uvloop.new_event_loop


async def _bench(options: argparse.Namespace, workload: Workload) -> Report:
    mode: Literal["r", "r+"] = "r+" if workload.rw.writes else "r"
    async with _image(options, workload) as (path, name):
        opening = qedasync.open(path, mode, cache=options.cache, storage=options.storage)
        async with opening as image:
            workload = workload.fitted(image.size)
            allocated = await _allocated(image)
            result = await _measure(image, workload)
            if workload.verify:
                await _check(image)
            return Report(
                result=result,
                image=name,
                image_size=image.size,
                cluster_size=image.cluster_size,
                allocated=allocated,
                stats=image.stats,
                loop=options.loop,
                storage=options.storage,
                cache=options.cache,
            )


@asynccontextmanager
async def _image(
    options: argparse.Namespace, workload: Workload
) -> AsyncIterator[tuple[Path, str]]:
    """The image to measure and what to call it: the given one, or one made here."""
    if options.image is not None:
        yield Path(options.image), options.image
        return
    length = _MADE_SIZE if workload.size is None else workload.offset + workload.size
    with _directory(options.keep) as directory:
        path, origin = await make_image(directory, length, say=partial(print, file=sys.stderr))
        yield path, f"{path if options.keep else path.name}: {origin}"


@contextmanager
def _directory(keep: bool) -> Iterator[Path]:
    """A new directory, removed afterwards unless it is to be kept."""
    prefix = "qedasync-bench-"
    if keep:
        yield Path(tempfile.mkdtemp(prefix=prefix))
    else:
        with tempfile.TemporaryDirectory(prefix=prefix) as name:
            yield Path(name)


async def _allocated(image: qedasync.Image) -> float:
    """The share of the image that is data."""
    data = 0
    async for extent in image.extents():
        if extent.kind == "data":
            data += extent.length
    return data / image.size if image.size else 0.0


async def _measure(image: qedasync.Image, workload: Workload) -> Result:
    """Run the workload; an interrupt ends it early."""
    with progress_line() as show:
        run = Run(image, workload, progress=lambda now: show(now.done, _line(now)))
        with _interrupt_calls(run.stop):
            return await run.run()


async def _check(image: qedasync.Image) -> None:
    """Raise QEDError unless the image's tables are sound."""
    found = await image.check()
    if not found.ok:
        raise QEDError(
            f"verify failed: after the run, the check of {image.path!r} finds {found.corruptions}"
            f" corruptions and {found.check_errors} tables that cannot be read"
        )


def _line(now: Snapshot) -> str:
    rates = [
        f"{name} {n / now.elapsed:,.0f} IOPS {format_size(n * now.block_size / now.elapsed)}/s"
        for name, n in (("read", now.reads), ("write", now.writes))
        if n
    ]
    return f"{now.elapsed:.1f} s  {', '.join(rates)}"


@contextmanager
def _interrupt_calls(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls ``stop``; the next one is an ordinary one."""
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop()

    with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows; not the main thread
        loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_signal_handler(signal.SIGINT)
