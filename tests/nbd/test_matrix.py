"""Every way to reach our server, with the real tools: TCP, Unix sockets, each with and without
TLS where clients have to show a certificate. Both loops, as everywhere.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

import qedasync
from qedasync import nbd
from tests.helpers import qemu
from tests.nbd.certificates import make_certificates
from tests.nbd.test_peers import SIZE, make, round_trip, tool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="real tools are on Linux")

WAYS = ["tcp", "unix", "tls over tcp", "tls over unix"]


@dataclass(frozen=True, slots=True)
class Reached:
    """A server and how clients find it.

    Attributes:
        uri: for libnbd and us.
        options: the same for QEMU, to follow ``--object`` where there is one.
        image, model: what is served.
    """

    uri: str
    options: str
    image: Path
    model: bytearray
    objects: tuple[str, ...] = ()

    @property
    def qemu(self) -> list[str]:
        """Arguments that name the disk for qemu-img."""
        return [*self.objects, "--image-opts", self.options]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("matrix"))


@asynccontextmanager
async def reached(way: str, pki: Path, folder: Path) -> AsyncIterator[Reached]:
    """Serve an image that way; clients must be called alice where there is TLS."""
    secure, socket = way.startswith("tls"), folder / "s"
    model = await make(folder / "disk.qed")
    tls = nbd.server_context(pki, verify=True) if secure else None
    allow = nbd.allow_names(["alice"]) if secure else None
    where = {"path": socket} if way.endswith("unix") else {"port": 0}
    async with (
        qedasync.open(folder / "disk.qed", "r+") as disk,
        nbd.serve({"disk": disk}, tls=tls, allow=allow, **where) as server,
    ):
        uri, options = (
            server.uri("disk").replace("127.0.0.1", "localhost"),
            "driver=nbd,export=disk",
        )
        if way.endswith("unix"):
            options += f",path={socket}"
        else:
            options += f",host=localhost,port={server.port}"
        objects: tuple[str, ...] = ()
        if secure:
            uri += f"{'&' if '?' in uri else '?'}tls-certificates={pki}"
            options += ",tls-creds=t" + (",tls-hostname=localhost" if "path=" in options else "")
            objects = ("--object", f"tls-creds-x509,id=t,dir={pki},endpoint=client")
        yield Reached(uri, options, folder / "disk.qed", model, objects)


@pytest.mark.parametrize("way", WAYS)
async def test_our_client(way: str, pki: Path, tmp_path: Path) -> None:
    async with reached(way, pki, tmp_path) as there, nbd.connect(there.uri) as client:
        assert await client.pread(SIZE, 0) == there.model
        await round_trip(client)


@pytest.mark.parametrize("way", WAYS)
async def test_qemu_img(way: str, pki: Path, tmp_path: Path) -> None:
    """Its TLS needs a name to check where there is no host."""
    if shutil.which("qemu-img") is None:
        pytest.skip("there is no qemu-img")
    async with reached(way, pki, tmp_path) as there:
        raw = tmp_path / "flat.raw"
        await tool("qemu-img", "convert", *there.qemu, "-O", "raw", raw)
        assert raw.read_bytes() == there.model
        assert str(SIZE) in await tool("qemu-img", "info", *there.qemu)
        runs = json.loads(await tool("qemu-img", "map", "--output=json", *there.qemu))
        assert sum(run["length"] for run in runs) == SIZE
        if not there.objects:  # qemu-img bench takes none
            bench = ["qemu-img", "bench", "-w", "-c", "500", "-d", "16", "-s", "4k", "-S", "64k"]
            assert "completed" in await tool(*bench, *there.qemu)
    assert qemu.check(there.image)["corruptions"] == 0


@pytest.mark.parametrize("way", WAYS)
async def test_libnbd(way: str, pki: Path, tmp_path: Path) -> None:
    """On a Unix socket it holds the certificate against no name but one it is told of."""
    async with reached(way, pki, tmp_path) as there:
        uri = f"{there.uri}&tls-hostname=localhost" if way == "tls over unix" else there.uri
        assert (await tool("nbdinfo", "--size", uri)).strip() == str(SIZE)
        raw, fresh = tmp_path / "out.raw", Random(way).randbytes(SIZE)
        await tool("nbdcopy", uri, raw)
        assert raw.read_bytes() == there.model
        raw.write_bytes(fresh)
        await tool("nbdcopy", "--flush", raw, uri)
        async with nbd.connect(there.uri) as client:
            assert await client.pread(SIZE, 0) == fresh


SCRIPT = """
import nbd
size = h.get_size()
h.pwrite(b"x" * 100000, 12345)
assert h.pread(100000, 12345) == b"x" * 100000
h.zero(40000, 20000, nbd.CMD_FLAG_FUA)
assert h.pread(40000, 20000) == bytes(40000)
h.zero(4096, 1 << 20, nbd.CMD_FLAG_NO_HOLE)
h.trim(1 << 20, 2 << 20)
h.cache(1 << 20, 0)
h.flush()
found = []
def extent(context, offset, entries, error):
    found.append((context, offset, sum(entries[::2])))
h.block_status(size, 0, extent)
assert {context for context, _, _ in found} == {"base:allocation"}
buffers = [nbd.Buffer(4096) for _ in range(64)]
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([n]) * 4096), n * 8192)
           for n in range(64)]
cookies += [h.aio_pread(buffer, (n + 64) * 8192) for n, buffer in enumerate(buffers)]
while h.aio_in_flight():
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
assert all(h.pread(4096, n * 8192) == bytes([n]) * 4096 for n in range(64))
chunks = []
h.pread_structured(1 << 20, 4 << 20, lambda data, offset, status, error: chunks.append(len(data)))
assert sum(chunks) == 1 << 20
h.pread_structured(1 << 20, 4 << 20, lambda *chunk: None, nbd.CMD_FLAG_DF)
for bad in (lambda: h.pread(1, size), lambda: h.pwrite(b"x", size), lambda: h.trim(1, size)):
    h.set_strict_mode(0)
    try:
        bad()
    except nbd.Error as error:
        assert error.errno in ("EINVAL", "ENOSPC"), error.errno
    else:
        raise AssertionError("it was past the end")
h.shutdown()
print("all well")
"""


NBDSH = ("/usr/bin/python3", "-m", "nbd")
"""What the command of that name starts, with the first python3 on the path, which may be ours."""


@pytest.fixture(scope="module")
def nbdsh() -> None:
    found = Path(NBDSH[0]).exists()
    if not found or subprocess.run([*NBDSH, "--version"], capture_output=True).returncode:
        pytest.skip("there is no nbdsh")


@pytest.mark.usefixtures("nbdsh")
@pytest.mark.parametrize("way", WAYS)
async def test_nbdsh(way: str, pki: Path, tmp_path: Path) -> None:
    async with reached(way, pki, tmp_path) as there:
        uri = f"{there.uri}&tls-hostname=localhost" if way == "tls over unix" else there.uri
        connect = f"h.set_uri_allow_local_file(True)\nh.connect_uri({uri!r})\n"
        assert "all well" in await tool(*NBDSH, "--base-allocation", "-c", connect + SCRIPT)
    assert qemu.check(there.image)["corruptions"] == 0


@pytest.mark.parametrize("way", WAYS[2:])
async def test_tls_client_of_another_authority_does_not_come_in(
    way: str, pki: Path, tmp_path: Path
) -> None:
    other = make_certificates(tmp_path / "other")
    async with reached(way, pki, tmp_path) as there:
        for uri in (there.uri.replace(str(pki), str(other)), there.uri.replace("nbds", "nbd")):
            await tool("nbdinfo", uri.partition("?tls")[0] if "nbd:" in uri else uri, code=1)
        await asyncio.sleep(0)
        async with nbd.connect(there.uri) as client:
            assert await client.pread(1, 0) == there.model[:1]
