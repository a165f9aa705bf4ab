"""``rebase`` beside ``qemu-img rebase``: what is printed, the code, and the files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.cli import gallery
from tests.cli.differential import Twins
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2

_PROGRESS = re.compile(r"(    \(\d+\.\d\d/100%\)\r)+")


def steady(text: str) -> str:
    """Without how often progress was shown; that it began at 0 stays."""
    return re.sub(_PROGRESS, lambda found: f"{found[0][:17]}...", text)


@pytest.fixture(autouse=True)
def any_backing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU has no policy."""
    monkeypatch.setenv("QEDASYNC_BACKING", "any")


def build(folder: Path) -> None:
    """The gallery, two overlays that hold something, and a file much like the first one's base."""
    gallery.build(folder)
    (folder / "near.raw").write_bytes((folder / "base.raw").read_bytes())
    qemu.io(folder / "near.raw", "write -P 3 384k 4k", options=("-f", "raw"))
    qemu.create(folder / "top.qed", 4 << 20, backing=("ov.qed", "qed"))
    qemu.io(folder / "top.qed", "write -P 5 3M 64k", "write -P 6 100k 5k", "write -z 128k 64k")
    qemu.create(folder / "small.qed", 4 << 20, cluster_size=4096, backing=("a.qed", "qed"))
    qemu.io(folder / "small.qed", "write -P 5 20k 9k")
    shutil.copy(folder / "top.qed", folder / "two words.qed")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rebase") / "originals"
    folder.mkdir()
    build(folder)
    return folder


SAFE = """
-b '' ov.qed
-b '' ov2.qed
-b '' top.qed
-b '' small.qed
-p -b '' ov.qed
-p -q -b '' ov.qed
-pqb '' ov.qed
-q -b '' top.qed
-b near.raw -F raw ov.qed
-p -b near.raw -F raw ov.qed
-b r.raw -F raw ov.qed
-b e.raw -F raw ov.qed
-b e.qed -F qed ov.qed
-b ov.qed -F qed ov2.qed
-b base.raw -F raw ov2.qed
-b base.raw -F raw top.qed
-b ov2.qed -F qed top.qed
-b a.qed -F qed ov2.qed
-p -b a.qed -F qed ov2.qed
-b a.qed -F qed small.qed
-b base.raw -F raw small.qed
-b dirty.qed -F qed small.qed
-F raw -b '' ov2.qed
-b base.raw -F raw a.qed
-b '' a.qed
-b base.raw -F raw dirty.qed
-b ../ov.qed -F qed sub/ov.qed
-b '' sub/ov.qed
-b base.raw -F raw 'two words.qed'
-b 'two words.qed' -F qed ov2.qed
-t none -b '' ov.qed
-t writethrough -b '' ov.qed
-t directsync -b near.raw -F raw ov.qed
-t unsafe -b '' ov.qed
-T none -b near.raw -F raw ov.qed
-f qed -b '' ov.qed
-U -b '' ov.qed
-U -b near.raw -F raw ov.qed
--image-opts -b '' driver=qed,file.filename=ov.qed
--image-opts -b near.raw -F raw driver=qed,file.filename=ov.qed
ov.qed -b ''
-b '' -- ov.qed
"""

UNSAFE = """
-u -b a.qed -F qed ov2.qed
-p -u -b a.qed -F qed ov2.qed
-u -b nothing -F raw ov2.qed
-u -b nothing -F qed ov2.qed
-u -b '' ov2.qed
-u ov2.qed
-u -F raw ov2.qed
-u -q ov2.qed
-u -b base.raw -F raw nope.qed
-u -b '' nope.qed
-U -u -b '' ov.qed
-u -b nbd://example/x -F raw ov2.qed
-u -b '' a.qed
-u a.qed
"""


def assert_read_the_same(twins: Twins, originals: Path) -> None:
    """Each file of ours reads as qemu-img's does, and as before; zeroes may be held otherwise."""
    for real in twins.real.rglob("*.*"):
        name = real.relative_to(twins.real)
        mine, before = twins.mine / name, originals / name
        if mine.read_bytes() == real.read_bytes():
            continue
        for other in (real, before):
            said = qemu.img("compare", "-s", "-f", "qed", "-F", "qed", mine, other, status=None)
            if "block status" in said.stdout:
                said = qemu.img("compare", "-f", "qed", "-F", "qed", mine, other, status=None)
            assert said.stdout == "Images are identical.\n", name
        assert qemu.check(mine)["corruptions"] == 0


@pytest.mark.parametrize("words", SAFE.strip().splitlines())
def test_rebase_leaves_an_image_that_reads_the_same(
    words: str, originals: Path, tmp_path: Path
) -> None:
    twins = Twins(tmp_path, originals)
    ours = twins.run(f"rebase {words}", filter=steady, files=False)
    assert ours.code == 0
    assert_read_the_same(twins, originals)
    for name in ("ov.qed", "ov2.qed", "top.qed", "small.qed"):
        # Zeroes take no room, so it may be less.
        assert (twins.mine / name).stat().st_size <= (twins.real / name).stat().st_size
    twins.run("info --output=json ov2.qed", files=False, filter=without_sizes)
    twins.run("info --output=json ov.qed", files=False, filter=without_sizes)


def without_sizes(text: str) -> str:
    """Without what the file takes on the host."""
    return re.sub(r'"actual-size": \d+', "", text)


@pytest.mark.parametrize("words", UNSAFE.strip().splitlines())
def test_rebase_unsafe_writes_the_same_header(words: str, originals: Path, tmp_path: Path) -> None:
    ours = Twins(tmp_path, originals).run(f"rebase {words}", filter=steady)
    assert ours.code == 0


REFUSED = """
''
a.qed
ov.qed
-b base.raw a.qed
-b r.raw ov.qed
-u -b a.qed ov2.qed
-u -b nothing -F foo ov2.qed
-b nothing -F raw ov2.qed
-p -b nothing -F raw ov2.qed
-b nothing -F foo ov2.qed
-b a.qed -F foo ov2.qed
-b junk.qed -F qed ov2.qed
-b nope.qed -F qed ov2.qed
-b ov2.qed -F qed ov2.qed
-b ./ov2.qed -F qed ov2.qed
-b ov.qed -F qed sub/ov.qed
-b a.qed -F qed sub/ov.qed
-b base.raw -F raw base.raw
-u -b base.raw -F raw base.raw
-b '' base.raw
-u base.raw
-f raw -b '' ov.qed
-f foo -b '' ov.qed
-b base.raw -F raw nope.qed
-b '' nope.qed
-b base.raw -F raw nothing
-p -b base.raw -F raw nothing
-b base.raw -F raw junk.qed
-t foo -b '' ov.qed
-T foo -b '' ov.qed
-u -t foo -b '' ov.qed
a.qed -b base.raw -F raw e.qed
--image-opts -f qed -b '' driver=qed,file.filename=ov.qed
--object foo,id=x -b '' ov.qed
-b bad.qed -F qed ov2.qed
-b base.raw -F raw bad.qed
"""

COPIED = ("-b base.raw a.qed", "-b r.raw ov.qed", "-b bad.qed -F qed ov2.qed")
"""Where something may have been copied when it ends; with the first two by qemu-img only."""


@pytest.mark.parametrize("words", REFUSED.strip().splitlines())
def test_rebase_refuses_the_same(words: str, originals: Path, tmp_path: Path) -> None:
    twins = Twins(tmp_path, originals)
    ours = twins.run(f"rebase {words}", filter=steady, files=words not in COPIED)
    assert ours.code == 1
    if words in COPIED:
        assert_read_the_same(twins, originals)


def test_rebase_to_a_raw_file_called_qed_is_refused(originals: Path, tmp_path: Path) -> None:
    """qemu-img does not look at a file that is in the chain already."""
    twins = Twins(tmp_path, originals)
    words = "rebase -b base.raw -F qed ov2.qed"
    assert twins.theirs(words).code == 0
    ours = twins.ours(words)
    assert ours.code == 1
    assert ours.err.endswith("'base.raw': Image not in QED format\n")
    assert (twins.mine / "ov2.qed").read_bytes() == (originals / "ov2.qed").read_bytes()


def test_rebase_without_a_format_is_refused_before_anything_is_copied(
    originals: Path, tmp_path: Path
) -> None:
    """qemu-img says the same when it has copied everything."""
    twins = Twins(tmp_path, originals)
    twins.ours("rebase -b r.raw ov.qed")
    assert (twins.mine / "ov.qed").read_bytes() == (originals / "ov.qed").read_bytes()


def test_rebase_on_itself_is_refused_with_force_share_too(originals: Path, tmp_path: Path) -> None:
    """qemu-img does it, and cannot open the image again."""
    twins = Twins(tmp_path, originals)
    words = "rebase -U -b ov2.qed -F qed ov2.qed"
    assert twins.theirs(words).code == 0
    assert twins.theirs("info --backing-chain ov2.qed").code == 1
    ours = twins.ours(words)
    assert (ours.code, ours.out) == (1, "")
    assert "Could not open new backing file 'ov2.qed'" in ours.err
    assert twins.ours("map ov2.qed").code == 0


@pytest.mark.parametrize("length", [4096 - 64, 4096 - 63, 4095, 4096])
def test_rebase_to_a_long_name_leaves_an_image_that_opens(length: int, tmp_path: Path) -> None:
    """qemu-img takes 4096 bytes, and then nobody can open the image (dossier §9)."""
    twins = Twins(tmp_path)
    for folder in (twins.real, twins.mine):
        qemu.create(folder / "x.qed", 1 << 20, cluster_size=4096 if length < 4095 else 65536)
    words = ["rebase", "-u", "-b", "x" * length, "-F", "raw", "x.qed"]
    if length == 4096:
        assert twins.theirs(words).code == 0
        assert twins.theirs("info x.qed").code == 1
        assert twins.ours(words).code == 1
    else:
        twins.run(words)
    assert twins.ours("info x.qed").code == 0


def test_rebase_over_a_forbidden_file_names_the_option(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = Twins(tmp_path, originals)
    monkeypatch.delenv("QEDASYNC_BACKING")
    refused = twins.ours("rebase -b '' sub/ov.qed")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "--backing" in refused.err
    allowed = twins.ours("rebase --backing any -b '' sub/ov.qed")
    assert (allowed.code, allowed.err) == (0, "")


def test_rebase_on_a_named_file_elsewhere_needs_no_policy(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user names on the command line is never refused."""
    twins = Twins(tmp_path, originals)
    monkeypatch.delenv("QEDASYNC_BACKING")
    assert twins.ours("rebase -b sub/../../original.raw -F raw ov.qed").code == 1
    twins.run("rebase -b sub/../base.raw -F raw ov2.qed", files=False)
    assert_read_the_same(twins, originals)
