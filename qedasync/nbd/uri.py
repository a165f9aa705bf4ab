"""NBD URIs, as libnbd reads them: ``nbd://``, ``nbds://``, ``nbd+unix://``, ``nbds+unix://``.

Source: the NBD project's doc/uri.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from qedasync.errors import RequestError

__all__ = ["Address", "is_nbd_uri", "parse_uri"]

DEFAULT_PORT = 10809
_SCHEMES = {
    "nbd": (False, False),
    "nbds": (True, False),
    "nbd+unix": (False, True),
    "nbds+unix": (True, True),
}
_QUERY = {"socket", "tls-certificates", "tls-verify-peer", "tls-hostname"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is and what is wanted of it.

    Attributes:
        tls: whether the connection must be encrypted.
        export: the export's name; empty for the server's default.
        host, port: over TCP; host is "" for a Unix socket.
        socket: path of a Unix socket, or "".
        certificates: a directory of certificates, or "".
        verify: whether the server's certificate is checked.
        hostname: the name it is checked against; "" for ``host``.
    """

    tls: bool
    export: str
    host: str = ""
    port: int = DEFAULT_PORT
    socket: str = ""
    certificates: str = ""
    verify: bool = True
    hostname: str = ""

    def __str__(self) -> str:
        scheme = "nbds" if self.tls else "nbd"
        if self.socket:
            return f"{scheme}+unix:///{quote(self.export)}?socket={quote(self.socket)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/{quote(self.export)}"


def is_nbd_uri(text: str) -> bool:
    """Whether the text begins like one."""
    return text.partition("://")[0] in _SCHEMES and "://" in text


def parse_uri(uri: str) -> Address:
    """Take a URI apart.

    Raises:
        RequestError: it is not an NBD URI, or one that we cannot follow.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port
        query = dict(
            parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        )
    except ValueError as error:
        raise RequestError(f"{uri!r} is not an NBD URI: {error}") from error
    if parts.scheme not in _SCHEMES:
        raise RequestError(
            f"{uri!r} is not an NBD URI; those begin with {', '.join(f'{s}://' for s in _SCHEMES)}"
        )
    tls, unix = _SCHEMES[parts.scheme]
    unknown = set(query) - _QUERY
    if unknown:
        raise RequestError(f"{uri!r}: unknown parameter {sorted(unknown)[0]!r}")
    if unix != ("socket" in query) or (unix and parts.hostname):
        wanted = "a path in ?socket= and no host" if unix else "a host, not ?socket="
        raise RequestError(f"{uri!r}: {parts.scheme}:// takes {wanted}")
    return Address(
        tls=tls,
        export=unquote(parts.path.removeprefix("/")),
        host="" if unix else parts.hostname or "localhost",
        port=DEFAULT_PORT if port is None else port,
        socket=query.get("socket", ""),
        certificates=query.get("tls-certificates", ""),
        verify=query.get("tls-verify-peer", "1") not in ("0", "false"),
        hostname=query.get("tls-hostname", ""),
    )
