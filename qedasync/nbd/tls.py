"""TLS contexts from files: a directory laid out as QEMU and libnbd have it, or single files.

A directory has ``ca-cert.pem`` and, for the server, ``server-cert.pem`` and ``server-key.pem``; a
client that has to prove who it is has ``client-cert.pem`` and ``client-key.pem``.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from qedasync.errors import RequestError, storage_error

__all__ = ["allow_names", "client_context", "server_context"]


def server_context(
    directory: str | os.PathLike[str] | None = None,
    *,
    certificate: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
    ca: str | os.PathLike[str] | None = None,
    verify: bool = False,
) -> ssl.SSLContext:
    """For the server's side, TLS 1.2 or later.

    Args:
        directory: of certificates, as above; or else the files one by one.
        certificate, key: the server's own, PEM.
        ca: who signs the clients' certificates, PEM.
        verify: whether clients must have one.

    Raises:
        RequestError: files are missing, or no certificates.
    """
    if directory is not None:
        base = Path(directory)
        certificate = certificate or base / "server-cert.pem"
        key = key or base / "server-key.pem"
        ca = ca or (base / "ca-cert.pem" if verify else None)
    if certificate is None:
        raise RequestError("TLS needs a directory of certificates, or a certificate and a key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(lambda: context.load_cert_chain(certificate, key), f"{certificate}, {key or certificate}")
    if verify:
        if ca is None:
            raise RequestError("Checking the clients' certificates needs that of their authority")
        context.verify_mode = ssl.CERT_REQUIRED
        _load(lambda: context.load_verify_locations(ca), str(ca))
    return context


def client_context(
    directory: str | os.PathLike[str] | None = None,
    *,
    certificate: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
    ca: str | os.PathLike[str] | None = None,
    verify: bool = True,
) -> ssl.SSLContext:
    """For the client's side; the system's authorities unless files say otherwise.

    Args and raises: as for :func:`server_context`; ``verify`` is about the server's certificate.
    """
    if directory is not None:
        base = Path(directory)
        ca = ca or base / "ca-cert.pem"
        if certificate is None and (base / "client-cert.pem").exists():
            certificate, key = base / "client-cert.pem", base / "client-key.pem"
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca is not None and verify:
        _load(lambda: context.load_verify_locations(ca), str(ca))
    if certificate is not None:
        _load(lambda: context.load_cert_chain(certificate, key), str(certificate))
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def allow_names(names: Collection[str]) -> Callable[[Mapping[str, Any] | None], bool]:
    """A check that lets in clients whose certificate has one of these common names."""
    wanted = set(names)

    def allow(certificate: Mapping[str, Any] | None) -> bool:
        subject = (certificate or {}).get("subject", ())
        return any(
            key == "commonName" and value in wanted for part in subject for key, value in part
        )

    return allow


def _load(load: Callable[[], None], what: str) -> None:
    try:
        load()
    except ssl.SSLError as error:
        raise RequestError(f"Cannot use the certificates in {what}: {error}") from error
    except OSError as error:
        raise storage_error(error, path=what) from error
