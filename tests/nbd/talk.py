"""Bytes of the NBD protocol as a client sends them, packed by hand."""

from __future__ import annotations

import struct

__all__ = ["GREETING", "Reply", "flags", "go", "meta", "option", "replies", "request"]

GREETING = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)

Reply = tuple[int, int, bytes]


def flags(value: int = 3) -> bytes:
    return struct.pack(">I", value)


def option(number: int, data: bytes = b"", magic: int = 0x49484156454F5054) -> bytes:
    return struct.pack(">QII", magic, number, len(data)) + data


def go(name: bytes, *wishes: int, number: int = 7) -> bytes:
    body = struct.pack(">I", len(name)) + name + struct.pack(">H", len(wishes))
    return option(number, body + b"".join(struct.pack(">H", wish) for wish in wishes))


def meta(number: int, name: bytes, *queries: bytes) -> bytes:
    body = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    body += b"".join(struct.pack(">I", len(query)) + query for query in queries)
    return option(number, body)


def replies(output: bytes) -> list[Reply]:
    """(option, kind, data) of each answer in a server's output."""
    found = []
    while output:
        magic, number, kind, length = struct.unpack_from(">QIII", output)
        assert magic == 0x3E889045565A9
        found.append((number, kind, output[20 : 20 + length]))
        output = output[20 + length :]
    return found


def request(
    command: int,
    offset: int,
    length: int,
    *,
    cookie: int = 1,
    flags: int = 0,
    payload: bytes = b"",
    extended: bool = False,
) -> bytes:
    if extended:
        head = struct.pack(">IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length)
    else:
        head = struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)
    return head + payload
