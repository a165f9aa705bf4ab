"""``convert`` beside ``qemu-img convert``: what is printed, the code, and the files."""

from __future__ import annotations

import json
import re
import time
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


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert") / "originals"
    folder.mkdir()
    gallery.build(folder)
    return folder


@pytest.fixture(autouse=True)
def any_backing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU has no policy."""
    monkeypatch.setenv("QEDASYNC_BACKING", "any")


SAME = """
a.qed x
-f qed a.qed x
-O raw a.qed x
-O qed a.qed x.qed
-Oqed a.qed x.qed
a.qed -O qed x.qed
a.qed x.qed -O qed
-O raw -O qed a.qed x.qed
-f raw a.qed x
-f raw -O qed base.raw x.qed
-O qed base.raw x.qed
-O qed -o cluster_size=4k,table_size=2 a.qed x.qed
-O qed -o cluster_size=4k -o table_size=2 a.qed x.qed
-O qed -o cluster_size=1M ov2.qed x.qed
-O qed -o table_size=16 ov.qed x.qed
-O qed -o size=1M a.qed x.qed
-O qed -o preallocation=full a.qed x.qed
-o size=20M a.qed x
-o preallocation=falloc base.raw x
-o preallocation=full base.raw x
-p a.qed x
-p -O qed a.qed x.qed
-pq a.qed x
-q a.qed x
-p e.qed x
-U a.qed x
-S 4k a.qed x
-S 4k -O qed a.qed x.qed
-S 512 a.qed x
-S 64k -O qed base.raw x.qed
-S 16M a.qed x
-S 0 a.qed x
-S 0 -O qed ov.qed x.qed
-m 1 a.qed x
-m 16 -W a.qed x
-W -O qed ov2.qed x.qed
-t none a.qed x
-t writeback -O qed a.qed x.qed
-t writethrough -O qed a.qed x.qed
-t directsync a.qed x
-t unsafe a.qed x
-T none a.qed x
-T unsafe -O qed a.qed x.qed
-T directsync a.qed x
-r 100M a.qed x
-r 0 -O qed a.qed x.qed
-C a.qed x
-C -O qed a.qed x.qed
--salvage a.qed x
e.qed x
e.raw x
-O qed e.raw x.qed
-O qed e.qed e.raw x.qed
ov.qed x
ov2.qed x
-O qed ov2.qed x.qed
-O qed sub/ov.qed sub/x.qed
a.qed ov.qed x
-O qed a.qed base.raw r.raw x.qed
-p -O qed ov2.qed ov.qed x.qed
r.raw r1.raw x
-f raw r.raw r1.raw x
-O qed -f raw r.raw x.qed
r1.raw x
a.qed base.raw
-O qed a.qed base.raw
-O qed a.qed e.qed
a.qed file:x
file:a.qed x
-O qed -B base.raw -F raw ov.qed x.qed
-O qed -o backing_file=base.raw,backing_fmt=raw ov.qed x.qed
-O qed -B ov.qed -F qed ov2.qed x.qed
-O qed -B base.raw -F qed ov.qed x.qed
-O qed -S 0 -B base.raw -F raw ov.qed x.qed
-O qed -B base.raw -F raw -o cluster_size=4k ov.qed x.qed
-O qed -B ../a.qed -F qed sub/ov.qed sub/x.qed
-O qed -B base.raw -F raw ov2.qed x.qed
-O qed -B a.qed -F qed e.qed x.qed
-O qed -F raw ov.qed x.qed
-n -O qed ov.qed a.qed
-n -O qed base.raw a.qed
-n -p -O qed base.raw a.qed
-n -O qed base.raw ov2.qed
-n -O qed -S 0 -f raw base.raw ov2.qed
-n --target-is-zero -O qed base.raw e.qed
-n --target-is-zero -O qed base.raw ov2.qed
-n -O qed -B base.raw ov.qed ov2.qed
-n -O qed -B base.raw -F raw ov.qed ov2.qed
-n -O qed -F raw ov.qed ov2.qed
-n -O raw r.raw base.raw
-n -t none -O qed a.qed dirty.qed
-n --target-image-opts a.qed driver=qed,file.filename=dirty.qed
--image-opts driver=qed,file.filename=a.qed x
-- a.qed x
dirty.qed x
leak.qed x
-o help -O qed
-o help
-o help a.qed x
-O qed -o help a.qed x.qed
-O qed -o help a.qed
-O qed -o ? a.qed
"""


@pytest.mark.parametrize("words", SAME.strip().splitlines())
def test_convert_makes_the_same_image(words: str, originals: Path, tmp_path: Path) -> None:
    Twins(tmp_path, originals).run(f"convert {words}", filter=steady)


REFUSED = """
''
a.qed
-O foo a.qed x
-O '' a.qed x
-f foo a.qed x
-f '' a.qed x
-c a.qed x
-c -O qed a.qed x.qed
-c -n -O qed a.qed dirty.qed
-l foo a.qed x
-l snapshot.id=1 a.qed x
-l snapshot.foo=1 a.qed x
-l foo a.qed base.raw x
-l foo base.raw x
-B base.raw -l foo a.qed x
-n a.qed x
-n a.qed e.raw
-n -p a.qed base.raw
-n -O qed a.qed e.qed
-n -O raw ov.qed a.qed
-n base.raw a.qed
-n -O raw sub/../ov.qed base.raw
-n -O qed ov2.qed ov.qed
-O qed ov.qed base.raw
-O raw ov.qed file:base.raw
-O qed ov2.qed base.raw
-n -o size=1 a.qed e.raw
-n -O qed a.qed junk.qed
-n -O qed a.qed nope.qed
-n -O qed a.qed base.raw
-n -O qed a.qed nothing.qed
-n -t foo -O qed a.qed dirty.qed
-S foo a.qed x
-S 1000 a.qed x
-S 32M a.qed x
-S -1 a.qed x
-m 0 a.qed x
-m 17 a.qed x
-m foo a.qed x
-T foo a.qed x
-r foo a.qed x
-r 9E a.qed x
--target-is-zero a.qed x
--target-is-zero -n a.qed e.raw
--target-is-zero -n -O qed a.qed ov2.qed
--bitmaps a.qed x
--bitmaps base.raw x
--bitmaps -O qed a.qed x
--skip-broken-bitmaps a.qed x
-C -S 4k a.qed x
-C -c a.qed x
--salvage -C a.qed x
-O qed -B base.raw ov.qed x.qed
-O qed -o backing_file=base.raw ov.qed x.qed
-O qed -B base.raw -F raw a.qed ov.qed x.qed
-F raw ov.qed x
-B base.raw ov.qed x
-O qed -o foo=1 a.qed x.qed
-O qed -o , a.qed x.qed
-O qed -o cluster_size=foo a.qed x.qed
a.qed a.qed
-O qed a.qed a.qed
-O qed ov.qed a.qed ov.qed
-O qed ov2.qed ov.qed
nothing x
-p nothing x
nope.qed x
junk.qed x
-O qed short.qed x.qed
--image-opts -f qed driver=qed,file.filename=a.qed x
--target-image-opts a.qed driver=raw,file.filename=x
-n --target-image-opts a.qed driver=raw,file.filename=x
-n --target-image-opts -O qed a.qed driver=qed,file.filename=dirty.qed
--object foo,id=x a.qed x
a.qed sub/x/y
a.qed sub
-O qed a.qed sub
a.qed /dev/null
a.qed foo:x
-O qed a.qed 'json:{"driver":"file","filename":"x"}'
-O qed -B a.qed -F qed nothing x.qed
"""


@pytest.mark.parametrize("words", REFUSED.strip().splitlines())
def test_convert_refuses_the_same(words: str, originals: Path, tmp_path: Path) -> None:
    ours = Twins(tmp_path, originals).run(f"convert {words}", filter=steady)
    assert ours.code == 1


FAILING = """
bad.qed x
-O qed bad.qed x
-O qed -B nothing -F raw ov.qed x
-O qed -B base.raw -F foo ov.qed x
-O qed -o cluster_size=1000 a.qed x
-O qed -o cluster_size=4k,table_size=3 a.qed x
-o preallocation=metadata a.qed x
-t foo a.qed x
-O qed -t foo a.qed x
blkdebug:rule:a.qed x
"""


@pytest.mark.parametrize("words", FAILING.strip().splitlines())
@pytest.mark.parametrize("old", [b"", b"precious"], ids=["new", "over an old one"])
def test_convert_that_fails_leaves_what_was_there(
    words: str, old: bytes, originals: Path, tmp_path: Path
) -> None:
    """qemu-img says the same, and leaves a target that is not whole."""
    twins = Twins(tmp_path, originals)
    for folder in (twins.real, twins.mine):
        (folder / "rule").write_text('[inject-error]\nevent = "read_aio"\n')
        if old:
            (folder / "x").write_bytes(old)
    ours = twins.run(f"convert {words}", files=False)
    assert ours.code == 1
    assert (twins.mine / "x").exists() == bool(old)
    assert not old or (twins.mine / "x").read_bytes() == old
    assert not list(twins.mine.glob(".*"))
    real = twins.real / "x"
    untouched = real.exists() == bool(old) and (not old or real.read_bytes() == old)
    assert not untouched


def test_convert_to_an_overlay_that_is_said_to_be_zero_is_an_error(
    originals: Path, tmp_path: Path
) -> None:
    """qemu-img says so, does nothing, and ends with 0."""
    twins = Twins(tmp_path, originals)
    words = "convert -n --target-is-zero -O qed base.raw -B ov.qed -F qed ov2.qed"
    real, ours = twins.theirs(words), twins.ours(words)
    assert (real.code, ours.code) == (0, 1)
    assert ours.err.startswith(real.first_error)
    twins.assert_same_files()


@pytest.mark.parametrize(
    "words", ["bad.qed x", "-O qed bad.qed x", "-q bad.qed x", "bad.qed a.qed x"]
)
def test_convert_with_salvage_has_zeroes_where_nothing_can_be_read(
    words: str, originals: Path, tmp_path: Path
) -> None:
    """qemu-img warns of each sector, ours once of a map that cannot be read."""
    twins = Twins(tmp_path, originals)
    real, ours = (run(f"convert --salvage {words}") for run in (twins.theirs, twins.ours))
    assert ours.code == real.code == 0
    assert ours.err.split("\n")[0] == real.first_error
    assert ours.err.count("\n") <= real.err.count("\n")
    assert qemu.img("compare", twins.mine / "x", twins.real / "x").returncode == 0


def test_convert_with_salvage_reads_all_that_can_be_read(originals: Path, tmp_path: Path) -> None:
    twins = Twins(tmp_path, originals)
    for folder in (twins.real, twins.mine):
        rule = '[inject-error]\nevent = "read_aio"\nsector = "641"\n'
        (folder / "rule").write_text(rule)
    twins.run("convert --salvage -O qed blkdebug:rule:a.qed x.qed", files=False)
    said = twins.theirs("compare a.qed x.qed")
    assert said.out == "Content mismatch at offset 512!\n"
    assert qemu.img("compare", twins.mine / "x.qed", twins.real / "x.qed").returncode == 0


def test_convert_over_a_link_writes_the_file_and_keeps_its_mode(
    originals: Path, tmp_path: Path
) -> None:
    twins = Twins(tmp_path, originals)
    for folder in (twins.real, twins.mine):
        (folder / "sub" / "old").write_bytes(b"x")
        (folder / "sub" / "old").chmod(0o600)
        (folder / "link").symlink_to("sub/old")
    twins.run("convert -O qed a.qed link")
    assert (twins.mine / "link").is_symlink()
    assert (twins.mine / "sub" / "old").stat().st_mode & 0o777 == 0o600


def test_convert_over_a_named_backing_file_elsewhere_needs_no_policy(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user names on the command line is never refused; what that file names may be."""
    monkeypatch.delenv("QEDASYNC_BACKING")
    twins = Twins(tmp_path, originals)
    refused = twins.ours("convert sub/ov.qed x")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "'../a.qed'" in refused.err
    assert "--backing" in refused.err
    twins.run("convert -O qed -B sub/../ov.qed -F qed ov2.qed x.qed")
    twins.run("convert -O qed -B ../ov.qed -F qed ov2.qed sub/y.qed")
    assert twins.ours("convert -O qed -B sub/ov.qed -F qed a.qed z.qed").code == 1
    assert twins.ours("convert --backing any -O qed -B sub/ov.qed -F qed a.qed z.qed").code == 0


@pytest.mark.parametrize(
    "words",
    ["-B base.raw -F raw a.qed", "-B ov.qed -F qed a.qed"],
)
def test_convert_over_a_file_that_holds_something_else_hides_it(
    words: str, originals: Path, tmp_path: Path
) -> None:
    """Where the source has zeroes of its own; qemu-img marks also what is zeroes below."""
    twins = Twins(tmp_path, originals)
    twins.run(f"convert -O qed {words} x.qed", files=False)
    assert qemu.img("compare", twins.mine / "x.qed", twins.real / "x.qed").returncode == 0
    assert (twins.mine / "x.qed").stat().st_size == (twins.real / "x.qed").stat().st_size


def test_convert_progress_as_json_lines(originals: Path, tmp_path: Path) -> None:
    ours = Twins(tmp_path, originals).ours("convert --progress=json -O qed a.qed base.raw x.qed")
    lines = [json.loads(line) for line in ours.out.splitlines()]
    assert {line["job"] for line in lines} == {"convert"}
    percents = [line["percent"] for line in lines]
    assert percents[0] == 0
    assert percents[-1] == 100
    assert percents == sorted(percents)


def test_convert_at_a_rate_takes_its_time(originals: Path, tmp_path: Path) -> None:
    """The pace is the loop's clock's, of which nobody has to wait here."""
    twins = Twins(tmp_path, originals)
    before = time.monotonic()
    assert twins.ours("convert -r 1M -O qed a.qed base.raw x.qed").code == 0
    assert time.monotonic() - before > 0.1
