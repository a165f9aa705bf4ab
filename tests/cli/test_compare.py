"""``compare`` beside ``qemu-img compare``: what is printed, and the exit codes 0 to 4."""

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
    """Without the progress: how often it is shown depends on how much is read at once."""
    return re.sub(_PROGRESS, "", text)


@pytest.fixture(autouse=True)
def any_backing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU has no policy."""
    monkeypatch.setenv("QEDASYNC_BACKING", "any")


def build(folder: Path) -> None:
    """The gallery, and pairs that differ in one thing."""
    gallery.build(folder)
    shutil.copy(folder / "a.qed", folder / "late.qed")
    qemu.io(folder / "late.qed", "write -P 2 1049088 512", "write -P 7 9M 1")
    shutil.copy(folder / "a.qed", folder / "zeroes.qed")
    qemu.io(folder / "zeroes.qed", "write -P 0 4M 64k", "write -z 5M 128k")
    qemu.create(folder / "fine.qed", 10 << 20, cluster_size=4096)
    qemu.io(folder / "fine.qed", "write -P 1 0 64k", "write -P 2 1M 100k", "write -z 2M 64k")
    qemu.create(folder / "long.qed", 20 << 20)
    qemu.io(folder / "long.qed", "write -P 1 0 64k", "write -P 2 1M 100k", "write -P 9 15M 3")
    for event, errno, once in (
        ("read_aio", 5, "on"),
        ("l2_load", 5, "off"),
        ("read_aio", 28, "off"),
    ):
        text = f'[inject-error]\nevent = "{event}"\nerrno = "{errno}"\nonce = "{once}"\n'
        (folder / f"{event}_{errno}").write_text(text)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """One pair for all: nothing here writes."""
    return Twins(tmp_path_factory.mktemp("compare"), build)


SAME = """
a.qed a.qed
a.qed dirty.qed
a.qed leak.qed
a.qed fine.qed
-f qed -F qed a.qed dirty.qed
-p a.qed dirty.qed
-p -q a.qed dirty.qed
-pq a.qed base.raw
a.qed base.raw
-q a.qed base.raw
-f qed a.qed base.raw
-F raw a.qed base.raw
-f qed -F raw a.qed base.raw
-f raw -F raw a.qed dirty.qed
-f raw a.qed dirty.qed
-p a.qed base.raw
-s a.qed base.raw
-s a.qed dirty.qed
-s a.qed fine.qed
-s ov.qed ov2.qed
-s -q ov.qed ov2.qed
-ps base.raw ov.qed
a.qed zeroes.qed
zeroes.qed a.qed
a.qed late.qed
late.qed a.qed
late.qed zeroes.qed
a.qed long.qed
long.qed a.qed
-p long.qed a.qed
-T none a.qed dirty.qed
-T writethrough a.qed dirty.qed
-U a.qed dirty.qed
ov.qed ov2.qed
ov2.qed ov.qed
-p ov.qed ov2.qed
-p ov2.qed ov.qed
-pq ov2.qed ov.qed
sub/ov.qed a.qed
base.raw ov.qed
ov.qed base.raw
e.qed e.raw
-p e.qed e.raw
e.qed ov.qed
e.raw r.raw
r.raw e.raw
r1.raw e.raw
e.raw r1.raw
r.raw r1.raw
-s e.raw r.raw
--image-opts driver=qed,file.filename=a.qed driver=qed,file.filename=dirty.qed
-- a.qed dirty.qed
a.qed dirty.qed -p
dbl.qed a.qed
-T foo a.qed dirty.qed
-f foo a.qed a.qed
-F foo a.qed a.qed
a.qed
''
a.qed b c
nothing a.qed
a.qed nothing
-q nothing a.qed
junk.qed a.qed
a.qed nope.qed
-f qed base.raw a.qed
--image-opts -f qed driver=qed,file.filename=a.qed driver=qed,file.filename=dirty.qed
--image-opts -F qed driver=qed,file.filename=a.qed driver=qed,file.filename=dirty.qed
--object foo,id=x a.qed a.qed
--object foo,id=x
a.qed bad.qed
bad.qed a.qed
-q bad.qed a.qed
bad.qed bad.qed
-p a.qed bad.qed
worse.qed dbl.qed
blkdebug:read_aio_5:a.qed dirty.qed
dirty.qed blkdebug:read_aio_5:a.qed
-p dirty.qed blkdebug:read_aio_28:a.qed
blkdebug:l2_load_5:a.qed dirty.qed
-p dirty.qed blkdebug:l2_load_5:a.qed
e.qed blkdebug:read_aio_5:a.qed
base.raw blkdebug:l2_load_5:a.qed
"""


@pytest.mark.parametrize("words", SAME.strip().splitlines())
def test_compare_says_the_same(words: str, twins: Twins) -> None:
    twins.run(f"compare {words}", filter=steady, files=False)


@pytest.mark.parametrize("words", ["-x a.qed a.qed", "-t none a.qed a.qed", "-f"])
def test_compare_of_wrong_options_is_refused(words: str, twins: Twins) -> None:
    ours = twins.ours(f"compare {words}")
    assert (ours.code, ours.out, ours.err.count("\n")) == (1, "", 1)


def test_compare_progress_as_json_lines(twins: Twins) -> None:
    ours = twins.ours("compare --progress=json a.qed dirty.qed")
    lines = ours.out.splitlines()
    assert ours.code == 0
    assert lines[0] == '{"job": "compare", "done": 0, "total": 1, "percent": 0.0}'
    assert '"percent": 100.0}' in lines[-2]
    assert lines[-1] == "Images are identical."


def test_compare_of_a_forbidden_backing_file_names_the_way_out(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QEDASYNC_BACKING")
    ours = twins.ours("compare sub/ov.qed a.qed")
    assert ours.code == 2
    assert "'../a.qed'" in ours.err
    assert "--backing" in ours.err
    for policy in ("any", "'allow:../a.qed'"):
        allowed = twins.ours(f"compare --backing {policy} sub/ov.qed a.qed")
        assert (allowed.code, allowed.err) == (1, "")


def test_compare_strict_says_where_the_allocation_differs(twins: Twins) -> None:
    """qemu-img says 2162688: it minds that the other's run reaches the end."""
    ours, real = (run("compare -s a.qed zeroes.qed") for run in (twins.ours, twins.theirs))
    assert ours.code == real.code == 1
    assert ours.out == "Strict mode: Offset 4194304 block status mismatch!\n"
