"""``info`` beside ``qemu-img info``: the same bytes on stdout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli import gallery
from tests.cli.differential import Twins
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """One pair for all: nothing here writes."""
    return Twins(tmp_path_factory.mktemp("info"), gallery.build)


ROWS = """
a.qed
-f qed a.qed
-f raw a.qed
--format=raw a.qed
--output=json a.qed
--output json a.qed
a.qed --output json
--output=json --output=human a.qed
--output=json -f raw a.qed
--backing-chain a.qed
--backing-chain --output=json a.qed
--b a.qed
-U a.qed
--force-share a.qed
e.qed
e.raw
r.raw
r1.raw
base.raw
--output=json e.raw
--output=json r1.raw
-f raw e.raw --backing-chain --output json
ov.qed
--output=json ov.qed
ov2.qed
--backing-chain ov2.qed
--backing-chain --output=json ov2.qed
nope.qed
--output=json nope.qed
sub/in.qed
--output=json sub/in.qed
sub/ov.qed
--output=json sub/ov.qed
leak.qed
bad.qed
./a.qed
./sub/../ov.qed
file:a.qed
file:sub/ov.qed
-- a.qed
json:{"driver":"qed","file":{"driver":"file","filename":"a.qed"}}
json:{"driver":"raw","file.filename":"a.qed"}
--image-opts driver=qed,file.driver=file,file.filename=a.qed
--image-opts --output=json driver=qed,file.filename=ov.qed
''
a.qed b.qed
--output=xml a.qed
--output=json
--output= a.qed
-f foo a.qed
-f qed base.raw
-f qed e.raw
-x a.qed
--foo a.qed
--backing-chain=1 a.qed
nothing
sub/nothing
nothing/x
sub
.
junk.qed
short.qed
--output=json junk.qed
--backing-chain nope.qed
--backing-chain --output=json nope.qed
--image-opts -f qed driver=qed,file.filename=a.qed
--object foo,id=a a.qed
"""


@pytest.mark.parametrize("words", ROWS.strip().splitlines())
def test_info_says_the_same(words: str, twins: Twins) -> None:
    twins.run(["info", *_split(words)], files=False)


def _split(words: str) -> list[str]:
    """As the shell does, but leave the quotes of JSON alone."""
    return [] if words == "''" else words.split(" ")


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1023, 1024, 10**6, 10**9, 1023 << 30, 1 << 42])
def test_info_shows_sizes_the_same(size: int, tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        with (folder / "x").open("wb") as file:
            file.truncate(size)

    Twins(tmp_path, build).run("info -f raw x", files=False)


@pytest.mark.parametrize("form", ["human", "json"])
@pytest.mark.parametrize(
    "name", [b"a b", b'"\\', b"\xc3\xa9", b"\xff\xfe", b"a\x01\x7fb", b"\xf0\x9f\x98\x80"]
)
def test_info_prints_any_name_the_same(name: bytes, form: str, tmp_path: Path) -> None:
    path = os.fsdecode(name)

    def build(folder: Path) -> None:
        (folder / path).write_bytes(bytes(512))

    Twins(tmp_path, build).run(["info", f"--output={form}", path], files=False)


def test_info_of_a_dirty_image_says_what_is_on_disk(twins: Twins) -> None:
    ours = twins.ours("info dirty.qed")
    assert "cleanly shut down: no\n" in ours.out
    assert json.loads(twins.ours("info --output=json dirty.qed").out)["dirty-flag"] is True
    assert json.loads(twins.theirs("info --output=json dirty.qed").out)["dirty-flag"] is False


def test_info_of_a_dirty_image_leaves_it_alone(twins: Twins) -> None:
    before = (twins.mine / "dirty.qed").read_bytes()
    assert twins.ours("info dirty.qed").code == 0
    assert (twins.mine / "dirty.qed").read_bytes() == before


def test_info_of_an_image_in_use_is_refused_unless_shared(twins: Twins) -> None:
    with qemu.hold(twins.real / "e.qed"), qemu.hold(twins.mine / "e.qed"):
        ours = twins.run("info e.qed", files=False)
        assert ours.code == 1
        assert "Is another process using the image [e.qed]?" in ours.err
        assert twins.run("info -U e.qed", files=False).code == 0


def test_info_backing_chain_follows_only_what_the_policy_allows(twins: Twins) -> None:
    refused = twins.ours("info --backing-chain sub/ov.qed")
    assert (refused.code, refused.out) == (1, "")
    assert "a.qed" in refused.err
    assert "--backing" in refused.err
    allowed = twins.ours("info --backing-chain --backing any sub/ov.qed")
    assert (allowed.code, allowed.err) == (0, "")
    assert allowed.out == twins.theirs("info --backing-chain sub/ov.qed").out


def test_info_backing_chain_in_a_circle_is_refused(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        for name, below in (("a.qed", "b.qed"), ("b.qed", "a.qed")):
            options = ("-q", "-u", "-f", "qed", "-b", below, "-F", "qed")
            qemu.img("create", *options, folder / name, "1M")

    twins = Twins(tmp_path, build)
    assert twins.run("info --backing-chain a.qed", files=False).code == 1
