"""``qedasync serve`` as a process: signals, certificates, sockets handed over, metrics."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import qedasync
from qedasync import nbd
from tests.nbd.certificates import make_certificates

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and sockets of Linux")

COMMAND = (sys.executable, "-m", "qedasync", "serve")


class Serving:
    """The process, and the URIs it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.uris: list[str] = []

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return await self.process.wait()


@asynccontextmanager
async def serving(*words: str | Path, exports: int = 1) -> AsyncIterator[Serving]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    served = Serving(process)
    try:
        assert process.stdout is not None
        for _ in range(exports):
            line = (await process.stdout.readline()).decode().strip()
            assert line.startswith("nbd"), line
            served.uris.append(line)
        yield served
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def refused(*words: str | Path) -> str:
    """What a command line that cannot be says; one line, exit code 1."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, said = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert said.startswith(b"qedasync: ")
    assert said.count(b"\n") == 1
    return said.decode()


async def test_serve_until_sigterm_leaves_a_clean_image(tmp_path: Path) -> None:
    image = tmp_path / "disk.qed"
    await qedasync.create(image, "8M")
    async with serving("-t", "-k", tmp_path / "s", "-D", "words", image) as served:
        async with nbd.connect(served.uris[0]) as client:
            assert client.description == "words"
            await client.pwrite(b"x" * 100_000, 5)
            assert await served.end() == 0
    async with qedasync.open(image) as disk:
        assert not disk.features & qedasync.Features.NEED_CHECK
        assert await disk.pread(100_000, 5) == b"x" * 100_000
        assert (await disk.check()).leaks == 0
    assert not (tmp_path / "s").exists()


async def test_serve_ends_after_the_last_client(tmp_path: Path) -> None:
    image = tmp_path / "disk.qed"
    await qedasync.create(image, "1M")
    async with serving("-p", "0", image) as served:
        async with nbd.connect(served.uris[0]) as client:
            await client.pwrite(b"x", 0)
        assert await asyncio.wait_for(served.process.wait(), 10) == 0


async def test_serve_several_images_by_name(tmp_path: Path) -> None:
    for name in ("a.qed", "b.qed"):
        await qedasync.create(tmp_path / name, "1M")
    (tmp_path / "c.raw").write_bytes(b"raw" + bytes(1021))
    words: list[str | Path] = [
        "-t",
        "-r",
        "-p",
        "0",
        tmp_path / "a.qed",
        tmp_path / "b.qed",
        tmp_path / "c.raw",
    ]
    async with serving(*words, exports=3) as served:
        assert [uri.rpartition("/")[2] for uri in served.uris] == ["a.qed", "b.qed", "c.raw"]
        async with nbd.connect(served.uris[2]) as client:
            assert (client.size, client.readonly) == (1024, True)
            assert await client.pread(4, 0) == b"raw\0"
        assert await served.end(signal.SIGINT) == 0


async def test_serve_with_tls_takes_new_certificates_at_sighup(tmp_path: Path) -> None:
    image, pki = tmp_path / "disk.qed", make_certificates(tmp_path / "pki")
    await qedasync.create(image, "1M")
    words: list[str | Path] = [
        "-t",
        "-b",
        "127.0.0.1",
        "-p",
        "0",
        "--tls-creds",
        pki,
        "--allow",
        "alice",
        image,
    ]
    async with serving(*words) as served:
        port = served.uris[0].rpartition(":")[2].strip("/")
        uri = f"nbds://localhost:{port}/?tls-certificates="
        async with nbd.connect(f"{uri}{pki}") as client:
            assert await client.pread(1, 0) == b"\0"
        fresh = make_certificates(tmp_path / "fresh")
        for file in fresh.iterdir():
            shutil.copy(file, pki / file.name)
        with pytest.raises(qedasync.StorageError):
            await nbd.connect(f"{uri}{fresh}")
        served.process.send_signal(signal.SIGHUP)
        for _ in range(200):
            try:
                async with nbd.connect(f"{uri}{fresh}"):
                    break
            except qedasync.StorageError:
                await asyncio.sleep(0.02)
        else:
            pytest.fail("the new certificates were never taken")
        assert await served.end() == 0


async def test_serve_writes_its_pid_and_its_metrics(tmp_path: Path) -> None:
    image, pid = tmp_path / "disk.qed", tmp_path / "pid"
    await qedasync.create(image, "1M")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    words: list[str | Path] = ["-t", "-p", "0", "--pid-file", pid, "--metrics", str(port), image]
    async with serving(*words) as served:
        assert int(pid.read_text()) == served.process.pid
        async with nbd.connect(served.uris[0]) as client:
            await client.pread(512, 0)
            await client.pwrite(b"x" * 512, 0)
            url = f"http://127.0.0.1:{port}/metrics"
            text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        assert lines["qedasync_nbd_connections"] == "1"
        assert lines['qedasync_nbd_requests_total{command="read"}'] == "1"
        assert lines["qedasync_nbd_written_bytes_total"] == "512"
        assert lines["qedasync_nbd_request_seconds_count"] == "2"
        assert lines['qedasync_image_clusters_allocated_total{export=""}'] != "0"
        assert await served.end() == 0
    assert not pid.exists()


async def test_serve_takes_a_socket_that_systemd_hands_over(tmp_path: Path) -> None:
    image, path = tmp_path / "disk.qed", tmp_path / "activated"
    await qedasync.create(image, "1M")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    code = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid());"
        " os.environ['LISTEN_FDS'] = '1'; os.execv(sys.executable, [sys.executable, '-m',"
        " 'qedasync', 'serve', *sys.argv[2:]])"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(listener.fileno()), "-t", image,
        pass_fds=[listener.fileno()], stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    listener.close()
    try:
        async with nbd.connect(f"nbd+unix:///?socket={path}", timeout=10) as client:
            assert await client.pread(1, 0) == b"\0"
        process.terminate()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.unlink(path)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "at least one image"),
        (["nothing.qed"], "No such file"),
        (["-p", "99999", "x"], "--port"),
        (["-k", "s", "-p", "1", "x"], "choose one"),
        (["-x", "a", "x", "y"], "name (-x) of its own"),
        (["--cache=odd", "x"], "Invalid cache mode"),
        (["--tls-verify", "x"], "TLS needs"),
        (["--tls-creds", "/nonexistent", "x"], "No such file"),
        (["--backing", "odd", "x"], "--backing"),
        (["--nonsense", "x"], "nonsense"),
    ],
)
async def test_serve_bad_command_line_is_one_line(words: list[str], text: str) -> None:
    assert text in await refused(*words)


async def test_link_named_qemu_nbd_acts_as_it(tmp_path: Path) -> None:
    """Quiet, one client at a time, in the background if asked."""
    image, link, pid = tmp_path / "disk.qed", tmp_path / "qemu-nbd", tmp_path / "pid"
    await qedasync.create(image, "1M")
    link.write_text(
        f"#!{sys.executable}\nfrom qedasync.cli.main import main\nraise SystemExit(main())\n"
    )
    link.chmod(0o755)
    words: list[str | Path] = [
        "-f",
        "qed",
        "-x",
        "d",
        "-k",
        tmp_path / "s",
        "--fork",
        "--pid-file",
        pid,
        image,
    ]
    process = await asyncio.create_subprocess_exec(
        link, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.wait() == 0
    child = int(pid.read_text())
    async with nbd.connect(f"nbd+unix:///d?socket={tmp_path / 's'}") as client:
        assert await client.pread(1, 0) == b"\0"
        waiting = asyncio.create_task(nbd.list_exports(f"nbd+unix:///?socket={tmp_path / 's'}"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
    assert [one.name for one in await waiting] == ["d"]
    assert await process.stdout.read() == b""
    for _ in range(500):
        if not Path(f"/proc/{child}").exists():
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("it should end after its last client")


async def test_serve_of_an_overlay_whose_backing_file_is_denied_is_refused(tmp_path: Path) -> None:
    """It would read zeroes where the backing file has data."""
    await qedasync.create(tmp_path / "base.qed", "1M")
    await qedasync.create(tmp_path / "top.qed", backing_file="base.qed")
    said = await refused("--backing", "deny", tmp_path / "top.qed")
    assert "'base.qed' is not allowed by the policy" in said
    words: list[str | Path] = ["-t", "-p", "0", "--backing", "allow:*/base.qed"]
    words.append(tmp_path / "top.qed")
    async with serving(*words) as served:
        async with nbd.connect(served.uris[0]) as client:
            assert await client.pread(1, 0) == b"\0"
        assert await served.end() == 0
