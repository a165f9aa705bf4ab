"""The command line of ``qedasync io``: what to open, how, and which commands to run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qedasync.cli.common import BACKING, CACHES, FORCE_SHARE, FORMATS, IMAGE_OPTS, OBJECT, is_path
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, WrongOption, parse

if TYPE_CHECKING:
    from qedasync.cli.io.session import Opening

__all__ = ["VERB", "main"]

VERB = Verb(
    name="io",
    summary="read, write and probe an image by commands",
    names="[FILE]",
    options=(
        Option("c", "cmd", "COMMAND", "do this instead of reading commands; may be repeated"),
        Option("f", "format", "FMT", "the image's format; looked for unless said", FORMATS),
        IMAGE_OPTS,
        OBJECT,
        Option("r", "read-only", "", "open it read-only"),
        Option("s", "snapshot", "", "keep what is written in a temporary overlay"),
        Option("n", "nocache", "", "past the host's page cache; the same as -t none"),
        Option("C", "copy-on-read", "", "keep in the image what is read from the backing file"),
        Option("m", "misalign", "", "accepted: no alignment is asked of buffers here"),
        Option("k", "native-aio", "", "the same as -i native"),
        Option("i", "aio", "MODE", "checked, and all the same here", ("threads", "native")),
        Option("t", "cache", "MODE", "the cache mode; writethrough unless said", CACHES),
        Option("d", "discard", "MODE", "checked: discards are done anyway", ("ignore", "unmap")),
        Option("T", "trace", "PATTERN", "accepted: there are no trace events here"),
        FORCE_SHARE,
        BACKING,
        Option("V", "version", "", "print the version"),
    ),
    text="""\
    Opens FILE, if one is named, and runs the commands that -c gives, in order; without -c, those
    that come in on stdin, a line each. 'qedasync io -c help' lists the commands, and
    'qedasync io -c "help read"' tells about one. Words are separated by spaces; nothing quotes
    them. Numbers may have a suffix: 64k, 1.5M, 10G.

    Requests of aio_read and aio_write are in flight at the same time as the commands after them;
    aio_flush waits for them, and so does the end. The exit code is 1 if any command failed.

    On a terminal there are line editing, completion and a history; it is kept in the file that
    QEDASYNC_HISTORY names, if that is set.
    """,
    examples=(
        Example("qedasync io -c 'write -P 7 64k 128k' -c 'read -vP 7 64k 32' disk.qed", "Check"),
        Example("qedasync io -c map disk.qed", "Which parts are in the image"),
        Example("qedasync io -s disk.qed", "Play; nothing is kept"),
        Example("qedasync io blkdebug::disk.qed", "With breakpoints"),
    ),
)

_AIO = ("threads", "native", "io_uring")
_DISCARD = ("on", "unmap", "off", "ignore")


def main(words: Sequence[str]) -> int:
    """Run ``qedasync io``; answers the exit code."""
    parsed = _parse(words)
    if parsed.has("version"):
        return _print_version()
    opening = _opening(parsed)
    from qedasync.cli.io.shell import run
    from qedasync.cli.run import run_async

    session = run(opening, parsed.all("cmd"), parsed.last("backing"))
    return run_async(session, brief=opening is None or is_path(opening.name or ""))


def _parse(words: Sequence[str]) -> Parsed:
    try:
        return parse(VERB, words)
    except WrongOption as error:
        raise ToolError(error.getopt) from error


def _print_version() -> int:
    import qedasync
    from qedasync.cli.main import QEMU_VERSION
    from qedasync.cli.run import link_name

    link, ours = link_name(), f"qedasync {qedasync.__version__}"
    print(f"{link} version {QEMU_VERSION} ({ours})" if link else ours)
    return 0


def _opening(parsed: Parsed) -> Opening | None:
    """What to open; None if no file is named."""
    from qedasync.cli.common import refuse_object
    from qedasync.cli.io.session import Opening
    from qedasync.cli.run import say

    cache = "writethrough"
    for key, value in parsed.given:
        if key in ("nocache", "cache"):
            cache = check_cache(value if key == "cache" else "none")
    for value in parsed.all("discard"):
        check_discard(value)
    if parsed.has("trace"):
        say("warning: there are no trace events here")
    aio = "native" if parsed.has("native-aio") else parsed.last("aio", "threads") or ""
    check_aio(aio)
    refuse_object(parsed)
    if len(parsed.names) > 1:
        raise ToolError("only one file can be opened")
    image_opts, fmt = parsed.has("image-opts"), parsed.last("format")
    if image_opts and fmt is not None:
        raise ToolError("--image-opts and -f are mutually exclusive")
    if not parsed.names:
        return None
    name = parsed.names[0]
    return Opening(
        name=None if image_opts else name,
        options=name if image_opts else "",
        format=fmt,
        readonly=parsed.has("read-only"),
        cache=cache,
        native=aio == "native",
        snapshot=parsed.has("snapshot"),
        copy_on_read=parsed.has("copy-on-read"),
        force_share=parsed.has("force-share"),
        backing=parsed.last("backing"),
    )


def check_cache(word: str) -> str:
    """The word; raises ToolError unless it is a cache mode."""
    if word not in (*CACHES, "off"):
        raise ToolError(f"Invalid cache option: {word}")
    return "none" if word == "off" else word


def check_discard(word: str) -> None:
    """Raises ToolError unless it is a discard mode."""
    if word not in _DISCARD:
        raise ToolError(f"Invalid discard option: {word}")


def check_aio(word: str) -> None:
    """Raises ToolError unless it is a way of asynchronous I/O that QEMU has."""
    if word not in _AIO:
        raise ToolError(f"Invalid aio option: {word}")
