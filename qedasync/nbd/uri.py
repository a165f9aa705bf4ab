"""NBD URIs, as libnbd reads them: ``nbd://``, ``nbds://``, ``nbd+unix://``, ``nbds+unix://``.

What libnbd follows and we do not is refused by name: virtual sockets and ssh, and TLS without
certificates, which :mod:`ssl` cannot do before Python 3.13.

Source: the NBD project's doc/uri.md.
"""

from __future__ import annotations

from collections.abc import Mapping
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
_QUERY = {"socket", "tls-certificates", "tls-verify-peer", "tls-hostname", "tls-type"}
_ELSEWHERE = {
    "nbd+vsock": "virtual sockets",
    "nbds+vsock": "virtual sockets",
    "nbd+ssh": "ssh",
    "nbds+ssh": "ssh",
}
_KEYS = {"tls-psk-file", "tls-username"}  # of TLS with a shared key
_NO_PSK = "this version of Python's ssl cannot do"
_BYTES = "surrogateescape"  # names of files and exports may be any bytes
_YES, _NO = {"1", "true", "t", "yes", "y", "on"}, {"0", "false", "f", "no", "n", "off"}


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
            return f"{scheme}+unix:///{_quote(self.export)}?socket={_quote(self.socket)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/{_quote(self.export)}"


def _quote(text: str) -> str:
    return quote(text, errors=_BYTES)


def is_nbd_uri(text: str) -> bool:
    """Whether the text begins like one."""
    scheme, found, _ = text.partition("://")
    return bool(found) and (scheme in _SCHEMES or scheme in _ELSEWHERE)


def parse_uri(uri: str) -> Address:
    """Take a URI apart.

    Raises:
        RequestError: it is not an NBD URI, or one that we cannot follow.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port
        query = dict(
            parse_qsl(
                parts.query,
                keep_blank_values=True,
                strict_parsing=bool(parts.query),
                errors=_BYTES,
            )
        )
    except ValueError as error:
        raise RequestError(f"{uri!r} is not an NBD URI: {error}") from error
    scheme = parts.scheme
    if scheme in _ELSEWHERE:
        raise RequestError(f"{uri!r}: NBD over {_ELSEWHERE[scheme]} is not supported")
    if scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise RequestError(f"{uri!r} is not an NBD URI; those begin with {known}")
    tls, unix = _SCHEMES[scheme]
    _check_query(uri, query, tls)
    if unix != ("socket" in query) or (unix and parts.netloc):
        wanted = "a path in ?socket= and no host" if unix else "a host, not ?socket="
        raise RequestError(f"{uri!r}: {scheme}:// takes {wanted}")
    if parts.username is not None:
        raise RequestError(f"{uri!r}: a user's name is for TLS with a shared key, {_NO_PSK}")
    return Address(
        tls=tls,
        export=unquote(parts.path.removeprefix("/"), errors=_BYTES),
        host="" if unix else parts.hostname or "localhost",
        port=DEFAULT_PORT if port is None else port,
        socket=query.get("socket", ""),
        certificates=query.get("tls-certificates", ""),
        verify=_flag(uri, query, "tls-verify-peer"),
        hostname=query.get("tls-hostname", ""),
    )


def _check_query(uri: str, query: Mapping[str, str], tls: bool) -> None:
    """Raise for parameters that there are not, or that do not fit the scheme."""
    if _KEYS & set(query) or query.get("tls-type", "x509") != "x509":
        raise RequestError(f"{uri!r}: TLS without certificates is what {_NO_PSK}")
    unknown = sorted(set(query) - _QUERY)
    if unknown:
        raise RequestError(f"{uri!r}: unknown parameter {unknown[0]!r}")
    idle = sorted(key for key in query if key.startswith("tls-"))
    if idle and not tls:
        # Differs from libnbd, which goes on in plain text: who gives certificates wants them used.
        raise RequestError(f"{uri!r}: {idle[0]} is for nbds:// and nbds+unix://")


def _flag(uri: str, query: Mapping[str, str], key: str) -> bool:
    word = query.get(key, "1").lower()
    if word not in _YES | _NO:
        raise RequestError(f"{uri!r}: {key} is {word!r}, which is neither 1 nor 0")
    return word in _YES
