"""``qedasync create``: a new, empty image."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qedasync.cli.common import (
    BACKING,
    BACKING_FORMATS,
    FORMATS,
    OBJECT,
    QUIET,
    beside,
    refuse_object,
)
from qedasync.cli.export import create_on_export, is_export
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, parse
from qedasync.cli.sizes import whole_sectors
from qedasync.errors import ImageLocked, QEDError, RequestError

if TYPE_CHECKING:
    from qedasync.cli.format_options import Values

__all__ = ["VERB", "create_image", "main"]

VERB = Verb(
    name="create",
    summary="make a new, empty image",
    names="FILENAME [SIZE]",
    options=(
        QUIET,
        Option("f", "", "FMT", "the format; raw unless said", FORMATS),
        Option("b", "", "FILE", "the backing file; a relative name starts at FILENAME's directory"),
        Option("F", "", "FMT", "the backing file's format", BACKING_FORMATS),
        Option("u", "", "", "do not look for the backing file; SIZE is needed then"),
        Option("o", "", "OPTIONS", "name=value[,name=value...]; 'help' lists them"),
        OBJECT,
        BACKING,
    ),
    text="""\
    Makes FILENAME; what was there before is lost. SIZE is in bytes or like 64k, 1.5G, 10MiB or
    0x1000; with a backing file it may be left out, and is that file's.

    An overlay (-b) holds what differs from its backing file, which must not change from then on.
    Nothing is touched before everything has been looked at: an image that cannot be made leaves
    the old file as it was.
    """,
    examples=(
        Example("qedasync create -f qed disk.qed 10G", "An image of 10 GiB that takes 320 KiB"),
        Example(
            "qedasync create -f qed -b disk.qed -F qed overlay.qed",
            "An overlay: disk.qed stays as it is",
        ),
        Example(
            "qedasync create -f qed -o cluster_size=4k,table_size=2 small.qed 1G",
            "Another geometry",
        ),
    ),
)


def main(words: Sequence[str]) -> int:
    """Run ``qedasync create``; answers the exit code."""
    from qedasync.cli import format_options
    from qedasync.cli.run import run_async, run_at_once
    from qedasync.cli.sizes import size_word

    parsed = parse(VERB, words)
    refuse_object(parsed)
    fmt = parsed.last("f", "raw") or ""
    text = format_options.join_words(parsed.all("o"))
    filename = parsed.names[0] if parsed.names else None
    if format_options.asks_for_help(text):
        print(format_options.help_text(fmt, with_file=filename is not None))
        return 0
    if filename is None:
        raise ToolError("Expecting image file name")
    size = size_word("image size", parsed.names[1]) if len(parsed.names) > 1 else None
    if len(parsed.names) > 2:
        raise ToolError(f"Unexpected argument: {parsed.names[2]}")
    values = format_options.parse_format_options(text, fmt, filename)
    if not is_export(filename):
        local_name(filename)
    _complete(parsed, fmt, filename, size, values)
    if is_export(filename) or _waits(parsed, values):
        run_async(_create(parsed, fmt, filename, values), brief=True)
    else:
        run_at_once(_create(parsed, fmt, filename, values, storage="blocking"))
    return 0


def _waits(parsed: Parsed, values: Values) -> bool:
    """Whether there is anything to wait for, so that an event loop is needed."""
    looks = "backing_file" in values and not parsed.has("u")
    return looks or values.get("preallocation", "off") != "off" or sys.platform != "linux"


def _complete(parsed: Parsed, fmt: str, filename: str, size: int | None, values: Values) -> None:
    """Add what has options of its own to ``values``."""
    if size is not None:
        if "size" in values:
            raise ToolError(f"{filename}: The image size must be specified only once")
        _put_first(values, "size", size)
    for letter, name, what in (("b", "backing_file", "file"), ("F", "backing_fmt", "file format")):
        given = parsed.last(letter)
        if given is None:
            continue
        if fmt == "raw":
            raise ToolError(f"{filename}: Backing {what} not supported for file format 'raw'")
        values[name] = given
    backing = values.get("backing_file")
    if backing == "":
        raise ToolError(f"{filename}: Expected backing file name, got empty string")
    if backing == filename:
        raise ToolError(
            f"{filename}: Error: Trying to create an image with the same filename as the"
            " backing file"
        )


def _put_first(values: Values, name: str, value: int) -> None:
    rest = dict(values)
    values.clear()
    values[name] = value
    values.update(rest)


async def _create(
    parsed: Parsed, fmt: str, filename: str, values: Values, storage: str = "auto"
) -> None:
    from qedasync.cli.format_options import formatting_line

    if "backing_file" in values:
        await _look_at_backing(parsed, filename, values)
    if "size" not in values:
        raise ToolError(f"{filename}: Image creation needs a size parameter")
    if not parsed.has("q"):
        print(formatting_line(filename, fmt, values), flush=True)
    if is_export(filename):
        from qedasync.cli.nodes import access_from

        size, mode = whole_sectors(int(values["size"])), preallocation_mode(filename, values)
        await create_on_export(filename, fmt, size, mode, access_from(parsed, writable=True))
    else:
        await create_image(filename, fmt, values, storage)


async def _look_at_backing(parsed: Parsed, filename: str, values: Values) -> None:
    """Open the backing file, unless told not to, and take the size from it."""
    name, fmt = str(values["backing_file"]), values.get("backing_fmt")
    if not parsed.has("u"):
        from qedasync.cli.nodes import access_from, open_node

        path = beside(filename, name)
        try:
            node = await open_node(path, _text(fmt), access_from(parsed))
        except ToolError as error:
            why = str(error).removeprefix(f"Could not open '{path}': ")
            raise ToolError(f"{filename}: {why} Could not open backing image.") from error
        try:
            if fmt is None:
                raise ToolError(
                    f"{filename}: Backing file specified without backing format"
                    f" Detected format of {node.format}."
                )
            values.setdefault("size", node.disk.size)
        finally:
            await node.close()
    elif fmt is None:
        raise ToolError(f"{filename}: Backing file specified without backing format")


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


async def create_image(filename: str, fmt: str, values: Values, storage: str = "auto") -> None:
    """Make the file; the errors are qemu-img's.

    Args:
        values: what :func:`~qedasync.cli.format_options.parse_format_options` gives, with a size.
        storage: the kind.
    """
    path = local_name(filename)
    if values.get("backing_fmt", "raw") not in BACKING_FORMATS and "backing_file" in values:
        raise ToolError(
            f"{filename}: Parameter 'backing-fmt' does not accept value '{values['backing_fmt']}'"
        )
    check_preallocation(filename, fmt, values)
    try:
        if fmt == "qed":
            await _create_qed(filename, path, values, storage)
        else:
            mode = str(values.get("preallocation", "off"))
            await _create_raw(path, int(values["size"]), mode, storage)
    except ToolError:
        raise
    except ImageLocked as error:
        raise ToolError(
            f'{filename}: Failed to get "write" lock Is another process using the image [{path}]?'
        ) from error
    except RequestError as error:
        raise ToolError(f"{filename}: {error}") from error
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise ToolError(
                f"{filename}: The image size is too large for file format '{fmt}'"
            ) from error
        raise ToolError(f"{filename}: Could not create '{path}': {error.strerror}") from error
    except QEDError as error:
        raise ToolError(f"{filename}: {error}") from error


def local_name(filename: str) -> str:
    """The path of a file to be made.

    Raises:
        ToolError: the name is that of another protocol.
    """
    if filename.startswith("file:"):
        return filename.removeprefix("file:")
    protocol, colon, _ = filename.partition(":")
    if colon and "/" not in protocol:
        if protocol == "blkdebug":
            raise ToolError(
                f"{filename}: Protocol driver 'blkdebug' does not support image creation"
            )
        raise ToolError(f"{filename}: Unknown protocol '{protocol}'")
    return filename


def preallocation_mode(filename: str, values: Values) -> str:
    """The mode; raises ToolError if it is none."""
    mode = str(values.get("preallocation", "off"))
    if mode not in ("off", "metadata", "falloc", "full"):
        raise ToolError(f"{filename}: invalid parameter value: {mode}")
    return mode


def check_preallocation(filename: str, fmt: str, values: Values) -> None:
    """Raise ToolError for a mode that there is not, or not for files."""
    mode = preallocation_mode(filename, values)
    if mode == "metadata":
        raise ToolError(f"{filename}: Unsupported preallocation mode: {mode}")


async def _create_qed(filename: str, path: str, values: Values, storage: str) -> None:
    import qedasync
    from qedasync.cli.format_options import check_geometry

    size = whole_sectors(int(values["size"]))
    check_geometry(filename, size, values)
    name = values.get("backing_file")
    await qedasync.create(
        path,
        size,
        cluster_size=int(values["cluster_size"]),
        table_size=int(values.get("table_size", 4)),
        backing_file=_text(name),
        # The one format that an image can record.
        backing_format="raw" if name is not None and values.get("backing_fmt") == "raw" else None,
        backing_unchecked=True,
        storage=storage,
    )


async def _create_raw(path: str, size: int, preallocation: str, kind: str) -> None:
    import qedasync

    size = whole_sectors(size)
    storage = await qedasync.open_storage(
        path, kind, writable=True, create=True, lock=qedasync.LockRole.CREATE
    )
    try:
        await storage.truncate(0)
        if preallocation == "off":
            await storage.truncate(size)
        else:
            await preallocate(path, 0, size, preallocation)
    finally:
        await storage.close()


async def preallocate(path: str, start: int, end: int, mode: str) -> None:
    """Make the file ``end`` bytes long, with the host's blocks for what comes after ``start``."""
    import asyncio

    await asyncio.to_thread(_preallocate, path, start, end, mode)


def _preallocate(path: str, start: int, end: int, mode: str) -> None:
    with open(path, "r+b", buffering=0) as file:
        if mode == "falloc" and end > start:
            os.posix_fallocate(file.fileno(), start, end - start)
        elif mode == "full":
            zeroes = bytes(1 << 20)
            file.truncate(end)
            file.seek(start)
            while start < end:
                start += file.write(zeroes[: end - start])
        os.fsync(file.fileno())
