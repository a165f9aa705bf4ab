"""``map`` beside ``qemu-img map``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import qedasync
from tests.cli import gallery
from tests.cli.differential import Twins
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """One pair for all: nothing here writes."""
    return Twins(tmp_path_factory.mktemp("map"), gallery.build)


IMAGES = """
a.qed
-f qed a.qed
-f raw a.qed
e.qed
e.raw
base.raw
-f raw base.raw
r.raw
r1.raw
ov.qed
ov2.qed
sub/ov.qed --backing any
leak.qed
bad.qed
dbl.qed
dirty.qed
-U a.qed
file:a.qed
file:sub/../ov2.qed
./ov2.qed
--image-opts driver=qed,file.filename=ov2.qed
-s 0 a.qed
-s 64k a.qed
-s 64k -l 1M a.qed
-l 1M -s 64k a.qed
-s 70000 -l 1000000 a.qed
-s 70001 -l 1000001 a.qed
-s 1 -l 1 a.qed
--start-offset=1M --max-length=64k a.qed
--start-offset 1M --max-length 64k a.qed
-l 99999999999999 a.qed
-l 7E -s 1k a.qed
-l 0 a.qed
-s 5M -l 0 a.qed
-s 64M a.qed
-s 10M a.qed
-s 10485759 a.qed
-s 1M -s 2M a.qed
-s 1.5M -l 0x10000 a.qed
-s 128k -l 3M ov2.qed
-s 513 r.raw
-s 900 -l 200 r.raw
nothing
sub
junk.qed
short.qed
nope.qed
-f qed base.raw
-f foo a.qed
''
a.qed e.qed
-s x a.qed
-s -1 a.qed
-s 9E a.qed
-s '' a.qed
-l x a.qed
-l 9E a.qed
-l 1.5 a.qed
-s
-x a.qed
--foo
--image-opts -f qed driver=qed,file.filename=a.qed
--object foo,id=x a.qed
"""


@pytest.mark.parametrize("form", ["human", "json"])
@pytest.mark.parametrize("words", IMAGES.strip().splitlines())
def test_map_says_the_same(words: str, form: str, twins: Twins) -> None:
    if "--backing" in words:  # an option that qemu-img has not
        ours = twins.ours(f"map --output={form} {words}")
        theirs = twins.theirs(f"map --output={form} {words.split()[0]}")
        assert (ours.code, ours.out, ours.err) == (theirs.code, theirs.out, theirs.err)
    else:
        twins.run(f"map --output={form} {words}", files=False)


@pytest.mark.parametrize("words", ["--output=xml a.qed", "--output", "--output= a.qed"])
def test_map_in_no_form_is_refused(words: str, twins: Twins) -> None:
    assert twins.run(f"map {words}", files=False).code == 1


@pytest.fixture(scope="module")
def scattered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``x.qed``: thousands of runs in several L2 tables, many that go on."""

    async def fill() -> None:
        async with qedasync.open(image, "r+", cache="unsafe") as disk:
            for at in range(6000):
                await disk.pwrite(b"x" * 4096, at * 7919 % 16000 * 4096)
            for at in range(2000):
                await disk.write_zeroes(4096, (16000 + at * 3) * 4096)

    folder = tmp_path_factory.mktemp("scattered") / "originals"
    folder.mkdir()
    image = folder / "x.qed"
    qemu.create(image, 96 << 20, cluster_size=4096, table_size=2)
    asyncio.run(fill())
    return folder


@pytest.mark.parametrize("form", ["human", "json"])
def test_map_of_many_runs_is_the_same(form: str, scattered: Path, tmp_path: Path) -> None:
    ours = Twins(tmp_path, scattered).run(f"map --output={form} x.qed", files=False)
    assert ours.out.count("\n") > 5000


@pytest.mark.parametrize("form", ["human", "json"])
@pytest.mark.parametrize("size", ["64T", "1000G"])
def test_map_of_a_vast_image_is_the_same(size: str, form: str, tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        qemu.img("create", "-q", "-f", "qed", folder / "x.qed", size)
        qemu.io(folder / "x.qed", "write 500G 64k", "write 999G 64k")

    Twins(tmp_path, build).run(f"map --output={form} x.qed", files=False)
