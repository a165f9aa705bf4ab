"""The real tools as clients of our server, and as servers of our client."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from socket import AF_UNIX
from socket import socket as Socket

import pytest

import qedasync
from qedasync import nbd
from tests.nbd.certificates import make_certificates

SIZE = 16 << 20


async def tool(*words: str | Path, code: int = 0, text: str = "") -> str:
    """Run one; its output. Skips where it is missing."""
    if shutil.which(str(words[0])) is None:
        pytest.skip(f"there is no {words[0]}")
    process = await asyncio.create_subprocess_exec(
        *words,
        # A pipe to one that reads nothing may be gone before anything is written to it.
        stdin=asyncio.subprocess.PIPE if text else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate(text.encode() if text else None)
    assert process.returncode == code, f"{words}: {said.decode()}"
    return said.decode()


@asynccontextmanager
async def running(*words: str | Path, socket: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server of somebody else's, once it listens; ended afterwards."""
    if shutil.which(str(words[0])) is None:
        pytest.skip(f"there is no {words[0]}")
    process = await asyncio.create_subprocess_exec(*words)
    try:
        for _ in range(500):
            if listens(socket) or process.returncode is not None:
                break
            await asyncio.sleep(0.01)
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def listens(path: Path) -> bool:
    """Whether a client would be taken: the file may be there a moment before."""
    with Socket(AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


async def make(path: Path, seed: int = 1) -> bytearray:
    """An image with data here and there; its content."""
    random = Random(seed)
    model = bytearray(SIZE)
    await qedasync.create(path, SIZE, cluster_size=65536)
    async with qedasync.open(path, "r+") as disk:
        for _ in range(40):
            pos = random.randrange(SIZE - 200_000)
            data = random.randbytes(random.randrange(1, 200_000))
            model[pos : pos + len(data)] = data
            await disk.pwrite(data, pos)
        await disk.write_zeroes(1 << 20, 4 << 20)
        model[4 << 20 : 5 << 20] = bytes(1 << 20)
    return model


@asynccontextmanager
async def served(
    tmp_path: Path, mode: str = "r+"
) -> AsyncIterator[tuple[nbd.Server, Path, bytearray]]:
    image = tmp_path / "disk.qed"
    model = await make(image)
    async with (
        qedasync.open(image, mode) as disk,  # type: ignore[arg-type]
        nbd.serve({"disk": disk}, path=tmp_path / "s") as server,
    ):
        yield server, image, model


# ------------------------------------------------------------------ our server


async def test_nbdinfo_every_mode(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, _, _):
        uri = server.uri("disk")
        (export,) = json.loads(await tool("nbdinfo", "--json", uri))["exports"]
        assert (export["export-name"], export["export-size"]) == ("disk", SIZE)
        can = [key for key in export if key.startswith("can_") and export[key]]
        assert can == [
            "can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn",
            "can_trim", "can_zero",
        ]  # fmt: skip
        assert (await tool("nbdinfo", "--size", uri)).strip() == str(SIZE)
        assert 'export="disk"' in await tool("nbdinfo", "--list", server.uri())
        runs = json.loads(await tool("nbdinfo", "--map", "--json", uri))
        assert sum(run["length"] for run in runs) == SIZE
        assert {run["type"] for run in runs} == {0, 3}
        depths = await tool("nbdinfo", "--map=qemu:allocation-depth", uri)
        assert "local" in depths
        assert "absent" in depths
        totals = json.loads(await tool("nbdinfo", "--map", "--totals", "--json", uri))
        assert sum(total["size"] for total in totals) == SIZE
        assert {total["type"] for total in totals} == {0, 3}
        assert json.loads(await tool("nbdinfo", "--size", "--json", uri)) == SIZE
        (listed,) = json.loads(await tool("nbdinfo", "--list", "--json", server.uri()))["exports"]
        assert listed["export-name"] == "disk"
        words = (
            "connect",
            "read",
            "write",
            "cache",
            "df",
            "fast-zero",
            "flush",
            "fua",
            "multi-conn",
        )
        for what in (*words, "trim", "zero", "structured-reply"):
            await tool("nbdinfo", "--can", what, uri)
        for what in ("read-only", "rotational"):
            await tool("nbdinfo", "--is", what, uri, code=2)
        await tool("nbdinfo", "--is", "tls", uri, code=2)


async def test_nbdcopy_both_ways(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, _, model):
        out, back = tmp_path / "out.raw", tmp_path / "back.raw"
        await tool("nbdcopy", server.uri("disk"), out)
        assert out.read_bytes() == model
        fresh = Random(2).randbytes(SIZE)
        back.write_bytes(fresh)
        await tool("nbdcopy", "--flush", back, server.uri("disk"))
        await tool("nbdcopy", "--connections=4", "--request-size=65536", server.uri("disk"), out)
        assert out.read_bytes() == fresh


async def test_qemu_img_reads_maps_compares_and_converts(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, image, model):
        uri = server.uri("disk")
        assert f"({SIZE} bytes)" in await tool("qemu-img", "info", uri)
        raw = tmp_path / "flat.raw"
        await tool("qemu-img", "convert", "-O", "raw", uri, raw)
        assert raw.read_bytes() == model
        compared = await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, raw)
        assert "identical" in compared
        runs = json.loads(await tool("qemu-img", "map", "--output=json", "-f", "raw", uri))
        assert sum(run["length"] for run in runs) == SIZE
        assert any(run["zero"] for run in runs)
        bench = ["qemu-img", "bench", "-f", "raw", "-c", "2000", "-d", "16", "-s", "4k"]
        assert "completed" in await tool(*bench, uri)
        assert "completed" in await tool(*bench, "-w", "--flush-interval", "64", uri)
    assert "No errors" in await tool("qemu-img", "check", image)


async def test_qemu_io_writes_zeroes_discards_and_verifies(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, image, _):
        script = [
            "write -P 7 12345 100000", "read -P 7 12345 100000", "write -z 20000 40000",
            "read -P 0 20000 40000", "write -z -u 1M 1M", "read -P 0 1M 1M", "discard 2M 1M",
            "write -f -P 9 3M 64k", "read -P 9 3M 64k", "flush", "aio_write -P 1 5M 1M",
            "aio_read -P 9 3M 64k", "aio_flush", "read -P 1 5M 1M",
        ]  # fmt: skip
        said = await tool(
            "qemu-io", "-f", "raw", server.uri("disk"), text="\n".join([*script, "quit\n"])
        )
        assert "failed" not in said
        assert "error" not in said.lower()
    assert "No errors" in await tool("qemu-img", "check", image)


async def test_qemu_image_on_our_export(tmp_path: Path) -> None:
    """qcow2 on top of it: a format that grows is the harder client."""
    async with served(tmp_path) as (server, _, _):
        top = tmp_path / "top.qcow2"
        made = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", server.uri("disk")]
        await tool(*made, top)
        await tool("qemu-io", "-c", "write -P 3 1000 100000", top)
        await tool("qemu-img", "commit", "-q", top)
        async with nbd.connect(server.uri("disk")) as client:
            assert await client.pread(100_000, 1000) == b"\3" * 100_000


async def fio(server: nbd.Server, *words: str) -> None:
    """Write and read, and fail if it does not find what it wrote."""
    if shutil.which("fio") is None or "nbd" not in await tool("fio", "--enghelp"):
        pytest.skip("there is no fio with the nbd engine")
    uri = f"--uri={server.uri('disk')}"
    verify = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randseed=3"]
    common = ["fio", "--name=v", "--ioengine=nbd", uri, f"--size={SIZE}", "--iodepth=16", *verify]
    assert "err= 0" in await tool(*common, *words)


async def test_fio_verifies_what_it_wrote(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, image, _):
        await fio(server, "--rw=randrw", "--bs=4k")
    assert "No errors" in await tool("qemu-img", "check", image)


@pytest.mark.slow
@pytest.mark.timeout(0)
async def test_fio_verifies_what_it_wrote_for_minutes(tmp_path: Path) -> None:
    """Two on each loop; ``QEDASYNC_FIO_SECONDS`` for more."""
    asyncio.get_running_loop().set_debug(False)
    seconds = os.environ.get("QEDASYNC_FIO_SECONDS", "120")
    async with served(tmp_path) as (server, image, _):
        words = ["--rw=randrw", "--bsrange=512-256k", "--verify_backlog=256", "--time_based"]
        await fio(server, *words, f"--runtime={seconds}")
        assert server.counters.bytes_written > SIZE
    assert "No errors" in await tool("qemu-img", "check", image)


async def test_many_real_clients_share_one_image(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, image, _):
        uri = server.uri("disk")

        def writes(number: int) -> Sequence[str]:
            return ["qemu-io", "-f", "raw", "-c", f"write -P {number} {number}M 1M", uri]

        await asyncio.gather(*(tool(*writes(number)) for number in range(1, 9)))
        async with nbd.connect(uri) as client:
            for number in range(1, 9):
                assert await client.pread(1 << 20, number << 20) == bytes([number]) * (1 << 20)
    assert "No errors" in await tool("qemu-img", "check", image)


async def test_tls_with_qemu_img_and_nbdinfo(tmp_path: Path) -> None:
    pki = make_certificates(tmp_path / "pki")
    image = tmp_path / "disk.qed"
    model = await make(image)
    tls = nbd.server_context(pki, verify=True)
    async with (
        qedasync.open(image) as disk,
        nbd.serve({"disk": disk}, port=0, tls=tls) as server,
    ):
        credentials = f"tls-creds-x509,id=t,dir={pki},endpoint=client"
        options = f"driver=nbd,host=localhost,port={server.port},export=disk,tls-creds=t"
        raw = tmp_path / "flat.raw"
        convert = ["qemu-img", "convert", "--object", credentials, "--image-opts", options]
        await tool(*convert, "-O", "raw", raw)
        assert raw.read_bytes() == model
        uri = f"nbds://localhost:{server.port}/disk?tls-certificates={pki}"
        assert str(SIZE) in await tool("nbdinfo", "--size", uri)
        await tool("nbdinfo", f"nbd://localhost:{server.port}/disk", code=1)


# ------------------------------------------------------------------ our client


async def round_trip(client: nbd.Client, seed: int = 5) -> None:
    random = Random(seed)
    model = bytearray(await client.pread(client.size, 0))
    for _ in range(30):
        pos = random.randrange(client.size - 100_000)
        data = random.randbytes(random.choice([1, 600, 4096, 100_000]))
        model[pos : pos + len(data)] = data
        await client.pwrite(data, pos)
    await client.write_zeroes(70_000, 5_000)
    model[5_000:75_000] = bytes(70_000)
    await client.flush()
    reads = [client.pread(client.size // 64, n * (client.size // 64)) for n in range(64)]
    assert b"".join(await asyncio.gather(*reads)) == model
    assert sum(run.length for run in await client.block_status(0, client.size)) == client.size


async def test_client_of_qemu_nbd(tmp_path: Path) -> None:
    image, socket = tmp_path / "disk.qed", tmp_path / "q"
    model = await make(image)
    server: list[str | Path] = [
        "qemu-nbd",
        "-f",
        "qed",
        "-t",
        "-e",
        "4",
        "-x",
        "d",
        "-k",
        socket,
        image,
    ]
    async with running(*server, socket=socket), nbd.connect(f"nbd+unix:///d?socket={socket}") as c:
        assert await c.pread(SIZE, 0) == model
        runs = await c.block_status(0, SIZE)
        assert {run.zero for run in runs} == {True, False}
        await round_trip(c)


@pytest.mark.parametrize(
    "words",
    [
        ["memory", "16M"],
        ["--filter=delay", "memory", "16M", "rdelay=1ms", "wdelay=1ms"],
        ["--filter=rate", "memory", "16M", "rate=800M"],
        ["--filter=blocksize-policy", "memory", "16M", "blocksize-minimum=4096",
         "blocksize-preferred=4096", "blocksize-maximum=64K", "blocksize-error-policy=error"],
        ["--filter=noextents", "memory", "16M"],
        ["--filter=nozero", "memory", "16M"],
        ["--no-sr", "memory", "16M"],
        ["--mask-handshake=0", "memory", "16M"],
    ],
    ids=lambda words: "-".join(words[:2]).strip("-"),
)  # fmt: skip
async def test_client_of_nbdkit(tmp_path: Path, words: list[str]) -> None:
    socket = tmp_path / "k"
    async with running("nbdkit", "-f", "-U", socket, *words, socket=socket):
        if "--mask-handshake=0" in words:
            with pytest.raises(qedasync.StorageError, match="fixed newstyle"):
                await nbd.connect(f"nbd+unix://?socket={socket}")
            return
        async with nbd.connect(f"nbd+unix://?socket={socket}") as client:
            await round_trip(client)


async def test_client_of_nbdkit_pattern_reads_it_right(tmp_path: Path) -> None:
    socket = tmp_path / "k"
    async with (
        running("nbdkit", "-f", "-U", socket, "pattern", "64M", socket=socket),
        nbd.connect(f"nbd+unix://?socket={socket}") as client,
    ):
        assert client.readonly
        for pos in (0, 8192, 12_345_672):
            data = await client.pread(4096, pos)
            assert data == b"".join((pos + at).to_bytes(8, "big") for at in range(0, 4096, 8))


async def test_client_of_nbdkit_errors_are_told_and_the_next_request_works(tmp_path: Path) -> None:
    socket, trigger = tmp_path / "k", tmp_path / "trigger"
    words = ["--filter=error", "memory", "1M", "error=ENOSPC", "error-pwrite-rate=100%"]
    words += [f"error-file={trigger}"]
    async with (
        running("nbdkit", "-f", "-U", socket, *words, socket=socket),
        nbd.connect(f"nbd+unix://?socket={socket}") as client,
    ):
        trigger.touch()
        with pytest.raises(qedasync.StorageError) as caught:
            await client.pwrite(b"x", 5)
        assert caught.value.errno == 28
        trigger.unlink()
        await client.pwrite(b"x", 5)
        assert await client.pread(3, 4) == b"\0x\0"


async def test_client_reconnects_when_the_server_comes_back(tmp_path: Path) -> None:
    image, socket = tmp_path / "disk.raw", tmp_path / "q"
    image.write_bytes(bytes(SIZE))
    server: list[str | Path] = ["qemu-nbd", "-f", "raw", "-t", "-k", socket, image]
    uri = f"nbd+unix://?socket={socket}"
    async with running(*server, socket=socket):
        client = await nbd.connect(uri, reconnect=20)
        await client.pwrite(b"before", 0)
        await client.flush()
    socket.unlink(missing_ok=True)
    waiting = asyncio.create_task(client.pread(6, 0))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    async with running(*server, socket=socket):
        assert await waiting == b"before"
        await client.pwrite(b"after", 0)
        assert await client.pread(6, 0) == b"aftere"
        await client.close()


async def test_client_without_reconnect_fails_what_is_in_flight(tmp_path: Path) -> None:
    socket = tmp_path / "k"
    words = ["--filter=delay", "memory", "1M", "rdelay=30"]
    async with running("nbdkit", "-f", "-U", socket, *words, socket=socket) as server:
        client = await nbd.connect(f"nbd+unix://?socket={socket}")
        reading = asyncio.create_task(client.pread(1, 0))
        await asyncio.sleep(0.05)
        server.kill()
        with pytest.raises(qedasync.StorageError, match="lost"):
            await reading
        await client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
async def test_overlay_on_a_raw_disk_behind_nbd(tmp_path: Path) -> None:
    socket = tmp_path / "k"
    await qedasync.create(tmp_path / "top.qed", "1M", backing_file="base", backing_unchecked=True)
    async with running("nbdkit", "-f", "-U", socket, "pattern", "1M", socket=socket):
        below = await nbd.connect(f"nbd+unix://?socket={socket}")
        async with qedasync.open(tmp_path / "top.qed", "r+", backing=below) as disk:
            await disk.pwrite(b"top", 100)
            expected = bytearray(b"".join(at.to_bytes(8, "big") for at in range(0, 4096, 8)))
            expected[100:103] = b"top"
            assert await disk.pread(4096, 0) == expected
        assert below.closed
