"""The command line of ``qedasync serve``, understood: what to open, how, and for whom.

Where qemu-nbd refuses something it is refused in its words.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

from qedasync.cli.common import CACHES
from qedasync.cli.nodes import Access, policy
from qedasync.cli.options import Parsed, ToolError
from qedasync.cli.run import link_name, say
from qedasync.cli.serve_tls import server_tls

__all__ = ["Wish", "as_qemu", "port_of", "understand"]

_NAME_MAX = 4096  # bytes of a name or a description, by the protocol
_SHARED_MAX = 0x7FFF_FFFF
_AIO = ("threads", "native", "io_uring")
_DISCARD = {"ignore": False, "off": False, "unmap": True, "on": True}
_UNCACHED = ("none", "directsync")


class Wish(NamedTuple):
    """What is to be served.

    Attributes:
        images: their names, or options with ``image_opts``.
        names: of the exports, one for each image.
        description: of all of them.
        format: of the images; looked for if None.
        access: how they are opened.
        offset: bytes of each image that are left out at its beginning.
        snapshot: writes go to a temporary overlay.
        detect_zeroes: writes of zeroes become zero writes.
        shared: clients at once.
        persistent: go on when the last one has left.
        host, port, path: where to listen; the path of a Unix socket, or None.
        pid_file, metrics: as the options.
        tls: makes the context, now and whenever certificates are to be read again.
        allow: common names of clients that may come in; empty for all.
        readonly: writes are refused.
        as_qemu: called as qemu-nbd: no URIs are printed, and messages are that tool's.
        verbose: tell of clients that were hung up on.
    """

    images: tuple[str, ...]
    names: tuple[str, ...]
    description: str
    format: str | None
    image_opts: bool
    access: Access
    offset: int
    snapshot: bool
    detect_zeroes: bool
    shared: int
    persistent: bool
    host: str
    port: int
    path: str | None
    pid_file: str | None
    metrics: int | None
    tls: Callable[[], ssl.SSLContext] | None
    allow: tuple[str, ...]
    readonly: bool
    as_qemu: bool
    verbose: bool


def as_qemu() -> bool:
    """Whether we are called as qemu-nbd."""
    return link_name() == "qemu-nbd"


def understand(parsed: Parsed) -> Wish:
    """What the options say.

    Raises:
        ToolError: something that is not to be had, or that does not fit.
    """
    _refuse(parsed)
    names = _names(parsed)
    return Wish(
        images=tuple(parsed.names),
        names=names,
        description=_text(parsed.last("description", "") or "", "description"),
        tls=server_tls(parsed),
        allow=tuple(parsed.all("allow")),
        readonly=parsed.has("read-only"),
        as_qemu=as_qemu(),
        verbose=parsed.has("verbose"),
        persistent=parsed.has("persistent"),
        pid_file=parsed.last("pid-file"),
        metrics=_number(parsed, "metrics", 65535),
        shared=_shared(parsed),
        **_how_to_open(parsed),
        **_where(parsed),
    )


def _refuse(parsed: Parsed) -> None:
    """Raise for what is not to be had here; warn of what does nothing."""
    if parsed.has("connect") or parsed.has("disconnect"):
        raise ToolError("Kernel /dev/nbd support not available")
    if not parsed.names:
        raise ToolError("Invalid number of arguments" if as_qemu() else "give at least one image")
    if as_qemu() and len(parsed.names) > 1:
        raise ToolError("Invalid number of arguments")
    if parsed.has("bitmap"):
        raise ToolError(f"Bitmap '{parsed.last('bitmap')}' is not found")
    if parsed.has("load-snapshot"):
        raise ToolError(
            f"Failed to load snapshot: Block format '{parsed.last('format', 'qed')}' used by device"
            " '' does not support temporarily loading internal snapshots"
        )
    if parsed.has("selinux-label"):
        raise ToolError("--selinux-label is not supported")
    if parsed.has("trace"):
        say("warning: there are no trace events here")


def _names(parsed: Parsed) -> tuple[str, ...]:
    """The exports' names, one for each image."""
    names = parsed.all("export-name")
    if not names:
        names = [""] if len(parsed.names) == 1 else [os.path.basename(n) for n in parsed.names]
    if as_qemu():
        names = names[-1:]
    if len(names) != len(parsed.names) or len(set(names)) != len(names):
        raise ToolError("every image needs an export name (-x) of its own")
    return tuple(_text(name, "name") for name in names)


def _text(text: str, what: str) -> str:
    if len(os.fsencode(text)) > _NAME_MAX:
        raise ToolError(f"export {what} '{text}' too long")
    return text


# ----------------------------------------------------------------------- opening


def _how_to_open(parsed: Parsed) -> dict[str, Any]:
    cache, backing = _cache(parsed), parsed.last("backing")
    snapshot = parsed.has("snapshot")
    fmt, image_opts = parsed.last("format"), parsed.has("image-opts")
    if image_opts and fmt is not None:
        raise ToolError("--image-opts and -f are mutually exclusive")
    try:
        policy(backing)
    except ToolError as error:
        raise ToolError(f"--backing: {error}") from error
    writable = not parsed.has("read-only") and not snapshot
    return {
        "format": fmt,
        "image_opts": image_opts,
        "access": Access(writable=writable, cache=cache, backing=backing),
        "offset": _offset(parsed),
        "snapshot": snapshot,
        "detect_zeroes": _detects_zeroes(parsed) and not parsed.has("read-only"),
    }


def _cache(parsed: Parsed) -> str:
    given = [value or "none" for key, value in parsed.given if key in ("cache", "nocache")]
    if as_qemu():
        _check_given_once(parsed, len(given))
    cache = given[-1] if given else "writeback"
    if cache not in CACHES:
        raise ToolError(f"Invalid cache mode `{cache}'")
    aio = parsed.last("aio", "threads")
    if aio not in _AIO:
        raise ToolError(f"Invalid aio mode '{aio}'")
    if aio == "native" and cache not in _UNCACHED:
        raise ToolError(
            f"Failed to blk_new_open '{parsed.names[0]}': aio=native was specified, but it requires"
            " cache.direct=on, which was not specified."
        )
    return cache


def _check_given_once(parsed: Parsed, n_caches: int) -> None:
    """Whether nothing is said twice that qemu-nbd wants to be told once."""
    if n_caches > 1:
        raise ToolError("-n and --cache can only be specified once")
    for key in ("aio", "discard"):
        if len(parsed.all(key)) > 1:
            raise ToolError(f"--{key} can only be specified once")


def _detects_zeroes(parsed: Parsed) -> bool:
    discard, zeroes = parsed.last("discard", "ignore"), parsed.last("detect-zeroes", "off")
    if discard not in _DISCARD:
        raise ToolError(f"Invalid discard mode `{discard}'")
    if zeroes not in ("off", "on", "unmap"):
        raise ToolError(f"Failed to parse detect_zeroes mode: invalid parameter value: {zeroes}")
    if zeroes == "unmap" and not _DISCARD[discard]:
        raise ToolError(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to"
            " unmap"
        )
    return zeroes != "off"


def _offset(parsed: Parsed) -> int:
    text = parsed.last("offset", "0") or ""
    try:
        value = int(text, 8 if text.isdigit() and text.startswith("0") else 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 63:
        raise ToolError(f"Invalid offset '{text}'")
    return value


# ----------------------------------------------------------------------- serving


def _where(parsed: Parsed) -> dict[str, Any]:
    path = parsed.last("socket")
    if path is not None and as_qemu() and not path.startswith("/"):
        raise ToolError("socket path must be absolute")
    if path is not None and not as_qemu() and (parsed.has("port") or parsed.has("bind")):
        raise ToolError("-k listens on a Unix socket, -b and -p on a TCP port; choose one")
    anywhere = "0.0.0.0" if as_qemu() else "127.0.0.1"
    return {
        "host": parsed.last("bind", anywhere) or "",
        "port": port_of(parsed),
        "path": path,
    }


def port_of(parsed: Parsed) -> int:
    """The TCP port that the options name."""
    port = _number(parsed, "port", 65535)
    return 10809 if port is None else port


def _shared(parsed: Parsed) -> int:
    """How many clients may be there at once."""
    text = parsed.last("shared", "1" if as_qemu() else "0") or ""
    if not text.isascii() or not text.isdigit() or int(text) > _SHARED_MAX:
        raise ToolError(f"Invalid shared device number '{text}'")
    return int(text) or 1000


def _number(parsed: Parsed, key: str, most: int) -> int | None:
    text = parsed.last(key)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise ToolError(f"--{key} is {text!r}; it must be a number from 0 to {most}")
    return int(text)
