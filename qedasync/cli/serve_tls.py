"""TLS as the command line has it: a directory, single files, or an object of QEMU's."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import NamedTuple

from qedasync import nbd
from qedasync.cli.nodes.spec import parse_image_opts
from qedasync.cli.nodes.values import flag, text
from qedasync.cli.options import Parsed, ToolError
from qedasync.cli.run import link_name

__all__ = ["client_tls", "server_tls"]

_IGNORED = ("priority", "sanity-check")
_NO_KEYS = "TLS without certificates is what this version of Python's ssl cannot do"


class _Credentials(NamedTuple):
    """A ``tls-creds-x509`` object.

    Attributes:
        directory: of the certificates.
        server: whether they are for a server's end.
        verify: whether the other end's certificate is looked at.
    """

    directory: str
    server: bool
    verify: bool


def server_tls(parsed: Parsed) -> Callable[[], ssl.SSLContext] | None:
    """Makes the context, now and at each SIGHUP; None without TLS.

    Raises:
        ToolError: what the options say does not fit.
    """
    found = _credentials(parsed)
    _check_needed(parsed)
    if parsed.has("tls-authz"):
        raise ToolError("--tls-authz is not supported; --allow takes a client's common name")
    if found is not None:
        if not found.server:
            raise ToolError("Expecting TLS credentials with a server endpoint")
        return lambda: nbd.server_context(found.directory, verify=found.verify)
    directory, certificate = parsed.last("tls-creds"), parsed.last("tls-cert")
    verify = parsed.has("tls-verify") or parsed.has("allow")
    if directory is None and certificate is None:
        if verify or parsed.has("tls-key") or parsed.has("tls-ca"):
            raise ToolError("TLS needs --tls-creds, or --tls-cert and --tls-key")
        return None
    key, ca = parsed.last("tls-key"), parsed.last("tls-ca")
    return lambda: nbd.server_context(
        directory, certificate=certificate, key=key, ca=ca, verify=verify
    )


def client_tls(parsed: Parsed) -> ssl.SSLContext | None:
    """For ``--list``; None without TLS.

    Raises:
        ToolError: what the options say does not fit.
    """
    found = _credentials(parsed)
    _check_needed(parsed)
    if found is not None:
        if found.server:
            raise ToolError("Expecting TLS credentials with a client endpoint")
        return nbd.client_context(found.directory, verify=found.verify)
    directory = parsed.last("tls-creds")
    return None if directory is None else nbd.client_context(directory)


def _check_needed(parsed: Parsed) -> None:
    for key in ("tls-authz", "tls-hostname"):
        if parsed.has(key) and not parsed.has("tls-creds"):
            raise ToolError(f"--{key} is not permitted without --tls-creds")


def _credentials(parsed: Parsed) -> _Credentials | None:
    """The object that ``--tls-creds`` names; None if that is a directory, or not there."""
    objects = dict(map(_object, parsed.all("object")))
    name = parsed.last("tls-creds")
    if name is None or name in objects:
        return objects.get(name or "")
    if objects or link_name() == "qemu-nbd":
        raise ToolError(f"Failed to get TLS creds: No TLS credentials with id '{name}'")
    return None


def _object(words: str) -> tuple[str, _Credentials]:
    """An object's name and what it is."""
    options = parse_image_opts(words)
    kind = text(options.pop("qom-type", options.pop("file", None)))
    if kind is None:
        raise ToolError("Parameter 'qom-type' is missing")
    if kind in ("tls-creds-psk", "tls-creds-anon"):
        raise ToolError(f"{kind}: {_NO_KEYS}")
    if kind != "tls-creds-x509":
        raise ToolError(f"Parameter 'qom-type' does not accept value '{kind}'")
    name, directory = text(options.pop("id", None)), text(options.pop("dir", None))
    if not name:
        raise ToolError("Parameter 'id' is missing")
    end = text(options.pop("endpoint", "client"))
    if end not in ("client", "server"):
        raise ToolError(f"Parameter 'endpoint' does not accept value '{end}'")
    verify = flag(options, "verify-peer", True)
    for key in _IGNORED:
        options.pop(key, None)
    if options:
        raise ToolError(f"Parameter '{next(iter(options))}' is unexpected")
    return name, _Credentials(directory or ".", end == "server", verify)
