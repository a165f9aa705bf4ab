"""A disk over NBD: where it is, as QEMU's names and options say it.

Names become options first: ``server.type``, ``server.path`` or ``server.host`` and ``server.port``,
``export``. What QEMU has no options for, TLS without ``--object``, is in ``uri``, which it lacks.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

import qedasync
from qedasync.cli.nodes.layer import How, Layer
from qedasync.cli.nodes.values import Options, extract, nested, number, refuse_rest, text
from qedasync.cli.options import ToolError

if TYPE_CHECKING:
    from qedasync import nbd

__all__ = ["explained", "nbd_options", "nbd_uri", "open_nbd"]

_PORT = "10809"
_MAX_EXPORT = 4096
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 1.0  # seconds between tries to connect
_STRONG = ("uri", "host", "port", "path", "export", "tls-hostname")  # that change what it is
_ADDRESSES = {  # what an address of a type must have, and what it may
    "unix": (("path",), ("abstract", "tight")),
    "inet": (("host", "port"), ("numeric", "to", "ipv4", "ipv6", "keep-alive", "mptcp")),
    "vsock": (("cid", "port"), ()),
    "fd": (("str",), ()),
}


# -------------------------------------------------------------------------- names


def nbd_options(name: str) -> Options:
    """What a name says: a URI, or ``nbd:HOST:PORT:exportname=EXPORT``, ``nbd:unix:PATH``.

    Raises:
        ToolError: QEMU can make nothing of it.
    """
    if name.startswith(("nbds://", "nbds+unix://")):
        return {"uri": name}
    if "://" in name:
        return _from_uri(name)
    if not name.startswith("nbd:"):
        raise ToolError("File name string for NBD must start with 'nbd:'")
    where, _, export = name.removeprefix("nbd:").partition(":exportname=")
    named = {"export": export} if export else {}
    if not where:
        return named
    if where.startswith("unix:"):
        return {"server.type": "unix", "server.path": where.removeprefix("unix:"), **named}
    found = re.match(r"(?:\[([^\]]+)\]|([^:]*)):([^,:]+)", where)
    if found is None:
        raise ToolError(f"error parsing address '{where}'")
    return _inet(found[1] or found[2], found[3], named)


def _inet(host: str, port: str, named: Options) -> Options:
    return {"server.type": "inet", "server.host": host, "server.port": port, **named}


def _from_uri(uri: str) -> Options:
    from urllib.parse import parse_qsl, unquote, urlsplit

    try:
        parts = urlsplit(uri)
        query = parse_qsl(parts.query, keep_blank_values=True)
        port = parts.port
    except ValueError:
        raise ToolError("No valid URL specified") from None
    export = unquote(parts.path.lstrip("/"))
    named = {"export": export} if export else {}
    if parts.scheme == "nbd+unix":
        if len(query) != 1 or query[0][0] != "socket" or parts.netloc:
            raise ToolError("No valid URL specified")
        return {"server.type": "unix", "server.path": query[0][1], **named}
    if query or not parts.hostname:
        raise ToolError("No valid URL specified")
    return _inet(parts.hostname, _PORT if port is None else str(port), named)


def nbd_uri(name: str) -> str | None:
    """The URI that a name is or means, for the library; None if it is none of NBD's."""
    if not re.match(r"nbd:|nbds?(\+unix)?://|nbd\+tcp://", name):
        return None
    try:
        return _target(nbd_options(name))[0]
    except ToolError:
        return None


# ------------------------------------------------------------------------ opening


async def open_nbd(options: Options, how: How) -> Layer:
    """Connect to a server.

    Args:
        options: the node's own; all are taken.

    Raises:
        ToolError, QEDError: that failed.
    """
    patience = number(options, "open-timeout", 0)
    reconnect = number(options, "reconnect-delay", 0)
    given = {key: options[key] for key in options if key in _STRONG or key.startswith("server.")}
    text(options.pop("tls-hostname", None))
    credentials = text(options.pop("tls-creds", None))
    uri, exact = _target(options)
    if credentials is not None:
        raise ToolError(f"No TLS credentials with id '{credentials}'")
    client = await _connect(uri, patience, reconnect)
    try:
        if how.writable and client.readonly:
            raise ToolError(f"Could not open image: {os.strerror(errno.EACCES)}")
        refuse_rest("nbd", options, protocol=True)
    except ToolError:
        await client.close()
        raise
    return Layer(
        "nbd", qedasync.DiskStorage(client), {"driver": "nbd", **nested(given)}, exact, None
    )


def _target(options: Options) -> tuple[str, str]:
    """Take the options that say where; as the library's URI, and as QEMU's name."""
    export = text(options.pop("export", None))
    if len(export or "") > _MAX_EXPORT:
        raise ToolError("export name too long to send to server")
    uri = text(options.pop("uri", None))
    if uri is not None:
        return uri, uri
    server = _take_server(options)
    where = _check_address(server)
    from qedasync import nbd

    rest = "" if export is None else f"/{export}"
    if where == "unix":
        path = str(server["path"])
        if not path:
            raise ToolError(f"Failed to connect to '': {os.strerror(errno.ECONNREFUSED)}")
        address = nbd.Address(tls=False, export=export or "", socket=path)
        exact = f"nbd+unix://{rest}?socket={path}"
    else:
        host, port = str(server["host"]), str(server["port"])
        address = nbd.Address(tls=False, export=export or "", host=host, port=_port(port))
        exact = f"nbd://[{host}]:{port}{rest}" if ":" in host else f"nbd://{host}:{port}{rest}"
    return str(address), exact


def _take_server(options: Options) -> Options:
    """The address, which has an older form without ``server.``, too."""
    host, port, path = (text(options.pop(key, None)) for key in ("host", "port", "path"))
    server = extract(options, "server.")
    if server:
        if host or port or path:
            raise ToolError("Cannot use 'server' and path/host/port at the same time")
        return server
    if path and host:
        raise ToolError("path and host may not be used at the same time")
    if path:
        if port:
            raise ToolError("port may not be used without host")
        return {"type": "unix", "path": path}
    if not host:
        raise ToolError("NBD server address missing")
    return {"type": "inet", "host": host, "port": port or _PORT}


def _check_address(server: Options) -> str:
    """The address's type; raises for what it lacks or has too much."""
    kind = text(server.get("type"))
    if kind is None:
        raise ToolError("Parameter 'type' is missing")
    if kind not in _ADDRESSES:
        raise ToolError(f"Parameter 'type' does not accept value '{kind}'")
    needed, possible = _ADDRESSES[kind]
    for key in needed:
        if key not in server:
            raise ToolError(f"Parameter '{key}' is missing")
    for key in server:
        if key not in ("type", *needed, *possible):
            raise ToolError(f"Parameter '{key}' is unexpected")
    if kind not in ("unix", "inet"):
        raise ToolError(f"NBD over '{kind}' is not supported")
    return kind


def _port(word: str) -> int:
    if not word.isdecimal() or int(word) > 65535:
        raise ToolError(f"address resolution failed for port '{word}'")
    return int(word)


async def _connect(uri: str, patience: int, reconnect: int) -> nbd.Client:
    """Connect, trying again for so many seconds.

    Raises:
        ToolError: nobody is there, in QEMU's words.
        StorageError: the server does not want us.
    """
    import asyncio  # late: info of a plain file needs none

    from qedasync import nbd

    loop = asyncio.get_running_loop()
    until, wait = loop.time() + patience, _FIRST_WAIT
    while True:
        try:
            return await nbd.connect(uri, reconnect=reconnect)
        except qedasync.StorageError as error:
            if loop.time() + wait > until:
                raise explained(error, nbd.parse_uri(uri)) from error
        await asyncio.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)


def explained(error: qedasync.StorageError, address: nbd.Address) -> Exception:
    """In QEMU's words, where it has them."""
    import socket

    cause, where = error.__cause__, address.socket or f"{address.host}:{address.port}"
    if isinstance(cause, socket.gaierror):
        return ToolError(f"address resolution failed for {where}: {cause.strerror}")
    if isinstance(cause, OSError) and cause.errno:
        return ToolError(f"Failed to connect to '{where}': {os.strerror(cause.errno)}")
    if error.errno == errno.ENOENT:
        return ToolError(f"Requested export not available: {error.strerror}")
    return error
