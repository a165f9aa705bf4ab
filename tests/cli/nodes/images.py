"""Small images for names of every kind to lead to, made by the real tools."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import qemu

__all__ = ["build"]

CONFIGS = {
    "rules.conf": '[inject-error]\nevent = "read_aio"\nerrno = "28"\n',
    "all.conf": """
# comments, and groups of both kinds
[set-state]
event = "read_aio"
state = "1"
new_state = "2"

[inject-error "name"]
event = "l2_load"
state = "2"
once = "on"
immediately = "off"
sector = "3"
iotype = "read"
""",
    "event.conf": '[inject-error]\nevent = "bogus"\n',
    "group.conf": '[nope]\nevent = "read_aio"\n',
    "junk.conf": "xx\n",
    "tight.conf": '[inject-error]\nevent="l2_load"\n',
    "key.conf": '[inject-error]\nevent = "l2_load"\nfoo = "1"\n',
    "number.conf": '[inject-error]\nevent = "l2_load"\nerrno = "x"\n',
    "noevent.conf": '[inject-error]\nerrno = "5"\n',
    "id.conf": '[inject-error "a b"]\nevent = "l2_load"\n',
    "twice.conf": '[inject-error "a"]\nevent = "l2_load"\n' * 2,
    "empty.conf": "",
}


def build(folder: Path) -> None:
    """Make them:

    a.qed     1 MiB: data at 0; ov.qed over it, with data at 64k; ovr.qed over base.raw
    base.raw  1 MiB: data at 0; small.raw has 4 bytes
    inner.qed, outer.qed  empty, 2 and 4 MiB
    sub/up.qed            over ../base.raw; sub/gone.qed over a file that is not there
    url.qed, foo.qed      over what is no path; isdir.qed over a directory, bad.qed over junk.qed
    *.conf    rules for blkdebug
    """
    (folder / "sub").mkdir()
    (folder / "dir").mkdir()
    with (folder / "base.raw").open("wb") as file:
        file.truncate(1 << 20)
    qemu.io(folder / "base.raw", "write -P 1 0 64k", options=("-f", "raw"))
    qemu.create(folder / "a.qed", 1 << 20)
    qemu.io(folder / "a.qed", "write -P 2 0 64k")
    qemu.create(folder / "ov.qed", 1 << 20, backing=("a.qed", "qed"))
    qemu.io(folder / "ov.qed", "write -P 3 64k 64k")
    qemu.create(folder / "ovr.qed", 1 << 20, backing=("base.raw", "raw"))
    qemu.create(folder / "inner.qed", 2 << 20)
    qemu.create(folder / "outer.qed", 4 << 20)
    (folder / "small.raw").write_bytes(b"junk")
    (folder / "junk.qed").write_bytes((b"QED\0" + b"junk" * 20).ljust(1 << 20, b"\0"))
    for name, below in {
        "sub/up.qed": "../base.raw",
        "sub/gone.qed": "nope.raw",
        "isdir.qed": "dir",
        "bad.qed": "junk.qed",
        "url.qed": "nbd://127.0.0.1:1/x",
        "foo.qed": "foo:bar",
    }.items():
        fmt = "qed" if below.endswith(".qed") else "raw"
        options = ("-q", "-u", "-f", "qed", "-b", below, "-F", fmt)
        qemu.img("create", *options, folder / name, "1M")
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
