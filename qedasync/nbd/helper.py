"""A ``qemu-nbd`` of our own: one image, read-only, for one connection; it never outlives us.

It listens on a socket that we have made in a directory that nobody else may enter, and that is gone
when we are connected. A shell stands between the two of us, which waits for the end of its input:
that comes when we close it or are killed, even by SIGKILL, and then it kills qemu-nbd. Alone that
would stay for ever, if we were killed before the handshake.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Mapping
from typing import IO, Any

from qedasync.errors import StorageError
from qedasync.nbd.client_handshake import open_link
from qedasync.nbd.handshake import BASE_ALLOCATION
from qedasync.nbd.link import Link
from qedasync.nbd.uri import Address

__all__ = ["Helper"]

_SCRIPT = """\
place=$1; shift
sh -c 'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"' sh "$@" 3<&1 >/dev/null &
exec >/dev/null
read -r nothing
kill -KILL $! 2>/dev/null
wait $!
rm -rf "$place"
"""
"""Standard output is the socket that qemu-nbd finds as descriptor 3, as systemd hands one over."""

_SOCKET = "nbd"
_MAX_PATH = 100  # bytes that the name of a socket may have


class Helper:
    """The running program; made by :meth:`start`.

    Attributes:
        link: the connection to it.
    """

    def __init__(self, process: asyncio.Future[asyncio.subprocess.Process], link: Link) -> None:
        self.link = link
        self._process = process

    @classmethod
    async def start(
        cls, program: str, node: Mapping[str, Any], path: str, seconds: float
    ) -> Helper:
        """Have a node served, and connect to it.

        Args:
            program: name or path of qemu-nbd.
            node: QEMU's options for it; all files are named in it.
            path: the image, for messages.
            seconds: how long an answer may take.

        Raises:
            StorageError: there is no such program, or it cannot open the image.

        Cancellation: nothing is left, no process, file or descriptor.
        """
        found = shutil.which(program)
        if found is None:
            raise StorageError(
                errno.ENOENT, f"There is no {program} here to open the image with", path=path
            )
        command = [found, "--read-only", f"json:{json.dumps(node)}"]
        place = tempfile.mkdtemp(prefix="qedasync-", dir=_directory())
        try:
            with tempfile.TemporaryFile() as log:
                spawning = asyncio.ensure_future(_spawn(place, command, log))
                try:
                    # A shell that is killed while it starts leaves qemu-nbd: it must not be.
                    await _settle(spawning)
                    address = Address(tls=False, export="", socket=os.path.join(place, _SOCKET))
                    link = await open_link(address, None, (BASE_ALLOCATION,), seconds)
                except BaseException as error:
                    await _end(spawning)
                    if not isinstance(error, StorageError):
                        raise
                    why = _reason(log) or str(error.strerror)
                    raise StorageError(errno.EINVAL, why, path=path) from error
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return cls(spawning, link)

    async def stop(self) -> None:
        """End it, whatever it does; idempotent.

        Cancellation: when it has ended.
        """
        await _end(self._process)


async def _settle(doing: asyncio.Future[Any]) -> None:
    """Wait for something that is not to be cancelled; raises what it raises.

    Cancellation: is raised when that has ended.
    """
    cancelled = False
    while not doing.done():
        try:
            await asyncio.wait([doing])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    doing.result()


async def _end(spawned: asyncio.Future[asyncio.subprocess.Process]) -> None:
    """End the process, if it ever began."""
    if spawned.exception() is not None:
        return
    process = spawned.result()
    assert process.stdin is not None
    process.stdin.close()
    await _settle(asyncio.ensure_future(process.wait()))


def _directory() -> str | None:
    """Where the socket's directory goes: the usual place, unless its name is too long."""
    return "/tmp" if len(os.fsencode(tempfile.gettempdir())) > _MAX_PATH - 30 else None


async def _spawn(place: str, command: list[str], log: IO[bytes]) -> asyncio.subprocess.Process:
    """Start the shell, with a socket to hand on; an interrupt from the terminal passes it by."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.join(place, _SOCKET))
        listener.listen(1)
        return await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", _SCRIPT, "sh", place, *command),
            stdin=asyncio.subprocess.PIPE,
            stdout=listener.fileno(),
            stderr=log,
            start_new_session=True,
        )


def _reason(log: IO[bytes]) -> str:
    """The last that it said, without the options that we know."""
    log.seek(0)
    lines = log.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
    lines = [line for line in lines if line.startswith("qemu-nbd: ")]
    text = lines[-1].removeprefix("qemu-nbd: ") if lines else ""
    return re.sub(r"^Failed to blk_new_open 'json:.*?}': ", "", text)
