"""``commit`` beside ``qemu-img commit``: what is printed, the code, and what the files read as."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli import gallery
from tests.cli.differential import Twins, assert_same_file
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
    """The gallery, and an overlay three deep that holds something."""
    gallery.build(folder)
    qemu.create(folder / "top.qed", 4 << 20, backing=("ov.qed", "qed"))
    qemu.io(folder / "top.qed", "write -P 5 3M 64k", "write -P 6 100k 5k", "write -z 128k 64k")
    qemu.create(folder / "small.qed", 4 << 20, cluster_size=4096, backing=("a.qed", "qed"))
    qemu.io(folder / "small.qed", "write -P 5 20k 9k", "write -z 1M 4k")
    qemu.create(folder / "over_small.qed", 4 << 20, backing=("small.qed", "qed"))
    qemu.io(folder / "over_small.qed", "write -P 7 23k 2k", "write -P 8 3M 300k")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commit") / "originals"
    folder.mkdir()
    build(folder)
    return folder


KEPT = """
-d ov.qed
-d ov2.qed
-d top.qed
-d small.qed
-d over_small.qed
-p -d ov.qed
-pqd ov.qed
-b base.raw ov.qed
-b base.raw ov2.qed
-b base.raw top.qed
-b ov.qed top.qed
-p -b base.raw -d top.qed
-b ./base.raw ov.qed
-b sub/../ov.qed top.qed
-b ../a.qed sub/ov.qed
-b a.qed over_small.qed
-b small.qed -d over_small.qed
"""

EMPTIED = """
ov.qed
ov2.qed
top.qed
small.qed
over_small.qed
sub/ov.qed
-p ov.qed
-p -q top.qed
-q ov.qed
-pq small.qed
-t none ov.qed
-t writethrough top.qed
-t directsync top.qed
-t unsafe ov.qed
-f qed ov.qed
-r 1M ov.qed
-r 0 top.qed
--image-opts driver=qed,file.filename=ov.qed
ov.qed -q
-- top.qed
"""

REFUSED = """
''
a.qed
e.qed
bad.qed
base.raw
-f raw ov.qed
-f foo ov.qed
-p a.qed
-p nothing
ov.qed ov2.qed
nope.qed
nothing
junk.qed
-b nothing ov2.qed
-b a.qed ov2.qed
-b '' ov2.qed
-b top.qed top.qed
-b a.qed sub/ov.qed
-b sub/../a.qed sub/ov.qed
-b base.raw a.qed
-b base.raw base.raw
-t foo ov.qed
-r foo ov.qed
-r 9E ov.qed
--image-opts -f qed driver=qed,file.filename=ov.qed
--object foo,id=x ov.qed
"""


@pytest.mark.parametrize("words", KEPT.strip().splitlines())
def test_commit_that_keeps_the_overlay_makes_the_same_files(
    words: str, originals: Path, tmp_path: Path
) -> None:
    ours = Twins(tmp_path, originals).run(f"commit {words}", filter=steady)
    assert ours.code == 0


@pytest.mark.parametrize("words", EMPTIED.strip().splitlines())
def test_commit_empties_the_overlay_which_reads_as_before(
    words: str, originals: Path, tmp_path: Path
) -> None:
    """qemu-img leaves the overlay full (dossier §9); all else is the same."""
    twins = Twins(tmp_path, originals)
    ours = twins.run(f"commit {words}", filter=steady, files=False)
    assert ours.code == 0
    overlay = next(word for word in words.split() if "." in word).rpartition("=")[2]
    for real in twins.real.rglob("*.*"):
        name = real.relative_to(twins.real)
        if str(name) != overlay:
            assert_same_file(twins.mine / name, real, f"commit {words}")
    before, after = originals / overlay, twins.mine / overlay
    assert qemu.img("compare", "-f", "qed", "-F", "qed", before, after).returncode == 0
    assert after.stat().st_size < before.stat().st_size or overlay in ("ov2.qed", "sub/ov.qed")
    assert qemu.check(after)["corruptions"] == qemu.check(after)["leaks"] == 0


@pytest.mark.parametrize("words", REFUSED.strip().splitlines())
def test_commit_refuses_the_same(words: str, originals: Path, tmp_path: Path) -> None:
    ours = Twins(tmp_path, originals).run(f"commit {words}", filter=steady)
    assert ours.code == 1


def test_commit_of_an_emptied_overlay_commits_nothing(originals: Path, tmp_path: Path) -> None:
    twins = Twins(tmp_path, originals)
    twins.ours("commit top.qed")
    before = (twins.mine / "ov.qed").read_bytes()
    assert twins.ours("commit top.qed").out == "Image committed.\n"
    assert (twins.mine / "ov.qed").read_bytes() == before


def test_commit_progress_as_json_lines(originals: Path, tmp_path: Path) -> None:
    ours = Twins(tmp_path, originals).ours("commit --progress=json ov.qed")
    first, *_, last, said = ours.out.splitlines()
    assert first == '{"job": "commit", "done": 0, "total": 1, "percent": 0.0}'
    assert last.startswith('{"job": "commit"')
    assert '"percent": 100.0}' in last
    assert said == "Image committed."


def test_commit_through_a_forbidden_file_names_the_option(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = Twins(tmp_path, originals)
    monkeypatch.delenv("QEDASYNC_BACKING")
    refused = twins.ours("commit sub/ov.qed")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "--backing" in refused.err
    assert twins.ours("commit --backing any sub/ov.qed").code == 0
