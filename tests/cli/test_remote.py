"""Disks over NBD as names on the command line, beside the real tools.

Each folder has servers of its own, so that what is written can be compared afterwards.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.differential import Twins
from tests.helpers import qemu

pytestmark = pytest.mark.skipif(shutil.which("qemu-nbd") is None, reason="there is no qemu-nbd")

RAW = "nbd+unix:///?socket=s"
QED = "nbd+unix:///disk?socket=q"
FIXED = "nbd+unix:///?socket=r"

EXPORTS = {"s": ("a.raw", ""), "q": ("a.qed", "disk"), "r": ("b.raw", "")}
"""Socket: file and name."""


def build(folder: Path) -> None:
    """a.qed, and a.raw and b.raw of its content, to be served; small.raw, big.raw beside them."""
    qemu.create(folder / "a.qed", 4 << 20)
    qemu.io(folder / "a.qed", "write -P 5 0 64k", "write -P 6 1M 100k")
    for name in ("a.raw", "b.raw"):
        qemu.convert(folder / "a.qed", "qed", folder / name, "raw")
    (folder / "small.raw").write_bytes(b"small" * 4096)
    with (folder / "big.raw").open("wb") as file:
        file.truncate(5 << 20)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """For commands that write to no export."""
    yield from served(tmp_path_factory.mktemp("n"))


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[Twins]:
    yield from served(tmp_path)


def served(folder: Path) -> Iterator[Twins]:
    twins = Twins(folder / "t", build)
    servers = []
    try:
        for place in (twins.real, twins.mine):
            for socket, (name, export) in EXPORTS.items():
                readonly = ["-r"] if socket == "r" else []
                command = ["qemu-nbd", *readonly, "-f", "raw", "-t", "-e", "0", "-x", export]
                command += ["-k", str(place / socket), str(place / name)]
                servers.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
                _await(place / socket)
        yield twins
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def _await(socket: Path) -> None:
    until = time.monotonic() + 20
    while not socket.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


READING = f"""
info {RAW}
info -f raw {RAW}
info --output=json {RAW}
info -f nbd {RAW}
info -f nbd --output=json {RAW}
info {QED}
info --output=json {QED}
info -f qed --output=json {QED}
info nbd:unix:s
info nbd:unix:q:exportname=disk
info nbd://127.0.0.1:1/x
info nbd://127.0.0.1:99999/x
info nbd+unix:///x?socket=nothere
info nbd+unix:///x?socket=s
info {RAW}&foo=1
info nbd+unix:///x
info nbd:foo
info nbd:unix:\udcff
info nbd:\udcff:10
info --image-opts driver=nbd,path=\udcff
info --image-opts driver=nbd,host=\udcff
info --image-opts driver=nbd,host=a..b
info --image-opts driver=nbd,path=s,export=\udcff
info 'json:{{"driver":"nbd","path":"x\\u0000y"}}'
info nbd:
info nbd://
info nbd:unix:
info --image-opts driver=nbd,server.type=unix,server.path=s
info --image-opts driver=nbd,server.type=unix,server.path=s,export=
info --image-opts driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=s
info --image-opts driver=qed,file.driver=nbd,file.path=q,file.export=disk
info --output=json --image-opts driver=raw,offset=512,file.driver=nbd,file.path=s
info --image-opts file.driver=nbd,file.path=s
info --image-opts driver=nbd,host=127.0.0.1,port=1
info --image-opts driver=nbd,path=s
info --image-opts driver=nbd,path=s,host=x
info --image-opts driver=nbd,path=s,port=1
info --image-opts driver=nbd
info --image-opts driver=nbd,port=1
info --image-opts driver=nbd,server.type=foo,server.path=s
info --image-opts driver=nbd,server.path=s
info --image-opts driver=nbd,server.type=unix
info --image-opts driver=nbd,server.type=inet,server.host=h
info --image-opts driver=nbd,server.type=unix,server.path=s,path=s
info --image-opts driver=nbd,server.type=unix,server.path=s,server.foo=s
info --image-opts driver=nbd,server=s
info --image-opts driver=nbd,path=s,reconnect-delay=5,open-timeout=1
info --image-opts driver=nbd,path=s,reconnect-delay=x
info --image-opts driver=nbd,path=s,tls-creds=x
info --image-opts driver=nbd,path=s,tls-hostname=x
info --image-opts driver=nbd,path=s,foo=x
info --image-opts driver=nbd,filename={RAW}
info --image-opts file.filename={RAW}
info 'json:{{"driver":"nbd","server":{{"type":"unix","path":"s"}},"export":""}}'
info 'json:{{"driver":"raw","file":{{"driver":"nbd","path":"s"}}}}'
info 'json:{{"driver":"qed","file":{{"driver":"nbd","path":"q","export":"disk"}}}}'
info 'json:{{"driver":"raw","size":512,"file":{{"driver":"nbd","path":"s"}}}}'
map {RAW}
map --output=json {RAW}
map -f raw --output=json {QED}
map {QED}
map --output=json -f qed {QED}
compare {RAW} {QED}
compare -f raw -F qed {RAW} {QED}
compare -s {RAW} {FIXED}
measure {QED}
measure {RAW}
check {QED}
check --output=json {QED}
check {RAW}
convert {RAW} c1.raw
convert -O qed {RAW} c2.qed
convert -f qed {QED} c3.raw
convert -f raw {QED} c4.raw
dd if={RAW} of=d.raw bs=64k count=2
commit {QED}
resize -f raw {RAW} 4M
""".strip().splitlines()


@pytest.mark.parametrize("words", READING)
def test_name_over_nbd_reads_as_with_qemu(words: str, reading: Twins) -> None:
    reading.run(words, files="." in words.split()[-1] and "nbd" not in words.split()[-1])


WRITING = f"""
convert -n -O raw small.raw {RAW}
convert -n -O raw big.raw {RAW}
convert -n -O qed small.raw {RAW}
convert -n -O raw small.raw {FIXED}
convert -n -O raw {RAW} {QED}
convert -n --target-is-zero -O raw small.raw {RAW}
convert -n -O raw small.raw nbd://127.0.0.1:1/x
convert -O raw small.raw {RAW}
convert -O raw big.raw {RAW}
convert -O raw small.raw {FIXED}
convert -O raw small.raw nbd:unix:s
convert -O raw small.raw nbd://127.0.0.1:1/x
create -f raw {RAW} 4M
create -q -f raw {RAW} 100
create -f raw {RAW} 5M
create -f raw {RAW}
create -f raw {FIXED} 4M
create -f raw -o preallocation=off nbd:unix:s 4M
create -f raw -o preallocation=full {RAW} 4M
create -f raw -o preallocation=none {RAW} 4M
create -f raw nbd://127.0.0.1:1/x 4M
create -f qed nbd://127.0.0.1:1/x 4M
create -f raw nbd:unix 4M
dd if=small.raw of={RAW} bs=4k count=3
dd if=big.raw of={RAW}
resize -f raw {RAW} 8M
resize -f raw --shrink {RAW} 2M
""".strip().splitlines()


@pytest.mark.parametrize("words", WRITING)
def test_export_is_written_as_by_qemu(words: str, writing: Twins) -> None:
    writing.run(words)


@pytest.mark.parametrize("words", [f"convert -O qed small.raw {RAW}", f"create -f qed {RAW} 1M"])
def test_image_is_not_made_on_an_export_which_is_left_as_it_is(words: str, writing: Twins) -> None:
    before = (writing.mine / "a.raw").read_bytes()
    said = writing.ours(words)
    assert said.code == 1
    assert said.err == writing.theirs(words).err
    assert (writing.mine / "a.raw").read_bytes() == before  # QEMU has overwritten its beginning


IO = [
    f'-f raw -c "write -P 9 100k 200k" -c "read -P 9 100k 200k" -c "write -z 0 64k" {RAW}',
    f'-f raw -c "write -P 9 4095k 2k" -c "length" {RAW}',
    f'-f raw -c "truncate 8M" -c length {RAW}',
    f'-f raw -r -c "write 0 1k" {RAW}',
    f'-f raw -c "write 0 1k" {FIXED}',
    f'-f raw -r -c "read -P 5 0 64k" -c map {FIXED}',
    f'-f qed -c "write -P 9 0 64k" -c "read -P 9 0 64k" {QED}',
    f'-f qed -r -c "read -P 6 1M 100k" -c "alloc 0 1M" {QED}',
]


@pytest.mark.parametrize("words", IO)
def test_io_over_nbd_does_what_qemu_io_does(words: str, writing: Twins) -> None:
    def without_times(out: str) -> str:
        return "\n".join(line for line in out.splitlines() if " ops; " not in line)

    writing.run(words, tool="qemu-io", filter=without_times)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("server.type=vsock,server.cid=1,server.port=2", "NBD over 'vsock' is not supported"),
        ("server.type=fd,server.str=3", "NBD over 'fd' is not supported"),
        ("path=s,x-dirty-bitmap=x", "Block protocol 'nbd' doesn't support the option"),
        ("path=s,tls-creds=x", "No TLS credentials with id 'x'"),
    ],
)
def test_nbd_option_that_we_lack_is_refused(options: str, why: str, reading: Twins) -> None:
    said = reading.ours(f"info --image-opts driver=nbd,{options}")
    assert said.code == 1
    assert why in said.err


def test_bench_over_nbd_runs(reading: Twins) -> None:
    said = reading.ours(f"bench -f raw -c 100 {RAW}")
    assert said.code == 0
    assert "Run completed" in said.out


def test_overlay_on_an_export_is_read_where_the_policy_allows_it(writing: Twins) -> None:
    folder = writing.mine
    uri = f"nbd+unix:///?socket={folder / 's'}"
    qemu.img("create", "-q", "-u", "-f", "qed", "-b", uri, "-F", "raw", folder / "o.qed", "4M")
    said = writing.ours("convert -O raw o.qed out")
    assert "is not allowed by the policy; --backing any" in said.err
    for policy in ("any", "allow:nbd+unix:*"):
        assert writing.ours(f"convert -O raw --backing {policy} o.qed out").code == 0
        assert (folder / "out").read_bytes() == (folder / "a.raw").read_bytes()
    chain = writing.ours("info --backing-chain --backing any o.qed").out
    assert "backing file: nbd+unix:///" in chain
    assert "disk size: unavailable" in chain
