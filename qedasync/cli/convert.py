"""``qedasync convert``: images as another one, of another format, geometry or backing file."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from qedasync.cli.common import (
    BACKING,
    BACKING_FORMATS,
    CACHES,
    FORCE_SHARE,
    FORMATS,
    IMAGE_OPTS,
    OBJECT,
    QUIET,
    cache_word,
    is_path,
    open_named,
    refuse_object,
)
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, parse
from qedasync.cli.progress import PROGRESS_OPTIONS, Report, progress, progress_mode
from qedasync.cli.run import say
from qedasync.errors import QEDError

if TYPE_CHECKING:
    from qedasync.cli.format_options import Values
    from qedasync.cli.nodes import Node
    from qedasync.cli.witness import Failure, Witness

__all__ = ["VERB", "main"]

VERB = Verb(
    name="convert",
    summary="write images as a new one: raw or QED, flat or over a backing file",
    names="SOURCE... TARGET",
    options=(
        Option("f", "", "FMT", "the sources' format; looked for unless said", FORMATS),
        Option("O", "", "FMT", "the target's format; raw unless said", FORMATS),
        Option("B", "", "FILE", "the target's backing file: has what the source's one has"),
        Option("F", "", "FMT", "the format of the target's backing file", BACKING_FORMATS),
        Option("o", "", "OPTIONS", "the target's options, as for create; 'help' lists them"),
        Option("n", "", "", "write into TARGET, which is there already and large enough"),
        Option("S", "", "SIZE", "zeroes of that many bytes are left out (4k); 0: write them all"),
        Option("m", "", "N", "so many pieces at a time, 1 to 16 (8)"),
        Option("W", "", "", "pieces may be written in any order"),
        Option("t", "", "CACHE", "how the target is written (unsafe)", CACHES),
        Option("T", "", "CACHE", "how the sources are read (writeback)", CACHES),
        Option("r", "", "RATE", "write at most so many bytes a second"),
        *PROGRESS_OPTIONS,
        QUIET,
        FORCE_SHARE,
        Option("", "target-is-zero", "", "with -n: TARGET reads as zeroes everywhere"),
        Option("", "salvage", "", "go on where a source cannot be read: there, write zeroes"),
        IMAGE_OPTS,
        Option("", "target-image-opts", "", "TARGET is options: driver=qed,file.filename=..."),
        Option("c", "", "", "compress: refused"),
        Option("C", "", "", "let the host copy: accepted"),
        Option("l", "", "SNAPSHOT", "refused: there are no snapshots in QED"),
        Option("", "bitmaps", "", "refused: there are no bitmaps in QED"),
        Option("", "skip-broken-bitmaps", "", "goes with --bitmaps"),
        OBJECT,
        BACKING,
    ),
    text="""\
    Writes TARGET anew. Several sources are put one behind the other. What reads as zeroes takes no
    room in the target. A source's backing files are read too, so that TARGET needs none; with -B
    only what the source itself holds is written, over a backing file of the same content.

    TARGET has its name when it is whole: if anything goes wrong, or convert is killed, what had the
    name before still has it. A kill may leave a file '.qedasync-....part' beside it. With -n, and
    if TARGET is a device, it is written where it is.
    """,
    examples=(
        Example("qedasync convert -O qed disk.raw disk.qed", "A QED image of a raw disk"),
        Example("qedasync convert -p overlay.qed flat.raw", "All of an overlay as a raw disk"),
        Example(
            "qedasync convert -O qed -B base.qed -F qed overlay.qed copy.qed",
            "An overlay as an overlay",
        ),
        Example(
            "qedasync convert -O qed -o cluster_size=4k,table_size=2 disk.qed small.qed",
            "Other clusters",
        ),
    ),
)

_MAX_SPARSE = 16 << 20
_MAX_TASKS = 16
_PAGE = 4096


@dataclass(slots=True)
class _Wish:
    """The command line, understood.

    Attributes:
        min_zero: bytes; 0 for none is left out.
        rate: bytes a second; 0 for no limit.
    """

    parsed: Parsed
    sources: list[str]
    target: str
    format: str | None
    min_zero: int = 4096
    tasks: int = 8
    rate: int = 0

    @property
    def names(self) -> list[str]:
        """Of all images."""
        return [*self.sources, self.target]

    def has(self, key: str) -> bool:
        return self.parsed.has(key)


def main(words: Sequence[str]) -> int:
    """Run ``qedasync convert``; answers the exit code."""
    from qedasync.cli.format_options import asks_for_help, help_text, join_words
    from qedasync.cli.run import run_async

    parsed = parse(VERB, words)
    text = join_words(parsed.all("o"))
    wish = _understand(parsed)
    if asks_for_help(text) and wish.format is not None:
        print(help_text(wish.format, with_file=bool(wish.sources)))
        return 0
    if not wish.sources:
        raise ToolError("Must specify image file name")
    cache_word(parsed, "T", "source cache")
    with progress(progress_mode(parsed), "convert") as report:
        run_async(_convert(wish, text, report), brief=all(map(is_path, wish.names)))
        report(1, 1)
    return 0


# ------------------------------------------------------------------ the options


def _understand(parsed: Parsed) -> _Wish:
    refuse_object(parsed)
    fmt = parsed.last("O", None if parsed.has("target-image-opts") else "raw")
    wish = _Wish(parsed, parsed.names[:-1], parsed.names[-1] if parsed.names else "", fmt)
    _understand_numbers(parsed, wish)
    for problem, found in _conflicts(parsed):
        if found:
            raise ToolError(problem)
    return wish


def _understand_numbers(parsed: Parsed, wish: _Wish) -> None:
    from qedasync.cli.sizes import size_word

    what = "buffer size for sparse output"
    for word in parsed.all("S"):
        wish.min_zero = size_word(what, word)
        if wish.min_zero > _MAX_SPARSE or wish.min_zero % 512:
            raise ToolError(
                f"Invalid {what} specified. Valid sizes are multiples of 512 up to {_MAX_SPARSE}."
                " Select 0 to disable sparse detection (fully allocates output)."
            )
        wish.min_zero = -(-wish.min_zero // _PAGE) * _PAGE  # what is looked at as one
    for word in parsed.all("m"):
        if not word.strip().isdecimal() or not 1 <= int(word) <= _MAX_TASKS:
            raise ToolError(
                "Invalid number of coroutines. Allowed number of coroutines is between 1 and"
                f" {_MAX_TASKS}"
            )
        wish.tasks = int(word)
    for word in parsed.all("r"):
        wish.rate = size_word("rate limit", word)


def _conflicts(parsed: Parsed) -> list[tuple[str, bool]]:
    """What cannot go together, in the order qemu-img looks."""
    has = parsed.has
    return [
        ("Use of --skip-broken-bitmaps requires --bitmaps",
         has("skip-broken-bitmaps") and not has("bitmaps")),
        ("-o has no effect when skipping image creation", has("n") and has("o")),
        ("--target-image-opts requires use of -n flag",
         has("target-image-opts") and not has("n")),
        ("--target-is-zero requires use of -n flag", has("target-is-zero") and not has("n")),
        ("Cannot enable copy offloading when -S is used", has("C") and has("S")),
        ("Cannot enable copy offloading when -c is used", has("C") and has("c")),
        ("Cannot use copy offloading in salvaging mode", has("C") and has("salvage")),
    ]  # fmt: skip


def _refuse(wish: _Wish, sources: list[Node], backing: str | None, backing_fmt: str | None) -> None:
    """What neither format can do, once it is known what the sources are."""
    if backing is not None and backing_fmt is None and not wish.has("n"):
        raise ToolError("Use of backing file requires explicit backing format")
    if backing is not None and len(sources) > 1:
        raise ToolError(
            "Having a backing file for the target makes no sense when concatenating multiple input"
            " images"
        )
    if wish.has("c"):
        raise ToolError("Compression not supported for this file format")
    if wish.has("bitmaps"):
        raise ToolError("Source lacks bitmap support")


def _refuse_snapshot(wish: _Wish, sources: list[Node]) -> None:
    text = wish.parsed.last("l")
    if text is None:
        return
    if text.startswith("snapshot."):
        key = text.partition("=")[0]
        if key not in ("snapshot.id", "snapshot.name"):
            raise ToolError(f"Invalid parameter '{key}' Failed in parsing snapshot param '{text}'")
    elif len(sources) > 1:
        raise ToolError("No support for concatenating multiple snapshot")
    raise ToolError(
        f"Failed to load snapshot: Block format '{sources[0].format}' used by device '' does not"
        " support temporarily loading internal snapshots"
    )


# ---------------------------------------------------------------------- the job


async def _convert(wish: _Wish, text: str, report: Report) -> None:
    from qedasync.cli.witness import closing

    async with AsyncExitStack() as stack:
        sources = []
        for name in wish.sources:
            source = await open_named(wish.parsed, name, cache=wish.parsed.last("T", "writeback"))
            sources.append(await stack.enter_async_context(closing(source)))
        _refuse_snapshot(wish, sources)
        size = sum(source.disk.size for source in sources)
        values = {} if wish.has("n") else _values(wish, text, size)
        backing = _backing(wish, values, "backing_file", "B")
        _refuse(wish, sources, backing, _backing(wish, values, "backing_fmt", "F"))
        await _refuse_own_source(wish, sources)
        target = await stack.enter_async_context(_target(wish, values))
        if wish.has("n") and target.disk.size < size:
            raise ToolError("output file is smaller than input file")
        if wish.has("target-is-zero") and backing is not None:
            raise ToolError(
                "Cannot use --target-is-zero when the destination image has a backing file"
            )
        await _copy(wish, sources, target, backing is not None, report)


def _values(wish: _Wish, text: str, size: int) -> Values:
    """The new image's options."""
    from qedasync.cli.format_options import parse_format_options

    fmt = wish.format or ""
    if fmt not in FORMATS:
        raise ToolError(f"Unknown file format '{fmt}'")
    try:
        values = parse_format_options(text, fmt, "")
    except ToolError as error:
        raise ToolError(str(error).removeprefix(": ")) from error
    for letter, name, what in (("B", "backing_file", "file"), ("F", "backing_fmt", "file format")):
        given = wish.parsed.last(letter)
        if given is None:
            continue
        if fmt == "raw":
            raise ToolError(f"Backing {what} not supported for file format 'raw'")
        values[name] = given
    return {**values, "size": size}


def _backing(wish: _Wish, values: Values, name: str, letter: str) -> str | None:
    """A word about the target's backing file: among its options or by itself."""
    word = values.get(name, wish.parsed.last(letter))
    return None if word is None else str(word)


async def _refuse_own_source(wish: _Wish, sources: list[Node]) -> None:
    """What is read cannot be written, not even as a backing file, which has no such lock."""
    from qedasync.cli.chain import is_in_chain

    for source in sources:
        if not wish.has("target-image-opts") and await is_in_chain(source, wish.target):
            what = "Could not open '{}'" if wish.has("n") else "{}: error while converting {}"
            raise ToolError(
                f'{what.format(wish.target, wish.format)}: Failed to get "write" lock'
                f" Is another process using the image [{wish.target}]?"
            )


@asynccontextmanager
async def _target(wish: _Wish, values: Values) -> AsyncIterator[Node]:
    """What is written: a new image, or with ``-n`` one that is there."""
    from qedasync.cli.nodes import access_from, open_node
    from qedasync.cli.target import NewImage, flush, new_image
    from qedasync.cli.witness import closing

    parsed = wish.parsed
    cache = cache_word(parsed, "t", default="unsafe")
    access = access_from(parsed, writable=True, cache=cache, force_share=False)
    if not wish.has("n"):
        doing = f"error while converting {wish.format}"
        new = NewImage(wish.target, wish.format or "", values, doing, access)
        async with new_image(new) as node:
            yield node
        return
    if wish.has("target-image-opts") and wish.format is not None:
        raise ToolError("--image-opts and --format are mutually exclusive")
    options = wish.has("target-image-opts")
    node = await open_node(wish.target, wish.format, access, image_opts=options)
    async with closing(node):
        yield node
        await flush(node, wish.target)


async def _copy(
    wish: _Wish, sources: list[Node], target: Node, top_only: bool, report: Report
) -> None:
    """One source after the other into the target."""
    from qedasync.cli.witness import Over, Pace, Witness
    from qedasync.jobs.copying import copy

    new = not wish.has("n") and bool(target.file) and stat.S_ISREG(os.stat(target.file).st_mode)
    out = Witness(target.disk, pace=Pace(wish.rate))
    salvaging = _warn if wish.has("salvage") else None
    if wish.has("q") and salvaging:
        salvaging = _be_quiet
    total, start = sum(source.disk.size for source in sources), 0
    for source in sources:
        disk = Over(source.disk, target.disk) if top_only else source.disk
        into = Witness(disk, opaque=wish.min_zero == 0, salvaging=salvaging)
        try:
            await copy(
                into,
                out,
                tasks=wish.tasks,
                in_order=not wish.has("W"),
                min_zero=wish.min_zero,
                target_is_zero=not top_only and (new or wish.has("target-is-zero")),
                top_only=top_only,
                salvage=salvaging is not None,
                progress=partial(_further, report, start, total),
                start=start,
                alone=new,
            )
        except QEDError as error:
            raise _explained(into, out, start) or error from error
        start += source.disk.size


def _further(report: Report, start: int, total: int, done: int, of: int) -> None:
    report(start + done, total)


def _explained(source: Witness, target: Witness, start: int) -> ToolError | None:
    """The first failure in qemu-img's words."""
    failure = source.failure or target.failure
    if failure is None:
        return None
    what = {
        "status": "reading block status at offset",
        "read": "reading at byte",
        "write": "writing at byte",
        "flush": "flushing after byte",
    }[failure.what]
    place = failure.offset if failure is target.failure else start + failure.offset
    return ToolError(f"error while {what} {place}: {failure.reason}")


def _warn(failure: Failure) -> None:
    what = "block status at offset" if failure.what == "status" else "offset"
    say(f"warning: error while reading {what} {failure.offset}: {failure.reason}")


def _be_quiet(failure: Failure) -> None:
    """With ``-q``."""
