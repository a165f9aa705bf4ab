"""``qedasync rebase``: another backing file under an overlay, or none."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
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
    beside,
    cache_word,
    is_path,
    one_name,
    open_named,
    refuse_object,
)
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, parse
from qedasync.cli.progress import PROGRESS_OPTIONS, Report, progress, progress_mode
from qedasync.errors import BackingError, QEDError

if TYPE_CHECKING:
    from qedasync.cli.nodes import Node
    from qedasync.cli.witness import Witness

__all__ = ["VERB", "main"]

VERB = Verb(
    name="rebase",
    summary="put an overlay on another backing file, or on none",
    names="FILENAME",
    options=(
        Option("f", "", "FMT", "the image's format; looked for unless said", FORMATS),
        Option("b", "", "FILE", "the new backing file; '' for none. Starts where the image is"),
        Option("F", "", "FMT", "its format; needed with -b", BACKING_FORMATS),
        Option("u", "", "", "only write the name: for a file of the same content that has moved"),
        Option("t", "", "CACHE", "how the image is written (writeback)", CACHES),
        Option("T", "", "CACHE", "how the new backing file is read (writeback)", CACHES),
        *PROGRESS_OPTIONS,
        QUIET,
        FORCE_SHARE,
        IMAGE_OPTS,
        OBJECT,
        BACKING,
    ),
    text="""\
    The image reads the same afterwards: where the old and the new backing file differ, the old
    content is copied into the image first. Whenever it ends, killed or by an error, the image reads
    the same, too; then start it again.

    With -u nothing is compared or opened, and the image reads what the new file has.
    """,
    examples=(
        Example("qedasync rebase -b other.qed -F qed overlay.qed", "Another backing file"),
        Example("qedasync rebase -p -b '' overlay.qed", "No backing file: all is in the image"),
        Example("qedasync rebase -u -b moved.raw -F raw overlay.qed", "The file has a new name"),
    ),
)


def main(words: Sequence[str]) -> int:
    """Run ``qedasync rebase``; answers the exit code."""
    from qedasync.cli.run import run_async, run_early

    parsed = parse(VERB, words)
    refuse_object(parsed)
    name = one_name(parsed)
    if not parsed.has("u") and not parsed.has("b"):
        raise ToolError("Must specify backing file (-b) or use unsafe mode (-u)")
    with progress(progress_mode(parsed), "rebase") as report:
        cache = cache_word(parsed, "t")
        cache_word(parsed, "T", "source cache")
        if parsed.has("u"):
            run_early(lambda at_once: _rebase(parsed, name, cache, report, at_once=at_once))
        else:
            work = _rebase(parsed, name, cache, report, at_once=False)
            run_async(work, brief=is_path(name))
        report(1, 1)
    return 0


async def _rebase(parsed: Parsed, name: str, cache: str, report: Report, *, at_once: bool) -> None:
    from qedasync.cli.witness import closing

    unsafe = parsed.has("u")
    node = await open_named(
        parsed,
        name,
        writable=True,
        cache=cache,
        force_share=False,
        no_backing=unsafe,
        at_once=at_once,
    )
    async with closing(node):
        _check_format(parsed)
        if node.format != "qed":
            raise _refusal(parsed, os.strerror(errno.ENOTSUP))
        if unsafe:
            await _rename(parsed, node)
        else:
            await _move(parsed, node, report)


def _check_format(parsed: Parsed) -> None:
    fmt = parsed.last("F")
    if fmt is not None and fmt not in BACKING_FORMATS:
        raise ToolError(f"Invalid format name: '{fmt}'")


def _format_to_record(parsed: Parsed) -> str | None:
    """An image can say that its backing file is raw, and of no other format."""
    fmt = parsed.last("F")
    return fmt if fmt in FORMATS else None


def _refusal(parsed: Parsed, why: str) -> ToolError:
    name = parsed.last("b", "(null)")
    return ToolError(f"Could not change the backing file to '{name}': {why}")


def _check_named(parsed: Parsed) -> None:
    """Differs from QEMU: it copies first, and says so then."""
    if parsed.last("b") and not parsed.has("F"):
        raise _refusal(parsed, "backing format must be specified")


async def _rename(parsed: Parsed, node: Node) -> None:
    """Only the name."""
    from qedasync.cli.witness import reason

    _check_named(parsed)
    try:
        await node.disk.change_backing_file(parsed.last("b") or None, _format_to_record(parsed))
    except QEDError as error:
        raise _refusal(parsed, _why(error) or reason(error)) from error


def _why(error: QEDError) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC
    return "No space left in the file header" if full else ""


async def _move(parsed: Parsed, node: Node, report: Report) -> None:
    """The safe way."""
    from qedasync.cli.witness import Witness

    name = parsed.last("b") or None
    _check_named(parsed)
    new = None
    if name is not None:
        new = Witness((await _open_new(parsed, node, name)).disk)
    try:
        await _look_at_all(node)
    except ToolError:
        if new is not None:
            await new.close()
        raise
    backing = {} if new is None else {"backing": new}
    fmt = _format_to_record(parsed)
    try:
        await node.disk.rebase(name, format=fmt, progress=report, **backing)
    except QEDError as error:
        raise _explained(parsed, error, new) from error


async def _open_new(parsed: Parsed, node: Node, name: str) -> Node:
    """The new backing file; the policy is for what it names itself."""
    from qedasync.cli.chain import is_same
    from qedasync.cli.nodes import access_from, open_node

    path = beside(node.file, name)
    # Differs from QEMU: with -U it puts an image on itself, and nobody can open that again.
    same = is_same(path, node.file)
    access = access_from(parsed, cache=parsed.last("T", "writeback"))
    try:
        if same and access.force_share:
            raise ToolError("the image cannot be its own backing file")
        return await open_node(path, parsed.last("F"), access)
    except ToolError as error:
        why = str(error).removeprefix(f"Could not open '{path}': ")
        raise ToolError(f"Could not open new backing file '{name}': {why}") from error


async def _look_at_all(node: Node) -> None:
    """Read every table, so that what is broken is found before anything is changed."""
    from qedasync.cli.witness import reason

    try:
        async for _ in node.disk.extents():
            pass
    except BackingError as error:
        raise ToolError("error while reading from old backing file") from error
    except QEDError as error:
        raise ToolError(f"error while reading image metadata: {reason(error)}") from error


def _explained(parsed: Parsed, error: QEDError, new: Witness | None) -> ToolError:
    """What went wrong, in qemu-img's words."""
    from qedasync.cli.witness import reason

    if new is not None and new.failure is not None:
        return ToolError("error while reading from new backing file")
    if isinstance(error, BackingError):
        return ToolError("error while reading from old backing file")
    if _why(error) and isinstance(error, ValueError):  # a RequestError: the name does not fit
        return _refusal(parsed, _why(error))
    return ToolError(f"Error while writing to COW image: {reason(error)}")
