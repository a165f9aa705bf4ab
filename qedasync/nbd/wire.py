"""The NBD protocol's words: numbers, and the packing of every fixed part. Pure; knows no sockets.

Source: the NBD project's doc/proto.md, as of the extended headers. All integers are big-endian.
"""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

__all__ = [
    "BLOCK_DESCRIPTOR",
    "BLOCK_DESCRIPTOR_EXT",
    "CHUNK_HEADER",
    "CLIENT_FLAGS",
    "EXTENDED_CHUNK_HEADER",
    "EXTENDED_REPLY_MAGIC",
    "EXTENDED_REQUEST",
    "EXTENDED_REQUEST_MAGIC",
    "GREETING",
    "GREETING_MAGIC",
    "MAX_NAME",
    "MAX_OPTION",
    "OPTION_HEADER",
    "OPTION_MAGIC",
    "OPTION_REPLY",
    "OPTION_REPLY_MAGIC",
    "REQUEST",
    "REQUEST_MAGIC",
    "SIMPLE_REPLY",
    "SIMPLE_REPLY_MAGIC",
    "STRUCTURED_REPLY_MAGIC",
    "ChunkFlag",
    "ChunkType",
    "ClientFlag",
    "Command",
    "CommandFlag",
    "Error",
    "GreetingFlag",
    "InfoType",
    "Option",
    "OptionReply",
    "StatusFlag",
    "TransmissionFlag",
    "to_errno",
    "to_wire",
]

GREETING_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C

MAX_NAME: Final = 4096  # bytes of an export's or context's name, of a description
MAX_OPTION: Final = 64 << 10  # bytes of one option's data that we care to hold

GREETING = Struct(">QQH")  # GREETING_MAGIC, OPTION_MAGIC, flags
CLIENT_FLAGS = Struct(">I")
OPTION_HEADER = Struct(">QII")  # OPTION_MAGIC, option, length
OPTION_REPLY = Struct(">QIII")  # OPTION_REPLY_MAGIC, option, reply, length
REQUEST = Struct(">IHHQQI")  # REQUEST_MAGIC, flags, command, cookie, offset, length
EXTENDED_REQUEST = Struct(">IHHQQQ")
SIMPLE_REPLY = Struct(">IIQ")  # SIMPLE_REPLY_MAGIC, error, cookie
CHUNK_HEADER = Struct(">IHHQI")  # STRUCTURED_REPLY_MAGIC, flags, type, cookie, length
EXTENDED_CHUNK_HEADER = Struct(
    ">IHHQQQ"
)  # EXTENDED_REPLY_MAGIC, flags, type, cookie, offset, length
BLOCK_DESCRIPTOR = Struct(">II")  # length, status
BLOCK_DESCRIPTOR_EXT = Struct(">QQ")


class GreetingFlag(IntFlag):
    """What the server can do before any option."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class ClientFlag(IntFlag):
    """The client's answer to the greeting."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    """What a client may ask for before it uses an export."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class OptionReply(IntEnum):
    """The server's answer; those from 2**31 on are errors."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_PLATFORM = (1 << 31) + 4
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_BLOCK_SIZE_REQD = (1 << 31) + 8
    ERR_TOO_BIG = (1 << 31) + 9
    ERR_EXT_HEADER_REQD = (1 << 31) + 10


class InfoType(IntEnum):
    """Parts of what INFO and GO tell of an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11
    BLOCK_STATUS_PAYLOAD = 1 << 12


class Command(IntEnum):
    """What a request wants."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7
    RESIZE = 8


class CommandFlag(IntFlag):
    """How."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4
    PAYLOAD_LEN = 1 << 5


class ChunkFlag(IntFlag):
    """Of a structured reply's chunk."""

    DONE = 1


class ChunkType(IntEnum):
    """What a structured reply's chunk holds; those from 2**15 on are errors."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


class StatusFlag(IntFlag):
    """``base:allocation``: 0 is data."""

    HOLE = 1
    ZERO = 2


class Error(IntEnum):
    """Error numbers on the wire, whatever the host's are."""

    NONE = 0
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


_TO_WIRE: dict[int, Error] = {
    errno.EPERM: Error.EPERM,
    errno.EACCES: Error.EPERM,
    errno.EROFS: Error.EPERM,
    errno.EIO: Error.EIO,
    errno.ENOMEM: Error.ENOMEM,
    errno.EINVAL: Error.EINVAL,
    errno.ENOSPC: Error.ENOSPC,
    errno.EDQUOT: Error.ENOSPC,
    errno.EFBIG: Error.ENOSPC,
    errno.EOVERFLOW: Error.EOVERFLOW,
    errno.ENOTSUP: Error.ENOTSUP,
    errno.ESHUTDOWN: Error.ESHUTDOWN,
}

_TO_ERRNO: dict[int, int] = {
    Error.EPERM: errno.EPERM,
    Error.EIO: errno.EIO,
    Error.ENOMEM: errno.ENOMEM,
    Error.EINVAL: errno.EINVAL,
    Error.ENOSPC: errno.ENOSPC,
    Error.EOVERFLOW: errno.EOVERFLOW,
    Error.ENOTSUP: errno.ENOTSUP,
    Error.ESHUTDOWN: errno.ESHUTDOWN,
}


def to_wire(number: int | None) -> Error:
    """The wire's word for a host error number; what it has no word for is ``EIO``."""
    return _TO_WIRE.get(number or 0, Error.EIO)


def to_errno(number: int) -> int:
    """The host's number for the wire's; an unknown one is ``EINVAL``, as the protocol asks."""
    return _TO_ERRNO.get(number, errno.EINVAL)
