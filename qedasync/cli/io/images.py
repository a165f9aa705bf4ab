"""Commands that open, close and change images: open, close, reopen, truncate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qedasync.cli.io.driver_options import split_options
from qedasync.cli.io.failure import Misused, failing
from qedasync.cli.io.flags import take_flags
from qedasync.cli.io.numbers import size
from qedasync.cli.options import ToolError
from qedasync.cli.sizes import whole_sectors

if TYPE_CHECKING:
    from qedasync.cli.io.session import Session

__all__ = ["do_close", "do_open", "do_reopen", "do_truncate"]

_MODES = ("off", "metadata", "falloc", "full")


# ----------------------------------------------------------------- open, close


async def do_open(session: Session, words: Sequence[str]) -> None:
    """Open another image."""
    from qedasync.cli.io.session import Opening
    from qedasync.cli.io.verb import check_aio, check_cache, check_discard

    chosen: dict[str, str] = {"cache": "writethrough", "aio": "threads"}

    def cache(word: str) -> None:
        chosen["cache"] = check_cache(word)

    def aio(word: str) -> None:
        check_aio(word)
        chosen["aio"] = word

    flags = take_flags(words, "snrCkU", {"t": cache, "d": check_discard, "i": aio, "o": str})
    if len(flags.names) > 1:
        raise Misused
    if session.is_open:
        raise ToolError("file open already, try 'help close'")
    past_cache = flags.order.rfind("n") > flags.order.rfind("t")
    await session.open(
        Opening(
            name=flags.names[0] if flags.names else None,
            options=flags.get("o", ""),
            readonly="r" in flags,
            cache="none" if past_cache else chosen["cache"],
            native="k" in flags or chosen["aio"] == "native",
            snapshot="s" in flags,
            copy_on_read="C" in flags,
            force_share="U" in flags,
            backing=session.backing,
        )
    )


async def do_close(session: Session, words: Sequence[str]) -> None:
    """Close the image."""
    await session.close()


# ---------------------------------------------------------------------- reopen


@dataclass(slots=True)
class _Change:
    """What ``reopen`` is to change; None for what stays."""

    readonly: bool | None = None
    cache: str | None = None


async def do_reopen(session: Session, words: Sequence[str]) -> None:
    """Go on in another way."""
    flags = take_flags(words, "rw", {"c": _cache, "o": str})
    if sum(map(flags.order.count, "rw")) > 1:
        raise ToolError("Only one -r/-w option may be given")
    if flags.names:
        raise Misused
    change = _Change("r" in flags if "rw" in flags else None, flags.get("c"))
    _apply_options(session, change, flags.get("o", ""))
    readonly = session.readonly if change.readonly is None else change.readonly
    await session.reopen(readonly, change.cache)


def _cache(word: str) -> str:
    from qedasync.cli.io.verb import check_cache

    return check_cache(word)


def _apply_options(session: Session, change: _Change, text: str) -> None:
    """What driver options ask for.

    Raises:
        ToolError: they ask for what cannot be changed.
    """
    options = split_options(text)
    if "read-only" in options:
        if change.readonly is not None:
            raise ToolError("Cannot set both -r/-w and 'read-only'")
        if _is_on("read-only", options.pop("read-only")) and not session.readonly:
            raise ToolError("Read-only block node cannot support read-write users")
    if change.cache and {"cache.direct", "cache.no-flush"} & set(options):
        raise ToolError("Cannot set both -c and the cache options")
    for key, value in options.items():
        _check_changeable(session, key, value)
    if "cache.direct" in options:
        direct = _is_on("cache.direct", options["cache.direct"])
        change.cache = "directsync" if direct else "writethrough"


_SWITCHES = ("cache.direct", "cache.no-flush", "auto-read-only")
_WORDS = ("discard", "detect-zeroes")


def _check_changeable(session: Session, key: str, value: str) -> None:
    own = key.removeprefix("file.")
    if own in _SWITCHES:
        _is_on(own, value)
    elif own not in _WORDS and not (key == "driver" and value == session.node.format):
        raise ToolError(f"Cannot change the option '{own}'")


def _is_on(key: str, value: object) -> bool:
    if value not in ("on", "off", "yes", "no", "true", "false", "y", "n"):
        raise ToolError(f"Parameter '{key}' expects 'on' or 'off'")
    return value in ("on", "yes", "true", "y")


# -------------------------------------------------------------------- truncate


async def do_truncate(session: Session, words: Sequence[str]) -> None:
    """Make the image longer, or a raw one shorter."""
    flags = take_flags(words, "", {"m": _mode})
    if not flags.names:
        raise Misused
    length, mode = size(flags.names[0]), flags.get("m", "off")
    if session.node.format == "qed":
        await _truncate_qed(session, length, mode)
    else:
        await _truncate_raw(session, length, mode)


def _mode(word: str) -> str:
    if word not in _MODES:
        raise ToolError(f"Invalid preallocation mode '{word}'")
    return word


async def _truncate_qed(session: Session, length: int, mode: str) -> None:
    from qedasync.errors import RequestError

    if mode != "off":
        raise ToolError(f"Unsupported preallocation mode '{mode}'")
    if length % 512:
        raise ToolError("Invalid image size specified")
    if length < session.disk.size:
        raise ToolError("Shrinking images is currently not supported")
    try:
        with failing("truncate failed"):
            await session.disk.truncate(length)
    except Exception as error:
        if isinstance(error.__cause__, RequestError):
            raise ToolError("Invalid image size specified") from error
        raise


async def _truncate_raw(session: Session, length: int, mode: str) -> None:
    from qedasync.cli.create import preallocate

    if mode == "metadata":
        raise ToolError(f"Unsupported preallocation mode: {mode}")
    old = session.disk.size
    if mode != "off" and length < old:
        raise ToolError("Cannot use preallocation for shrinking files")
    if not session.node.file and length > old:
        raise ToolError("Cannot grow NBD nodes")
    with failing("truncate failed"):
        await session.disk.truncate(whole_sectors(length))
    if mode != "off":
        await preallocate(session.disk.path, old, length, mode)
