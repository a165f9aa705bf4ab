"""``qedasync serve`` under the name of qemu-nbd, beside the real one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.differential import Outcome, Twins, call, launcher
from tests.helpers import qemu
from tests.nbd.certificates import make_certificates
from tests.nbd.test_peers import listens

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="signals and sockets of Linux"),
    qemu.needs_qemu,
]

ROOT = Path(__file__).parent.parent.parent
LONG = "x" * 5000


def build(folder: Path) -> None:
    qemu.create(folder / "d.qed", 1 << 20)
    qemu.io(folder / "d.qed", "write -P 7 0 512k")
    (folder / "r.raw").write_bytes(b"RAW!" + bytes(100_000) + b"end")


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return Twins(tmp_path_factory.mktemp("twins") / "t", build)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a", "b"],
        ["-e", "x", "d.qed"],
        ["-e", "-1", "d.qed"],
        ["-e", "99999999999", "d.qed"],
        ["-o", "x", "-f", "raw", "r.raw"],
        ["-o", "1k", "-f", "raw", "r.raw"],
        ["-o", "2000000", "-f", "raw", "-k", "/SOCKET", "r.raw"],
        ["-k", "s", "d.qed"],
        ["--cache=odd", "d.qed"],
        ["--cache=none", "-n", "d.qed"],
        ["--aio=odd", "d.qed"],
        ["--aio=threads", "--aio=threads", "d.qed"],
        ["--discard=on", "--discard=on", "d.qed"],
        ["--tls-hostname", "x", "d.qed"],
        ["--aio=native", "d.qed"],
        ["--discard=x", "d.qed"],
        ["--detect-zeroes=x", "d.qed"],
        ["--detect-zeroes=unmap", "-k", "/SOCKET", "d.qed"],
        ["-B", "x", "-f", "qed", "-k", "/SOCKET", "d.qed"],
        ["-B", "x", "-B", "y", "-f", "qed", "-k", "/SOCKET", "d.qed"],
        ["-l", "x", "-f", "qed", "-k", "/SOCKET", "d.qed"],
        ["-l", "x", "-f", "raw", "-k", "/SOCKET", "r.raw"],
        ["-x", LONG, "-k", "/SOCKET", "d.qed"],
        ["-D", LONG, "-k", "/SOCKET", "d.qed"],
        ["-f", "odd", "d.qed"],
        ["nothing.qed"],
        ["-s", "-f", "qed", "nothing.qed"],
        ["--image-opts", "driver=qed,file.filename=nothing"],
        ["--pid-file", "/nonexistent/p", "-k", "/SOCKET", "d.qed"],
        ["--tls-creds", "x", "-k", "/SOCKET", "d.qed"],
        ["--tls-authz", "x", "-k", "/SOCKET", "d.qed"],
        ["--object", "foo,id=x", "d.qed"],
        ["--object", "tls-creds-x509,dir=/tmp", "d.qed"],
        ["-L", "d.qed"],
        ["-L", "-x", "a"],
        ["-L", "-k", "/nobody/there"],
        ["-L", "-p", "1"],
        ["-L", "-p", "1", "--tls-authz", "x"],
        ["-L", "-f", "qed"],
        ["-L", "-o", "5"],
        ["-L", "--cache=none"],
        ["-L", "--fork"],
        ["-L", "-k", "s"],
        ["-L", "--tls-creds", "x"],
        ["--tls-creds", "x", "-L"],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_qemu_nbd_refuses_as_the_real_one(twins: Twins, words: list[str], tmp_path: Path) -> None:
    words = [word.replace("/SOCKET", str(tmp_path / "s")) for word in words]
    assert twins.run(words, tool="qemu-nbd").code == 1


@pytest.mark.parametrize(
    "words",
    """
    -Z
    -Zr
    -rx
    -t -e 3 -Z d.qed
    -P 1 d.qed
    -n5 d.qed
    -p
    -k
    -rk
    --nope
    --nope=3 d.qed
    --port
    --exp
    --pid-file
    --read-only=3 d.qed
    --list=3
    --s d.qed
    --tls
    --t=3
    """.strip().splitlines(),
)
def test_qemu_nbd_wrong_option_same_words_without_the_hint(twins: Twins, words: str) -> None:
    real, ours = (call(words, tool="qemu-nbd") for call in (twins.theirs, twins.ours))
    # The C library puts argv[0] before it as it was given.
    assert ours.err.splitlines() == [real.err.splitlines()[0].rpartition("/")[2]]
    assert (ours.code, ours.out) == (real.code, "") == (1, "")
    assert real.err.splitlines()[1].startswith("qemu-nbd: Try ")


def test_qemu_nbd_port_that_there_is_not_is_refused(twins: Twins) -> None:
    said = twins.ours("-p 65536 d.qed", tool="qemu-nbd")
    assert (said.code, said.out) == (1, "")
    assert said.err == "qemu-nbd: --port is '65536'; it must be a number from 0 to 65535\n"


def test_qemu_nbd_connects_no_device_of_the_kernel(twins: Twins) -> None:
    for words in (["-c", "/dev/nbd0", "d.qed"], ["-d", "/dev/nbd0"]):
        said = twins.ours(words, tool="qemu-nbd")
        assert (said.code, said.err.count("\n")) == (1, 1)
        assert "/dev/nbd support not available" in said.err


# --------------------------------------------------------------------- serving


@contextmanager
def running(tool: str | Path, folder: Path, socket: Path, *words: str | Path) -> Iterator[int]:
    """One of both as a server, once it listens; its process number."""
    process = subprocess.Popen(
        [tool, "-k", socket, *words], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        for _ in range(1000):
            if listens(socket) or process.poll() is not None:
                break
            time.sleep(0.01)
        yield process.pid
    finally:
        process.terminate()
        process.wait()
        socket.unlink(missing_ok=True)


def both(twins: Twins, tmp_path: Path) -> Iterator[tuple[str | Path, Path]]:
    yield "qemu-nbd", twins.real
    yield launcher(tmp_path, "qemu-nbd"), twins.mine


def said(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["-f", "qed", "d.qed"],
        ["-r", "-f", "raw", "-x", "name", "-D", "some words", "r.raw"],
        ["-f", "raw", "-o", "0x200", "r.raw"],
        ["-f", "qed", "-o", "512", "-r", "d.qed"],
        ["--image-opts", "driver=qed,file.filename=d.qed"],
        ["--image-opts", "driver=raw,offset=512,size=1024,file.filename=r.raw"],
        ["-s", "-f", "qed", "d.qed"],
        ["-f", "qed", "--cache=none", "--aio=native", "--discard=unmap", "--detect-zeroes=unmap",
         "d.qed"],
        ["-f", "qed", "--cache=directsync", "-v", "-A", "d.qed"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_qemu_nbd_serves_the_same_bytes(twins: Twins, words: list[str], tmp_path: Path) -> None:
    name = "name" if "name" in words else ""
    seen = []
    for tool, folder in both(twins, tmp_path):
        socket, copy = tmp_path / "s", tmp_path / "copy"
        uri = f"nbd+unix:///{name}?socket={socket}"
        with running(tool, folder, socket, "-t", *words):
            said("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, copy)
            told = said("qemu-nbd", "-L", "-k", socket).splitlines()
        facts = [line for line in told if "size:" in line or "export" in line or "descr" in line]
        seen.append((copy.read_bytes(), facts, any("readonly" in line for line in told)))
    assert seen[0] == seen[1]


def test_qemu_nbd_with_snapshot_keeps_nothing(twins: Twins, tmp_path: Path) -> None:
    before = (twins.mine / "d.qed").read_bytes()
    uri = f"nbd+unix:///?socket={tmp_path / 's'}"
    tool = launcher(tmp_path, "qemu-nbd")
    with running(tool, twins.mine, tmp_path / "s", "-t", "-s", "-f", "qed", "d.qed"):
        qemu_io = ["qemu-io", "-f", "raw", "-c", "write -P 9 0 4k", "-c", "read -P 9 0 4k"]
        assert "failed" not in said(*qemu_io, uri)
    assert (twins.mine / "d.qed").read_bytes() == before


def test_qemu_nbd_offset_is_written_through(twins: Twins, tmp_path: Path) -> None:
    uri = f"nbd+unix:///?socket={tmp_path / 's'}"
    for tool, folder in both(twins, tmp_path):
        with running(tool, folder, tmp_path / "s", "-t", "-o", "1024", "-f", "raw", "r.raw"):
            said("qemu-io", "-f", "raw", "-c", "write -P 5 0 512", uri)
    twins.assert_same_files()
    assert (twins.mine / "r.raw").read_bytes()[1024:1536] == b"\5" * 512


def test_qemu_nbd_offset_within_a_sector_works(twins: Twins, tmp_path: Path) -> None:
    """The real one (7.2) aborts when a client reads across a hole's end."""
    uri, copy = f"nbd+unix:///?socket={tmp_path / 's'}", tmp_path / "copy"
    tool, content = launcher(tmp_path, "qemu-nbd"), (twins.mine / "r.raw").read_bytes()
    with running(tool, twins.mine, tmp_path / "s", "-t", "-r", "-o", "100", "-f", "raw", "r.raw"):
        said("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, copy)
    expected = content[100:]
    assert copy.read_bytes() == expected + bytes(-len(expected) % 512)


def test_qemu_nbd_socket_never_takes_a_files_place(twins: Twins, tmp_path: Path) -> None:
    """The real one removes whatever has the name."""
    file = tmp_path / "file"
    file.write_bytes(b"precious")
    answer = twins.ours(["-t", "-k", str(file), "-f", "qed", "d.qed"], tool="qemu-nbd")
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert "in use" in answer.err
    assert file.read_bytes() == b"precious"


def test_qemu_nbd_detects_zeroes(tmp_path: Path) -> None:
    """A cluster of them is marked, not written."""
    qemu.create(tmp_path / "z.qed", 1 << 20)
    uri = f"nbd+unix:///?socket={tmp_path / 's'}"
    for mode, zero in (("off", False), ("on", True)):
        words = ["-t", "-f", "qed", f"--detect-zeroes={mode}", "z.qed"]
        with running(launcher(tmp_path, "qemu-nbd"), tmp_path, tmp_path / "s", *words):
            said("qemu-io", "-f", "raw", "-c", "write -P 0 0 64k", uri)
            runs = said("qemu-img", "map", "--output=json", "-f", "raw", uri)
        assert ('"data": true' not in runs) == zero
        qemu.create(tmp_path / "z.qed", 1 << 20)


def test_qemu_nbd_lists_what_the_real_one_lists(twins: Twins, tmp_path: Path) -> None:
    """And each of them lists the other."""
    for tool, folder in both(twins, tmp_path):
        words = ["-t", "-e", "5", "-A", "-f", "qed", "-x", "disk", "-D", "some words", "d.qed"]
        with running(tool, folder, tmp_path / "s", *words):
            listed = twins.run(["-L", "-k", str(tmp_path / "s")], tool="qemu-nbd")
        assert listed.out.startswith("exports available: 1\n export: 'disk'\n")
        assert "   qemu:allocation-depth\n" in listed.out


def test_qemu_nbd_takes_a_tls_object_as_the_real_one(twins: Twins, tmp_path: Path) -> None:
    pki = make_certificates(tmp_path / "pki")
    server = f"tls-creds-x509,id=t,endpoint=server,dir={pki}"
    client = f"tls-creds-x509,id=t,endpoint=client,dir={pki}"
    look = ["-L", "-k", str(tmp_path / "s"), "--object", client, "--tls-creds", "t"]
    for tool, folder in both(twins, tmp_path):
        words = ["-t", "-e", "5", "--object", server, "--tls-creds", "t", "-f", "qed", "d.qed"]
        with running(tool, folder, tmp_path / "s", *words):
            listed = twins.run([*look, "--tls-hostname", "localhost"], tool="qemu-nbd")
            assert "exports available: 1" in listed.out
            assert twins.ours(["-L", "-k", str(tmp_path / "s")], tool="qemu-nbd").code == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--object", "tls-creds-psk,id=t,dir=/tmp", "x"], "without certificates"),
        (["--object", "tls-creds-x509,id=t,dir=/tmp", "--tls-creds", "t", "x"], "server endpoint"),
        (["--object", "tls-creds-x509,id=t,endpoint=odd", "x"], "'endpoint'"),
        (["--object", "tls-creds-x509,id=t,odd=1", "x"], "'odd'"),
        (["--object", "", "x"], "'qom-type'"),
        (["--tls-creds", "d", "--tls-authz", "a", "x"], "--allow"),
        (["--selinux-label", "l", "x"], "--selinux-label"),
        (["--image-opts", "-f", "qed", "x"], "mutually exclusive"),
        (["-L", "--tls-hostname", "h"], "--tls-hostname"),
        (["-L", "--object", "tls-creds-x509,id=t,endpoint=server", "--tls-creds", "t"], "client"),
        (["-L", "-k", "/nonexistent"], "No such file"),
    ],
)
def test_serve_refuses_with_the_reason(words: list[str], why: str, tmp_path: Path) -> None:
    answer: Outcome = call(["serve", *words], tmp_path)
    assert (answer.code, answer.out) == (1, "")
    assert why in answer.err
    assert answer.err.count("\n") == 1
