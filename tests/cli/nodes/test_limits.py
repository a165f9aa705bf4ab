"""Limits of blkdebug beside qemu-io: requests are cut as there, and leave the same file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.differential import Outcome, Twins
from tests.cli.io.pair import normal
from tests.cli.nodes import images
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits") / "originals"
    folder.mkdir()
    images.build(folder)
    (folder / "odd.raw").write_bytes(b"o" * 1000)
    return folder


def at(sector: int, **more: str) -> str:
    """An error from the start for requests that touch a sector."""
    words = {"event": "none", "sector": str(sector), **more}
    return ",".join(f"file.inject-error.0.{key}={value}" for key, value in words.items())


LIMITS = [
    # reads and writes in pieces: those before the one that fails are done
    ("raw", "file.max-transfer=64k," + at(256), "write -P 7 0 256k", "read -P 7 0 64k",
     "read -P 7 64k 64k", "read 0 256k", "read 64k 64k", "aio_read 0 256k", "aio_flush"),
    ("raw", "file.max-transfer=4k," + at(16, once="on"), "write -P 7 1k 12k", "read 0 16k"),
    ("raw", "file.max-transfer=4k,file.align=4k," + at(16), "write -P 7 1k 12k", "read 0 16k",
     "write -P 7 7k 512", "read -P 7 7k 512"),
    ("raw", "file.max-transfer=4k,file.align=512," + at(16), "write -P 7 100 12k", "read 0 16k"),
    ("qed", "file.max-transfer=64k," + at(0, event="l2_update", iotype="read"), "map"),
    ("qed", "file.max-transfer=64k,file.set-state.0.event=write_aio,file.set-state.0.new_state=2,"
     + at(-1, event="write_aio", state="2", once="on"), "write -P 5 128k 128k", "map",
     "read -P 5 128k 64k"),
    ("qed", "file.max-transfer=64k,file.set-state.0.event=read_aio,file.set-state.0.new_state=2,"
     + at(-1, event="read_aio", state="2"), "read 0 64k", "read 0 512k"),
    ("qed", "file.max-transfer=64k", "write -P 5 1000 300k", "read -P 5 1000 300k",
     "readv -P 5 1k 1 2 200k", "writev -P 6 3k 100k 100k 1", "read -P 6 3k 200k"),
    ("qed", "file.max-transfer=1M,file.align=4k", "write -P 5 0 1M", "read -P 5 0 1M"),
    # blocks: margins are read, and fail
    ("raw", "file.align=64k," + at(127, iotype="read"), "write -P 7 1k 512", "write -P 7 0 64k",
     "write -P 7 0 65k", "read -P 7 0 1k"),
    ("raw", "file.align=64k," + at(10, iotype="write"), "write -z 1k 4k", "write -z 0 64k",
     "write -z 1k 100k", "read -P 0 0 64k"),
    ("raw", "file.align=64k," + at(10, iotype="write-zeroes"), "write -z 1k 4k", "write -z 0 64k",
     "write -z 1k 100k", "write -P 4 0 64k"),
    ("qed", "file.align=64k," + at(0, event="pwritev_rmw_head", iotype="write"),
     "write -P 5 2k 512", "write -P 5 0 64k"),
    # zeroes in units; the rest is data
    ("raw", "file.opt-write-zero=64k," + at(10, iotype="write"), "write -z 1k 4k",
     "write -z 0 64k", "write -z 1k 100k", "write -z 0 100k"),
    ("raw", "file.opt-write-zero=64k," + at(10, iotype="write-zeroes"), "write -z 1k 4k",
     "write -z 0 64k", "write -z 1k 100k", "write -z 0 100k"),
    ("raw", "file.opt-write-zero=64k," + at(130, iotype="write-zeroes"), "write -z 1k 100k",
     "write -z 1k 200k", "read -v 1k 16", "read -v 63k 16"),
    ("raw", "file.opt-write-zero=64k,file.max-write-zero=64k," + at(130), "write -P 9 0 64k",
     "write -z 0 200k", "read -P 0 0 64k", "read -P 9 0 64k"),
    ("raw", "file.max-write-zero=4k," + at(10), "write -z 0 64k", "read 0 4k"),
    ("raw", "file.opt-write-zero=64k,file.max-transfer=4k," + at(10), "write -P 9 0 4k",
     "write -z 1k 63k", "read -P 0 1k 3k"),
    ("raw", at(10, iotype="write-zeroes", errno="95"), "write -z 0 64k", "read -P 0 0 64k"),
    # a file that ends within a block grows to the block's end
    ("odd", "file.align=512", "write -P 7 600 100", "write -P 7 10 10"),
    ("odd", "file.align=1k", "write -P 7 1000 10", "read -v 990 30", "length"),
    ("odd", "file.align=4k", "write -P 7 10 10"),
    ("odd", "file.align=512", "write -z 600 10", "length"),
    ("odd", "file.align=1", "write -P 7 600 100", "write -P 7 1000 10"),
    # discards, of whole blocks
    ("raw", at(10, iotype="discard"), "discard 0 32k", "discard 32k 32k", "read -P 1 0 32k"),
    ("raw", "file.opt-discard=64k,file.max-discard=64k," + at(140), "write -P 4 0 1M",
     "write -P 4 0 64k", "discard 1k 32k", "discard 32k 100k", "discard 0 1M", "discard 100 100"),
    ("raw", "file.align=4k,file.opt-discard=4k,file.max-discard=8k,"
     + at(32, iotype="discard"), "discard 1k 6k", "discard 17k 1k", "discard 100 15k",
     "discard 0 64k", "read -P 1 1k 3k", "read -P 0 4k 4k"),
    ("raw", "file.max-discard=8k," + at(32, iotype="discard", errno="95"), "discard 0 64k"),
    ("raw", at(-1, event="pwritev_zero"), "discard 0 64k", "read 0 64k"),
    ("qed", at(10, iotype="discard"), "discard 0 32k", "read -P 2 0 64k"),
]  # fmt: skip
"""(file, options, commands)"""

FILES = {"raw": ("raw", "base.raw"), "qed": ("qed", "a.qed"), "odd": ("raw", "odd.raw")}


@pytest.mark.parametrize("row", LIMITS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_limits_do_what_they_do_in_qemu(
    row: tuple[str, ...], originals: Path, tmp_path: Path
) -> None:
    twins = Twins(tmp_path, originals)
    _, said = run_both(row, twins)
    driver, file = FILES[row[0]]
    mine, real = twins.mine / file, twins.real / file
    if driver == "raw":
        assert mine.read_bytes() == real.read_bytes(), said
    else:  # where a write failed, ours may have grown already
        qemu.img("compare", "-f", "qed", "-F", "qed", mine, real)


def run_both(row: tuple[str, ...], twins: Twins) -> tuple[Path, str]:
    """Fails unless both say the same; answers our folder, and what was said."""
    which, options, *commands = row
    driver, file = FILES[which]
    below = f"file.driver=blkdebug,file.image.driver=file,file.image.filename={file}"
    words = ["--image-opts", f"driver={driver},{below},{options}"]
    for command in commands:
        words += ["-c", command]
    real, ours = (done(words, tool="qemu-io") for done in (twins.theirs, twins.ours))
    said = f"\n{words}\nreal: {real}\nours: {ours}"
    assert normal(ours.out) == normal(real.out), said
    assert normal(ours.err) == normal(real.err), said
    assert ours.code == real.code, said
    return twins.mine, said


@pytest.mark.parametrize("command", ["write -P 7 1k 64k", "write -z 1k 64k", "write -P 7 66k 1k"])
def test_margin_that_cannot_be_read_stays_as_it_is(
    command: str, originals: Path, tmp_path: Path
) -> None:
    """QEMU writes what is in its memory over it, and says nothing."""
    row = ("raw", "file.align=64k," + at(200, iotype="read"), command)
    mine, _ = run_both(row, Twins(tmp_path, originals))
    written = range(1 << 10, 65 << 10) if "1k 64k" in command else range(66 << 10, 67 << 10)
    before, after = ((folder / "base.raw").read_bytes() for folder in (originals, mine))
    assert before[: written.start] == after[: written.start]
    assert before[written.stop :] == after[written.stop :]
    assert set(after[written.start : written.stop]) == {0 if "-z" in command else 7}


def test_image_over_blocks_ends_with_its_clusters(originals: Path, tmp_path: Path) -> None:
    """QEMU writes the file's last block whole, and leaks the clusters in it."""
    row = ("qed", "file.align=1M", "write -q 128k 64k")
    mine, _ = run_both(row, Twins(tmp_path, originals))
    assert qemu.check(mine / "a.qed")["leaks"] == 0
    assert (mine / "a.qed").stat().st_size == 11 << 16


def test_discard_of_part_of_a_block_leaves_it(originals: Path, tmp_path: Path) -> None:
    """qemu-io divides by zero if it is not told an ``opt-discard``."""
    twins = Twins(tmp_path, originals)
    below = "file.driver=blkdebug,file.image.driver=file,file.image.filename=base.raw"
    words = ["-c", "discard -q 1k 8k", "-c", "read -qP 1 0 4k", "-c", "read -qP 0 4k 4k"]
    words += ["-c", "read -qP 1 8k 4k", "--image-opts", f"driver=raw,{below},file.align=4k"]
    assert twins.theirs(words, tool="qemu-io").code < 0
    assert twins.ours(words, tool="qemu-io") == Outcome(0, "", "")


def test_permissions_of_blkdebug_are_checked_and_lock_nothing(
    originals: Path, tmp_path: Path
) -> None:
    """QEMU takes the locks that go with them; who may open it is the same there."""
    below = "file.driver=blkdebug,file.image.driver=file,file.image.filename=base.raw"
    for word in ("write", "write-unchanged", "resize", "consistent-read", "nope"):
        for option in ("take-child-perms", "unshare-child-perms"):
            twins = Twins(tmp_path / f"{option}-{word}", originals)
            options = f"driver=raw,{below},file.{option}.0={word}"
            twins.run(["-r", "-c", "length", "--image-opts", options], tool="qemu-io")
