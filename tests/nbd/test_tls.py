"""TLS: who gets in, and what is said before."""

from __future__ import annotations

from pathlib import Path

import pytest

import qedasync
from qedasync import nbd
from tests.nbd.certificates import make_certificates
from tests.nbd.test_server import disk, raw_client


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("pki"))


async def test_tls_round_trip_over_tcp(pki: Path) -> None:
    tls = nbd.server_context(pki)
    async with disk() as image, nbd.serve({"d": image}, port=0, tls=tls) as server:
        uri = f"nbds://localhost:{server.port}/d?tls-certificates={pki}"
        async with nbd.connect(uri) as client:
            await client.pwrite(b"secret" * 50_000, 5)
            assert await client.pread(300_000, 5) == b"secret" * 50_000


async def test_tls_required_plain_client_learns_nothing(pki: Path, tmp_path: Path) -> None:
    tls = nbd.server_context(pki)
    async with disk() as image, nbd.serve({"d": image}, path=tmp_path / "s", tls=tls) as server:
        with pytest.raises(qedasync.StorageError, match="tls reqd"):
            await nbd.connect(f"nbd+unix:///d?socket={tmp_path / 's'}")
        assert server.counters.accepted == 1


async def test_tls_server_without_the_right_name_is_not_trusted(pki: Path) -> None:
    tls = nbd.server_context(pki)
    async with disk() as image, nbd.serve({"d": image}, port=0, tls=tls) as server:
        uri = f"nbds://localhost:{server.port}/d?tls-certificates={pki}&tls-hostname=elsewhere"
        with pytest.raises(qedasync.StorageError, match="TLS failed"):
            await nbd.connect(uri)


async def test_tls_client_certificate_is_asked_for_and_looked_at(pki: Path, tmp_path: Path) -> None:
    tls = nbd.server_context(pki, verify=True)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "ca-cert.pem").write_bytes((pki / "ca-cert.pem").read_bytes())
    for names, welcome in ((["alice"], True), (["bob"], False)):
        allow = nbd.allow_names(names)
        async with disk() as image, nbd.serve({"d": image}, port=0, tls=tls, allow=allow) as server:
            uri = f"nbds://localhost:{server.port}/d?tls-certificates="
            with pytest.raises(qedasync.StorageError):
                await nbd.connect(f"{uri}{bare}")
            if welcome:
                async with nbd.connect(f"{uri}{pki}") as client:
                    assert await client.pread(1, 0) == b"\0"
            else:
                with pytest.raises(qedasync.StorageError):
                    await nbd.connect(f"{uri}{pki}")


async def test_no_tls_here_is_a_clear_error(tmp_path: Path) -> None:
    async with disk() as image, nbd.serve({"d": image}, path=tmp_path / "s"):
        with pytest.raises(qedasync.StorageError, match="does not do TLS"):
            await nbd.connect(f"nbds+unix:///d?socket={tmp_path / 's'}&tls-verify-peer=0")


async def test_handshake_inside_tls_that_never_comes_is_ended(pki: Path, tmp_path: Path) -> None:
    from tests.nbd.talk import option

    tls, limits = nbd.server_context(pki), nbd.Limits(handshake_seconds=0.1)
    async with (
        disk() as image,
        nbd.serve({"d": image}, path=tmp_path / "s", tls=tls, limits=limits) as server,
        raw_client(server, option(5)) as (reader, _),
    ):
        assert len(await reader.readexactly(20)) == 20
        assert await reader.read() == b""


@pytest.mark.parametrize("missing", ["server-cert.pem", "server-key.pem", "ca-cert.pem"])
def test_context_without_a_file_says_which(pki: Path, tmp_path: Path, missing: str) -> None:
    for file in pki.iterdir():
        if file.name != missing:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(qedasync.QEDError, match=r"\.pem"):
        nbd.server_context(tmp_path, verify=True)


def test_context_of_rubbish_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "server-cert.pem").write_text("no certificate")
    (tmp_path / "server-key.pem").write_text("no key")
    with pytest.raises(qedasync.RequestError, match=r"server-cert\.pem"):
        nbd.server_context(tmp_path)
