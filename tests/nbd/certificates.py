"""A small authority for tests: openssl makes a directory as QEMU and libnbd lay it out."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["make_certificates"]


def make_certificates(directory: Path, client: str = "alice") -> Path:
    """``ca-cert.pem``, and certificates with keys for a server on localhost and a client."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl")
    directory.mkdir(parents=True, exist_ok=True)
    _openssl(directory, "req", "-x509", *_key("ca"), "-subj", "/CN=authority", "-days", "2")
    for name, subject in (("server", "localhost"), ("client", client)):
        _openssl(directory, "req", *_key(name, "csr"), "-subj", f"/CN={subject}")
        (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        sign = ["x509", "-req", "-in", f"{name}.csr", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem"]
        sign += ["-CAcreateserial", "-out", f"{name}-cert.pem", "-days", "2", "-extfile", "names"]
        _openssl(directory, *sign)
    return directory


def _key(name: str, out: str = "") -> list[str]:
    target = f"{name}.csr" if out else f"{name}-cert.pem"
    return ["-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}-key.pem", "-out", target]


def _openssl(directory: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)
