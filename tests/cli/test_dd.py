"""``dd`` beside ``qemu-img dd``: what is printed, the code, and the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import gallery
from tests.cli.differential import Twins
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2


@pytest.fixture(autouse=True)
def any_backing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU has no policy."""
    monkeypatch.setenv("QEDASYNC_BACKING", "any")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dd") / "originals"
    folder.mkdir()
    gallery.build(folder)
    return folder


SAME = """
if=a.qed of=x
-f qed if=a.qed of=x
-O qed if=a.qed of=x.qed
-f qed -O qed if=a.qed of=x.qed bs=4k
of=x if=a.qed
bs=1M count=2 if=a.qed of=x
bs=1M count=2 skip=1 if=a.qed of=x
bs=1M skip=9 if=a.qed of=x
bs=1M skip=10 if=a.qed of=x
bs=1M skip=11 if=a.qed of=x
-O qed bs=1M skip=11 if=a.qed of=x.qed
-f raw if=r.raw of=x bs=300
-f raw if=r.raw of=x bs=300 count=2
-f raw if=r.raw of=x bs=300 count=2 skip=1
-f raw if=r.raw of=x bs=300 skip=1
-f raw if=r.raw of=x bs=300 skip=100
-f raw if=r.raw of=x bs=1 skip=1 count=7
-f raw -O qed if=r.raw of=x.qed bs=300 count=1
-f raw -O qed if=r.raw of=x.qed bs=300 skip=100
-f raw -O qed if=base.raw of=x.qed bs=1000 count=1
-f raw -O qed if=base.raw of=x.qed bs=1000 count=150 skip=3
-f raw -O raw if=base.raw of=x bs=1000 count=150 skip=3
if=a.qed of=x count=3
if=a.qed of=x skip=3 count=1
if=a.qed of=x skip=3 count=3
if=a.qed of=x skip=3 count=4
if=a.qed of=x count=0
if=a.qed of=x skip=0
if=a.qed if=base.raw of=x
bs=1k bs=2k count=1 if=a.qed of=x
count=1 count=2 if=a.qed of=x
if=a.qed of=y of=x
if=a.qed of=x bs=2147483647
bs=64k count=1k if=a.qed of=x
if=a.qed of=x bs=1k count=1.5k
if=a.qed of=x skip=100000
if=a.qed of=x skip=7E
if=a.qed of=x bs=1M count=7E
if=a.qed of=base.raw
-O qed if=a.qed of=base.raw
-O qed if=base.raw of=a.qed
bs=1M if=ov2.qed of=x
-O qed bs=1M if=ov2.qed of=x.qed
bs=1M if=sub/ov.qed of=sub/x
-U if=a.qed of=x
--image-opts if=driver=qed,file.filename=a.qed of=x
if=e.qed of=x
-O qed if=e.qed of=x.qed
if=file:a.qed of=file:x
if=dirty.qed of=x
-- if=a.qed of=x
"""

REFUSED = """
''
if=a.qed
of=x
bs=1k
if=a.qed of=x bs=0
if=a.qed of=x bs=foo
bs= if=a.qed of=x
if=a.qed of=x bs=3G
if=a.qed of=x bs=2147483648
if=a.qed of=x bs=1E
if=a.qed of=x count=foo
if=a.qed of=x skip=-1
if=a.qed of=x skip=foo
if=a.qed of=x foo=1
if=a.qed of=x foo
seek=1 if=a.qed of=x
if=a.qed conv=sync of=x
if=a.qed of=a.qed
-O qed if=a.qed of=a.qed
if=nothing of=x
if=nope.qed of=x
if=junk.qed of=x
-f foo if=a.qed of=x
-O foo if=a.qed of=x
-f qed if=base.raw of=x
if= of=x
if=a.qed of=
if=a.qed of=sub/x/y
if=a.qed of=sub
--image-opts -f qed if=driver=qed,file.filename=a.qed of=x
-f qed --image-opts if=a.qed of=x
--object foo,id=x if=a.qed of=x
if=a.qed of=foo:x
"""


@pytest.mark.parametrize("words", SAME.strip().splitlines())
def test_dd_makes_the_same_image(words: str, originals: Path, tmp_path: Path) -> None:
    twins = Twins(tmp_path, originals)
    ours = twins.run(f"dd {words}", files="-O qed" not in words)
    assert ours.code == 0
    for real in twins.real.glob("*.*"):  # clusters may lie in another order
        mine = twins.mine / real.name
        assert mine.stat().st_size == real.stat().st_size
        if real.read_bytes() != mine.read_bytes():
            assert qemu.img("compare", "-f", "qed", "-F", "qed", mine, real).returncode == 0
            assert qemu.check(mine)["corruptions"] == qemu.check(mine)["leaks"] == 0


def test_dd_over_its_own_backing_file_reads_it_whole(originals: Path, tmp_path: Path) -> None:
    """qemu-img cuts the file first, and then reads nothing but zeroes from it."""
    twins = Twins(tmp_path, originals)
    words = "dd -O qed bs=64k if=ov.qed of=base.raw"
    twins.run(words, files=False)
    for folder, same in ((twins.real, False), (twins.mine, True)):
        said = qemu.img("compare", folder / "base.raw", originals / "ov.qed", status=None)
        assert (said.returncode == 0) == same


@pytest.mark.parametrize("words", REFUSED.strip().splitlines())
def test_dd_refuses_the_same(words: str, originals: Path, tmp_path: Path) -> None:
    ours = Twins(tmp_path, originals).run(f"dd {words}")
    assert ours.code == 1


@pytest.mark.parametrize("words", ["if=bad.qed of=x", "bs=1M if=bad.qed of=x"])
def test_dd_that_cannot_read_leaves_no_file(words: str, originals: Path, tmp_path: Path) -> None:
    """qemu-img leaves what it has written."""
    twins = Twins(tmp_path, originals)
    twins.run(f"dd {words}", files=False)
    assert not (twins.mine / "x").exists()
    assert not list(twins.mine.glob(".*"))
