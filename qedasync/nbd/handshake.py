"""The server's side of the handshake, without I/O: bytes in, bytes and one decision out.

Feed what the client sends with :meth:`ServerHandshake.receive`, send what :meth:`take_output`
gives, and do what :attr:`ServerHandshake.outcome` says once it is set. Nothing a client sends is
held beyond what the protocol needs: names and lengths are checked before their bytes are waited
for, and what an option says too much of is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from qedasync.nbd.wire import (
    CLIENT_FLAGS,
    GREETING,
    GREETING_MAGIC,
    MAX_NAME,
    MAX_OPTION,
    OPTION_HEADER,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    ClientFlag,
    GreetingFlag,
    InfoType,
    Option,
    OptionReply,
    TransmissionFlag,
)

__all__ = ["BASE_ALLOCATION", "ALLOCATION_DEPTH", "ExportFacts", "Outcome", "ServerHandshake"]

BASE_ALLOCATION = "base:allocation"
ALLOCATION_DEPTH = "qemu:allocation-depth"
CONTEXTS = {BASE_ALLOCATION: 1, ALLOCATION_DEPTH: 2}
"""The metadata contexts there are, and the numbers we give them."""

_MAX_OPTIONS = 256  # of one handshake
_MAX_PASSED_OVER = 1 << 20  # bytes of an option; reading on for longer would be the client's game
_MAX_QUERIES = 64  # of one list of contexts


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """What a client may learn of an export.

    Attributes:
        size: bytes.
        flags: what it can do.
        description: a text, may be empty.
        block_sizes: least, preferred and largest bytes of a request.
        depth: whether it has the context ``qemu:allocation-depth``.
    """

    size: int
    flags: TransmissionFlag
    description: str = ""
    block_sizes: tuple[int, int, int] = (1, 4096, 32 << 20)
    depth: bool = True


class Outcome(Enum):
    """What a handshake came to."""

    STARTTLS = "starttls"  # the output asks the client to begin with TLS
    TRANSMISSION = "transmission"  # requests for ``export_name`` follow
    CLOSE = "close"  # send the output, then hang up


@dataclass(slots=True)
class ServerHandshake:
    """One client's handshake.

    Args:
        exports: by name; what the client sees of them.
        find: the name of the export that a client means by a name, or None; by default as it is.
        tls: whether the connection is encrypted by now.
        tls_offered: whether STARTTLS may be answered.
        tls_required: whether nothing may be learnt without TLS.

    Attributes:
        outcome: set once something is to be done.
        export_name: the export chosen, for TRANSMISSION.
        structured, extended: which replies the client understands.
        contexts: the metadata contexts it has chosen, name to number.
        rest: bytes that came after what the handshake needed.
    """

    exports: Mapping[str, ExportFacts]
    find: Callable[[str], str | None] | None = None
    tls: bool = False
    tls_offered: bool = False
    tls_required: bool = False
    outcome: Outcome | None = None
    export_name: str = ""
    structured: bool = False
    extended: bool = False
    contexts: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    _input: bytearray = field(default_factory=bytearray)
    _output: bytearray = field(default_factory=bytearray)
    _flags: ClientFlag | None = None
    _skip: int = 0
    _options: int = 0
    _contexts_for: str | None = None

    def __post_init__(self) -> None:
        flags = GreetingFlag.FIXED_NEWSTYLE | GreetingFlag.NO_ZEROES
        if not self.tls:
            self._output += GREETING.pack(GREETING_MAGIC, OPTION_MAGIC, flags)

    def take_output(self) -> bytes:
        """What to send now."""
        output, self._output = bytes(self._output), bytearray()
        return output

    @property
    def rest(self) -> bytes:
        """What the client sent beyond the handshake."""
        return bytes(self._input)

    @property
    def no_zeroes(self) -> bool:
        """Whether the client does without the padding after EXPORT_NAME."""
        return bool((self._flags or 0) & ClientFlag.NO_ZEROES)

    def after_tls(self) -> ServerHandshake:
        """The handshake that goes on inside TLS: all that was said before is forgotten."""
        fresh = ServerHandshake(self.exports, self.find, tls=True, tls_required=self.tls_required)
        fresh._flags = self._flags
        return fresh

    def receive(self, data: bytes) -> Outcome | None:
        """Take what the client sent; then send :meth:`take_output`. Answers :attr:`outcome`."""
        self._input += data
        while self.outcome is None and self._step():
            pass
        return self.outcome

    # ---------------------------------------------------------------- parsing

    def _step(self) -> bool:
        """Deal with the next whole thing, if it is there."""
        if self._skip:
            passed = min(self._skip, len(self._input))
            del self._input[:passed]
            self._skip -= passed
            return self._skip == 0
        if self._flags is None:
            return self._read_flags()
        return self._read_option()

    def _read_flags(self) -> bool:
        if len(self._input) < CLIENT_FLAGS.size:
            return False
        (flags,) = CLIENT_FLAGS.unpack_from(self._input)
        del self._input[: CLIENT_FLAGS.size]
        if flags & ~int(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES):
            return self._close(f"unknown client flags {flags:#x}")
        self._flags = ClientFlag(flags)
        return True

    def _read_option(self) -> bool:
        if len(self._input) < OPTION_HEADER.size:
            return False
        magic, option, length = OPTION_HEADER.unpack_from(self._input)
        if magic != OPTION_MAGIC:
            return self._close("not an option")
        if self._options == _MAX_OPTIONS:
            return self._close("too many options")
        if length > MAX_OPTION:
            return self._too_long(option, length)
        end = OPTION_HEADER.size + length
        if len(self._input) < end:
            return False
        data = bytes(self._input[OPTION_HEADER.size : end])
        del self._input[:end]
        self._options += 1
        self._dispatch(option, data)
        return True

    def _too_long(self, option: int, length: int) -> bool:
        if option == Option.EXPORT_NAME or length > _MAX_PASSED_OVER:
            return self._close(f"an option of {length} bytes")
        del self._input[: OPTION_HEADER.size]
        self._options += 1
        self._skip = length
        self._reply(option, OptionReply.ERR_TOO_BIG, b"the option's data are too long")
        return True

    def _dispatch(self, option: int, data: bytes) -> None:
        if option == Option.ABORT:
            self._reply(option, OptionReply.ACK)
            self._close("the client has ended the handshake")
        elif option == Option.STARTTLS:
            self._starttls(data)
        elif self.tls_required and not self.tls:
            self._refuse_plain(option)
        elif option == Option.EXPORT_NAME:
            self._export_name(data)
        elif option == Option.LIST:
            self._list(data)
        elif option in (Option.INFO, Option.GO):
            self._info(option, data)
        elif option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            self._meta_context(option, data)
        elif option in (Option.STRUCTURED_REPLY, Option.EXTENDED_HEADERS):
            self._headers(option, data)
        else:
            self._reply(option, OptionReply.ERR_UNSUP, b"unknown option")

    # ---------------------------------------------------------------- options

    def _starttls(self, data: bytes) -> None:
        if data:
            self._invalid(Option.STARTTLS, "STARTTLS has no data")
        elif self.tls:
            self._invalid(Option.STARTTLS, "TLS is on already")
        elif not self.tls_offered:
            self._reply(Option.STARTTLS, OptionReply.ERR_POLICY, b"TLS is not configured")
        elif self._input:
            # Whatever came in plain text after it might have been put there by somebody else.
            self._close("plain text after STARTTLS")
        else:
            self._reply(Option.STARTTLS, OptionReply.ACK)
            self.outcome = Outcome.STARTTLS

    def _refuse_plain(self, option: int) -> None:
        if option == Option.EXPORT_NAME:
            self._close("EXPORT_NAME without TLS")
        else:
            self._reply(option, OptionReply.ERR_TLS_REQD, b"this server needs TLS")

    def _export_name(self, data: bytes) -> None:
        facts = self._choose(data)
        if facts is None:
            self._close("unknown export")
            return
        self._output += facts.size.to_bytes(8, "big") + int(facts.flags).to_bytes(2, "big")
        if not self.no_zeroes:
            self._output += bytes(124)
        self._enter()

    def _list(self, data: bytes) -> None:
        if data:
            self._invalid(Option.LIST, "LIST has no data")
            return
        for name, facts in self.exports.items():
            raw = name.encode()
            entry = len(raw).to_bytes(4, "big") + raw + facts.description.encode()[:MAX_NAME]
            self._reply(Option.LIST, OptionReply.SERVER, entry)
        self._reply(Option.LIST, OptionReply.ACK)

    def _info(self, option: int, data: bytes) -> None:
        length = int.from_bytes(data[:4], "big")
        if len(data) < 6 or length > len(data) - 6:
            self._invalid(option, "the name's length and the option's do not fit")
            return
        wishes = data[4 + length + 2 :]
        count = int.from_bytes(data[4 + length : 6 + length], "big")
        if len(wishes) != 2 * count:
            self._invalid(option, "the number of wishes and the option's length do not fit")
            return
        facts = self._choose(data[4 : 4 + length])
        if facts is None:
            self._reply(option, OptionReply.ERR_UNKNOWN, b"there is no such export")
            return
        wanted = {int.from_bytes(wishes[i : i + 2], "big") for i in range(0, len(wishes), 2)}
        self._tell(option, facts, wanted)
        self._reply(option, OptionReply.ACK)
        if option == Option.GO:
            self._enter()

    def _tell(self, option: int, facts: ExportFacts, wanted: set[int]) -> None:
        if InfoType.NAME in wanted:
            self._tell_one(option, InfoType.NAME, self.export_name.encode())
        if InfoType.DESCRIPTION in wanted and facts.description:
            text = facts.description.encode()[:MAX_NAME]
            self._tell_one(option, InfoType.DESCRIPTION, text)
        sizes = b"".join(size.to_bytes(4, "big") for size in facts.block_sizes)
        self._tell_one(option, InfoType.BLOCK_SIZE, sizes)
        export = facts.size.to_bytes(8, "big") + int(facts.flags).to_bytes(2, "big")
        self._tell_one(option, InfoType.EXPORT, export)

    def _tell_one(self, option: int, kind: InfoType, data: bytes) -> None:
        self._reply(option, OptionReply.INFO, int(kind).to_bytes(2, "big") + data)

    def _headers(self, option: int, data: bytes) -> None:
        if data:
            self._invalid(option, "the option has no data")
        elif option == Option.STRUCTURED_REPLY and self.extended:
            self._reply(option, OptionReply.ERR_EXT_HEADER_REQD, b"extended headers are on")
        else:
            self.structured = True
            self.extended = self.extended or option == Option.EXTENDED_HEADERS
            self._reply(option, OptionReply.ACK)

    def _meta_context(self, option: int, data: bytes) -> None:
        if option == Option.SET_META_CONTEXT:
            self.contexts, self._contexts_for = {}, None
        if not self.structured:
            self._invalid(option, "structured replies come first")
            return
        found = _name_and_queries(data)
        if found is None:
            self._invalid(option, "the lengths do not fit")
            return
        raw, queries = found
        facts = self._choose(raw)
        if facts is None:
            self._reply(option, OptionReply.ERR_UNKNOWN, b"there is no such export")
            return
        if len(queries) > _MAX_QUERIES:
            self._reply(option, OptionReply.ERR_TOO_BIG, b"too many queries")
            return
        listing = option == Option.LIST_META_CONTEXT
        chosen = _matching(queries, facts, listing)
        for name in chosen:
            number = 0 if listing else CONTEXTS[name]
            body = number.to_bytes(4, "big") + name.encode()
            self._reply(option, OptionReply.META_CONTEXT, body)
        if not listing:
            self.contexts = {name: CONTEXTS[name] for name in chosen}
            self._contexts_for = self.export_name
        self._reply(option, OptionReply.ACK)

    # ---------------------------------------------------------------- helpers

    def _choose(self, raw: bytes) -> ExportFacts | None:
        """The export of that name; :attr:`export_name` is its own name then."""
        if len(raw) > MAX_NAME:
            return None
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            return None
        found = self.find(name) if self.find is not None else name
        facts = None if found is None else self.exports.get(found)
        if facts is not None and found is not None:
            self.export_name = found
        return facts

    def _enter(self) -> None:
        if self._contexts_for != self.export_name:
            self.contexts = {}  # chosen for another export
        self.outcome = Outcome.TRANSMISSION

    def _reply(self, option: int, reply: OptionReply, data: bytes = b"") -> None:
        self._output += OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data

    def _invalid(self, option: int, why: str) -> None:
        self._reply(option, OptionReply.ERR_INVALID, why.encode())

    def _close(self, reason: str) -> bool:
        self.outcome, self.reason = Outcome.CLOSE, reason
        return False


def _name_and_queries(data: bytes) -> tuple[bytes, list[bytes]] | None:
    """An export's name and the list of queries, or None if the lengths do not fit."""
    length = int.from_bytes(data[:4], "big")
    if len(data) < 8 or length > len(data) - 8:
        return None
    name, pos = data[4 : 4 + length], 8 + length
    count = int.from_bytes(data[pos - 4 : pos], "big")
    if count > (len(data) - pos) // 4:
        return None
    queries = []
    for _ in range(count):
        if pos + 4 > len(data):
            return None
        size = int.from_bytes(data[pos : pos + 4], "big")
        pos += 4
        if size > len(data) - pos:
            return None
        queries.append(data[pos : pos + size])
        pos += size
    return (name, queries) if pos == len(data) else None


def _matching(queries: list[bytes], facts: ExportFacts, listing: bool) -> list[str]:
    """The contexts that the queries mean; a list without queries means all."""
    known = [BASE_ALLOCATION, *([ALLOCATION_DEPTH] if facts.depth else [])]
    if listing and not queries:
        return known
    wanted = set(queries)
    if listing:
        spaces = {name.partition(":")[0] + ":" for name in known}
        for space in spaces:
            if space.encode() in wanted:
                wanted |= {name.encode() for name in known if name.startswith(space)}
    return [name for name in known if name.encode() in wanted]
