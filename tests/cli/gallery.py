"""Images of every kind for the command line to meet, made by the real tools."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from tests.helpers import qemu

__all__ = ["build", "patch"]

L2 = 393216
"""Where the L2 table of ``a.qed`` lies: after the first data cluster."""


def build(folder: Path) -> None:
    """Make them:

    a.qed       10 MiB: data at 0 and at 1M, zeroes at 2M
    base.raw    1 MiB: data at 128k; r.raw has 1000 bytes, r1.raw one, e.raw and e.qed none
    ov.qed      2 MiB over base.raw: data at 64k, zeroes at 192k; ov2.qed 4 MiB over it
    sub/ov.qed  over ../a.qed; sub/in.qed over next.qed beside it, which is not there
    nope.qed    over a file that is not there
    leak.qed    two clusters that nothing uses; bad.qed has these and an entry that points nowhere
    dbl.qed     a cluster that two entries name; worse.qed has all of this
    dirty.qed   marked as not closed cleanly
    junk.qed    a header that is none; short.qed a file that is too short for its L1
    """
    (folder / "sub").mkdir()
    qemu.create(folder / "a.qed", 10 << 20)
    qemu.io(folder / "a.qed", "write -P 1 0 64k", "write -P 2 1M 100k", "write -z 2M 64k")
    for name, size in (("base.raw", 1 << 20), ("r.raw", 1000), ("r1.raw", 0), ("e.raw", 0)):
        with (folder / name).open("wb") as file:
            file.truncate(size)
    (folder / "r1.raw").write_bytes(b"x")
    qemu.io(folder / "base.raw", "write -P 3 128k 128k", options=("-f", "raw"))
    qemu.create(folder / "e.qed", 0)
    qemu.create(folder / "ov.qed", 2 << 20, backing=("base.raw", "raw"))
    qemu.io(folder / "ov.qed", "write -P 4 64k 64k", "write -z 192k 64k")
    qemu.create(folder / "ov2.qed", 4 << 20, backing=("ov.qed", "qed"))
    qemu.create(folder / "sub" / "ov.qed", 1 << 20, backing=("../a.qed", "qed"))
    for name, below in (("sub/in.qed", "next.qed"), ("nope.qed", "nothing.raw")):
        options = ("-q", "-u", "-f", "qed", "-b", below, "-F", "raw")
        qemu.img("create", *options, folder / name, "1M")
    _build_broken(folder)


def _build_broken(folder: Path) -> None:
    a = folder / "a.qed"
    for name in ("leak", "bad", "dbl", "worse", "dirty", "junk", "short"):
        shutil.copy(a, folder / f"{name}.qed")
    for name in ("leak", "bad", "worse"):
        with (folder / f"{name}.qed").open("r+b") as file:
            file.truncate(a.stat().st_size + 2 * 65536)
    for name in ("bad", "worse"):
        patch(folder / f"{name}.qed", L2 + 2 * 8, 0xFFFFFF)
    for name in ("dbl", "worse"):
        patch(folder / f"{name}.qed", L2 + 8, 327680)
    patch(folder / "dirty.qed", 16, 2)
    patch(folder / "junk.qed", 4, 12345)
    with (folder / "short.qed").open("r+b") as file:
        file.truncate(100000)


def patch(path: Path, offset: int, value: int) -> None:
    """Overwrite eight bytes of a file, little-endian."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack("<Q", value))
