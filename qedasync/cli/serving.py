"""``qedasync serve``: images over NBD, until a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, cast

import qedasync
from qedasync import nbd
from qedasync.cli.nodes import Access, open_node, policy
from qedasync.cli.options import Parsed, ToolError
from qedasync.cli.run import link_name
from qedasync.nbd.metrics import serve_metrics

__all__ = ["serve"]

_CACHES = ("writeback", "writethrough", "none", "unsafe")
_LISTEN_FDS_START = 3


@dataclass(frozen=True, slots=True)
class _Wish:
    """The command line, understood."""

    images: tuple[str, ...]
    names: tuple[str, ...]
    description: str
    format: str | None
    access: Access
    shared: int
    persistent: bool
    host: str
    port: int
    path: str | None
    pid_file: str | None
    metrics: int | None
    tls: Callable[[], ssl.SSLContext] | None
    allow: tuple[str, ...]
    quiet: bool


def serve(parsed: Parsed) -> int:
    """Serve until it is time to end; answers the exit code."""
    from qedasync.cli.run import run_async

    wish = _understand(parsed)
    listening = _fork() if parsed.has("fork") else None
    if listening == _PARENT:
        return 0
    return run_async(_serve(wish, listening))


_PARENT = -1


def _fork() -> int:
    """Go on in a child; answers a descriptor to close once it listens, in the parent _PARENT.

    Raises:
        ToolError: the child ended before it listened; it has said why.
    """
    ready, listening = os.pipe()
    if os.fork() == 0:
        os.close(ready)
        os.setsid()
        return listening
    os.close(listening)
    with os.fdopen(ready, "rb") as pipe:
        if pipe.read() != b"1":
            raise SystemExit(1)
    return _PARENT


def _understand(parsed: Parsed) -> _Wish:
    if not parsed.names:
        raise ToolError("serve: give at least one image")
    names = parsed.all("export-name")
    if not names:
        names = [""] if len(parsed.names) == 1 else [os.path.basename(n) for n in parsed.names]
    if len(names) != len(parsed.names) or len(set(names)) != len(names):
        raise ToolError("serve: every image needs an export name (-x) of its own")
    if parsed.has("socket") and (parsed.has("port") or parsed.has("bind")):
        raise ToolError("serve: -k listens on a Unix socket, -b and -p on a TCP port; choose one")
    cache = parsed.last("cache", "writeback") or ""
    if cache not in _CACHES:
        raise ToolError(f"serve: Invalid cache option: {cache}; there are {', '.join(_CACHES)}")
    backing = parsed.last("backing")
    try:
        policy(backing)
    except ToolError as error:
        raise ToolError(f"serve: --backing: {error}") from error
    port, shared = _number(parsed, "port", 65535), _number(parsed, "shared", 1_000_000)
    as_qemu = link_name() == "qemu-nbd"
    return _Wish(
        images=tuple(parsed.names),
        names=tuple(names),
        description=parsed.last("description", "") or "",
        format=parsed.last("format"),
        access=Access(writable=not parsed.has("read-only"), cache=cache, backing=backing),
        shared=(1 if as_qemu and shared is None else shared) or 1000,
        persistent=parsed.has("persistent"),
        host=parsed.last("bind", "127.0.0.1") or "",
        port=10809 if port is None else port,
        path=parsed.last("socket"),
        pid_file=parsed.last("pid-file"),
        metrics=_number(parsed, "metrics", 65535),
        tls=_tls(parsed),
        allow=tuple(parsed.all("allow")),
        quiet=as_qemu,
    )


def _number(parsed: Parsed, key: str, most: int) -> int | None:
    text = parsed.last(key)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise ToolError(f"serve: --{key} is {text!r}; it must be a number from 0 to {most}")
    return int(text)


def _tls(parsed: Parsed) -> Callable[[], ssl.SSLContext] | None:
    """Makes the context, now and at each SIGHUP; None without TLS."""
    directory, certificate = parsed.last("tls-creds"), parsed.last("tls-cert")
    verify = parsed.has("tls-verify") or parsed.has("allow")
    if directory is None and certificate is None:
        if verify or parsed.has("tls-key") or parsed.has("tls-ca"):
            raise ToolError("serve: TLS needs --tls-creds, or --tls-cert and --tls-key")
        return None
    key, ca = parsed.last("tls-key"), parsed.last("tls-ca")
    return lambda: nbd.server_context(
        directory, certificate=certificate, key=key, ca=ca, verify=verify
    )


# ------------------------------------------------------------------- the server


async def _serve(wish: _Wish, listening: int | None) -> int:
    tls = None if wish.tls is None else wish.tls()
    async with AsyncExitStack() as stack:
        exports: dict[str, nbd.Export] = {}
        for name, image in zip(wish.names, wish.images, strict=True):
            disk = await stack.enter_async_context(await _open(image, wish))
            exports[name] = nbd.Export(name, disk, description=wish.description)
        server = await stack.enter_async_context(
            nbd.serve(
                cast("Mapping[str, nbd.Export]", exports),
                host=wish.host,
                port=wish.port,
                path=wish.path,
                sockets=_handed_over(),
                tls=tls,
                allow=nbd.allow_names(wish.allow) if wish.allow else None,
                limits=nbd.Limits(connections=wish.shared),
            )
        )
        if wish.metrics is not None:
            await stack.enter_async_context(
                serve_metrics(server, wish.host if not wish.path else "127.0.0.1", wish.metrics)
            )
        if wish.pid_file is not None:
            stack.callback(_remove, wish.pid_file)
            _write_pid(wish.pid_file)
        if not wish.quiet:
            for name in exports:
                print(server.uri(name), flush=True)
        if listening is not None:
            _leave_the_terminal(listening)
        await _until_told(server, wish)
    return 0


def _leave_the_terminal(listening: int) -> None:
    """Tell the parent that we listen, and let go of what we share with it."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nowhere, fd)
    os.close(nowhere)
    os.write(listening, b"1")
    os.close(listening)


async def _open(image: str, wish: _Wish) -> Any:
    try:
        return (await open_node(image, wish.format, wish.access)).disk
    except ToolError as error:
        # The name once: where the file itself is at fault, qemu-img says it twice.
        head = f"Could not open '{image}': "
        raise ToolError(head + str(error).removeprefix(head).removeprefix(head)) from error


async def _until_told(server: nbd.Server, wish: _Wish) -> None:
    """Wait for a signal, or for the last client to leave."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    loop.add_signal_handler(signal.SIGHUP, _renew, server, wish)
    try:
        waiting: list[asyncio.Task[Any]] = [loop.create_task(told.wait())]
        if not wish.persistent:
            waiting.append(loop.create_task(server.wait_deserted()))
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


def _renew(server: nbd.Server, wish: _Wish) -> None:
    """New certificates for new clients; if they are no good, the old ones stay."""
    from qedasync.cli.run import say

    if wish.tls is None:
        return
    try:
        server.tls = wish.tls()
    except qedasync.QEDError as error:
        say(f"serve: the certificates stay as they are: {error}")


def _handed_over() -> list[socket.socket]:
    """The sockets that systemd opened for us, if any."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    try:
        count = int(os.environ.get("LISTEN_FDS", "0"))
    except ValueError:
        return []
    found = []
    for fd in range(_LISTEN_FDS_START, _LISTEN_FDS_START + count):
        os.set_inheritable(fd, False)
        one = socket.socket(fileno=fd)
        one.setblocking(False)
        found.append(one)
    return found


def _write_pid(path: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
