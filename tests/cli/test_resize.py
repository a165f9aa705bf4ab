"""``resize`` beside ``qemu-img resize``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import gallery
from tests.cli.differential import Twins
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resize") / "originals"
    folder.mkdir()
    gallery.build(folder)
    return folder


ROWS = """
a.qed 20M
a.qed +1M
a.qed 10M
a.qed +0
a.qed ++1M
a.qed 0x2000000
a.qed +1.5M
a.qed 10752k
a.qed 64T
-q a.qed 21M
-f qed a.qed 21M
-fqed -q a.qed 21M
a.qed -f qed 21M
--preallocation=off a.qed 22M
--shrink a.qed 22M
-- a.qed 22M
e.qed 1M
ov.qed 3M
ov2.qed +4M
dirty.qed +4M
leak.qed +4M
file:a.qed 22M
--image-opts driver=qed,file.filename=a.qed 22M
base.raw 2M
-f raw base.raw 2M
-f raw base.raw +1M
-f raw base.raw 1M
-f raw --shrink base.raw 512k
-f raw --shrink base.raw -512k
-f raw base.raw --shrink -512k
-f raw base.raw -0
-f raw e.raw 1M
-f raw r.raw 1M
-f raw --preallocation=falloc base.raw 3M
-f raw --preallocation=full base.raw 4M
-f raw --preallocation=off base.raw 4M
-f raw a.qed +1M
--image-opts driver=raw,file.filename=base.raw 2M
a.qed -1M
a.qed 1M
--shrink a.qed -1M
--shrink a.qed 1M
a.qed +1
a.qed 10485761
a.qed 65T
a.qed 20M 1
a.qed
''
a.qed 1x
a.qed x
a.qed +
a.qed -
a.qed ''
a.qed --5
a.qed 1.5
--preallocation=full a.qed 23M
--preallocation=metadata a.qed 23M
--preallocation=foo a.qed 23M
--preallocation foo a.qed 23M
--preallocation=full a.qed 10M
--preallocation
a.qed 9E
a.qed 17E
a.qed -100G
--shrink a.qed -100G
--shrink a.qed 0
a.qed 0
a.qed 9223372036854775807
a.qed +9223372036854775807
nothing 1M
junk.qed 1M
nope.qed 2M
sub 1M
-f foo a.qed 1M
-f qed base.raw 2M
-f raw base.raw 512k
-f raw base.raw -512k
-f raw --preallocation=metadata base.raw 5M
-f raw --preallocation=full base.raw 1M
-f raw --shrink --preallocation=full base.raw 512k
-f raw --shrink base.raw -999G
-f raw e.raw 0
ov.qed 1M
1M a.qed
a.qed 1M -f
-p a.qed 1M
--foo a.qed 1M
-x
--image-opts -f qed driver=qed,file.filename=a.qed 22M
--object foo,id=x a.qed 22M
"""


@pytest.mark.parametrize("words", ROWS.strip().splitlines())
def test_resize_says_and_does_the_same(words: str, originals: Path, tmp_path: Path) -> None:
    Twins(tmp_path, originals).run(f"resize {words}")


def test_resize_of_an_overlay_under_a_longer_file_grows(tmp_path: Path) -> None:
    """QEMU refuses it: the new part would show what the backing file has there."""

    def build(folder: Path) -> None:
        (folder / "base.raw").write_bytes(b"\xff" * (1 << 20))
        qemu.create(folder / "x.qed", 64 << 10, backing=("base.raw", "raw"))

    twins = Twins(tmp_path, build)
    assert twins.theirs("resize x.qed 1M").code == 1
    ours = twins.ours("resize x.qed 1M")
    assert (ours.code, ours.out, ours.err) == (0, "Image resized.\n", "")
    (tmp_path / "expected").write_bytes(b"\xff" * (64 << 10) + bytes((1 << 20) - (64 << 10)))
    qemu.compare(twins.mine / "x.qed", tmp_path / "expected")


def test_resize_of_an_image_in_use_is_refused(originals: Path, tmp_path: Path) -> None:
    twins = Twins(tmp_path, originals)
    with qemu.hold(twins.real / "a.qed"), qemu.hold(twins.mine / "a.qed"):
        assert twins.run("resize a.qed 20M").code == 1


@pytest.mark.parametrize("words", ["--help", "-h", "a.qed --help"])
def test_resize_help_needs_no_size(words: str, tmp_path: Path) -> None:
    ours = Twins(tmp_path).ours(f"resize {words}")
    assert ours.code == 0
    assert ours.out.startswith("NAME\n    qedasync resize")
