"""``qedasync serve``: images over NBD, until a signal."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any, cast

import qedasync
from qedasync import nbd
from qedasync.cli.nodes import Node, open_node
from qedasync.cli.nodes.overlay import under_overlay
from qedasync.cli.nodes.window import Window
from qedasync.cli.nodes.zero_detector import ZeroDetector
from qedasync.cli.options import Parsed, ToolError
from qedasync.cli.run import program_name, run_async, say
from qedasync.cli.serve_wish import Wish, understand
from qedasync.nbd.metrics import serve_metrics

__all__ = ["serve"]

_LISTEN_FDS_START = 3
_WAITING = 1000  # clients that wait for one of the others to leave, as with qemu-nbd


def serve(parsed: Parsed) -> int:
    """Serve until it is time to end; answers the exit code."""
    wish = understand(parsed)
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


# ------------------------------------------------------------------- the server


async def _serve(wish: Wish, listening: int | None) -> int:
    tls = None if wish.tls is None else wish.tls()
    if wish.verbose:
        _tell_of_clients()
    async with AsyncExitStack() as stack:
        exports: dict[str, nbd.Export] = {}
        for name, image in zip(wish.names, wish.images, strict=True):
            disk = await stack.enter_async_context(await _open(image, wish))
            exports[name] = nbd.Export(
                name, disk, description=wish.description, readonly=wish.readonly
            )
        server = await stack.enter_async_context(
            nbd.serve(
                cast("Mapping[str, nbd.Export]", exports),
                host=wish.host,
                port=wish.port,
                path=wish.path,
                sockets=_handed_over(),
                tls=tls,
                allow=nbd.allow_names(wish.allow) if wish.allow else None,
                limits=nbd.Limits(connections=wish.shared, waiting=_WAITING),
            )
        )
        if wish.metrics is not None:
            await stack.enter_async_context(
                serve_metrics(server, wish.host if not wish.path else "127.0.0.1", wish.metrics)
            )
        if wish.pid_file is not None:
            stack.callback(_remove, wish.pid_file)
            _write_pid(wish.pid_file)
        if not wish.as_qemu:
            for name in exports:
                print(server.uri(name), flush=True)
        if listening is not None:
            _leave_the_terminal(listening)
        await _until_told(server, wish)
    return 0


def _tell_of_clients() -> None:
    """Let what the server logs be seen."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{program_name()}: %(message)s"))
    log = logging.getLogger("qedasync.nbd")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _leave_the_terminal(listening: int) -> None:
    """Tell the parent that we listen, and let go of what we share with it."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nowhere, fd)
    os.close(nowhere)
    os.write(listening, b"1")
    os.close(listening)


async def _open(image: str, wish: Wish) -> Any:
    """What is served of an image."""
    node = await _open_node(image, wish)
    if wish.snapshot:
        node = await under_overlay(node)
    disk = ZeroDetector(node.disk) if wish.detect_zeroes else node.disk
    if not wish.offset:
        return disk
    if wish.offset > disk.size:
        await disk.close()
        raise ToolError(
            f"Offset ({wish.offset}) cannot be greater than size of the containing file"
            f" ({disk.size})"
        )
    part = Window(qedasync.DiskStorage(disk), wish.offset, None)
    return await qedasync.open_raw(image, "r" if disk.readonly else "r+", storage=part)


async def _open_node(image: str, wish: Wish) -> Node:
    try:
        return await open_node(image, wish.format, wish.access, image_opts=wish.image_opts)
    except ToolError as error:
        # The name once: where the file itself is at fault, qemu-img says it twice.
        head = f"Could not open '{image}': "
        why = str(error).removeprefix(head)
        why = why if wish.image_opts else why.removeprefix(head)
        if not wish.as_qemu:
            raise ToolError(head + why) from error
        told = why if wish.image_opts or why.startswith("Unknown driver") else head + why
        raise ToolError(f"Failed to blk_new_open '{image}': {told}") from error


async def _until_told(server: nbd.Server, wish: Wish) -> None:
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


def _renew(server: nbd.Server, wish: Wish) -> None:
    """New certificates for new clients; if they are no good, the old ones stay."""
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
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as error:
        raise ToolError(f"Could not create '{path}': {error.strerror}") from error


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
