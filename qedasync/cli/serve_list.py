"""``qedasync serve --list``: what another server has, as ``qemu-nbd --list`` prints it."""

from __future__ import annotations

import ssl
from urllib.parse import quote

from qedasync import StorageError, nbd
from qedasync.cli.nodes.remote import explained
from qedasync.cli.options import Parsed, ToolError
from qedasync.cli.run import EXIT_OK, run_async
from qedasync.cli.serve_tls import client_tls
from qedasync.cli.serve_wish import as_qemu, port_of

__all__ = ["list_exports"]

_PER_DEVICE = (
    "export-name", "description", "offset", "connect", "disconnect", "format", "load-snapshot",
    "bitmap", "allocation-depth", "aio", "discard", "cache", "nocache",
)  # fmt: skip
_FLAGS = (  # from bit 1 on
    "readonly", "flush", "fua", "rotational", "trim", "zeroes", "df", "multi", "resize", "cache",
    "fast-zero", "block-status-payload",
)  # fmt: skip


def list_exports(parsed: Parsed) -> int:
    """Print them; answers the exit code."""
    if parsed.names:
        raise ToolError("List mode is incompatible with a file name")
    if any(map(parsed.has, _PER_DEVICE)):
        raise ToolError("List mode is incompatible with per-device settings")
    if parsed.has("fork"):
        raise ToolError("List mode is incompatible with forking")
    tls = client_tls(parsed)
    listed = run_async(_ask(_uri(parsed, secure=tls is not None), tls))
    print(f"exports available: {len(listed)}")
    for one in listed:
        print("\n".join(_lines(one)))
    return EXIT_OK


async def _ask(uri: str, tls: ssl.SSLContext | None) -> list[nbd.Listed]:
    try:
        return await nbd.list_exports(uri, tls=tls)
    except StorageError as error:
        raise explained(error, nbd.parse_uri(uri)) from error


def _uri(parsed: Parsed, *, secure: bool) -> str:
    path, scheme = parsed.last("socket"), "nbds" if secure else "nbd"
    name = quote(parsed.last("tls-hostname", "") or "")
    hostname = f"tls-hostname={name}" if name else ""
    if path is not None:
        if as_qemu() and not path.startswith("/"):
            raise ToolError("socket path must be absolute")
        return f"{scheme}+unix:///?socket={quote(path)}" + (f"&{hostname}" if name else "")
    host = parsed.last("bind", "0.0.0.0" if as_qemu() else "127.0.0.1") or ""
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{port_of(parsed)}/" + (f"?{hostname}" if name else "")


def _lines(one: nbd.Listed) -> list[str]:
    facts = one.facts
    lines = [f" export: '{one.name}'"]
    if facts.description:
        lines.append(f"  description: {facts.description}")
    if facts.flags:
        names = [name for bit, name in enumerate(_FLAGS, 1) if facts.flags >> bit & 1]
        lines.append(f"  size:  {facts.size}")
        lines.append(f"  flags: {int(facts.flags):#x} ( {''.join(f'{n} ' for n in names)})")
    if one.told_block_sizes:
        least, preferred, most = facts.block_sizes
        lines += [f"  min block: {least}", f"  opt block: {preferred}", f"  max block: {most}"]
    if one.contexts:
        lines.append(f"  available meta contexts: {len(one.contexts)}")
        lines += [f"   {context}" for context in one.contexts]
    return lines
