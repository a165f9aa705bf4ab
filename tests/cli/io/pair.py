"""qemu-io and ours, each on its own copy of the same small images, made to say and leave the same.

A block is a text: a line of options and the file, then a line for each command.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import unified_diff
from pathlib import Path

import pytest

from tests.cli.differential import Outcome, Twins
from tests.helpers import qemu

__all__ = ["blocks", "build", "normal", "run_block", "run_stdin", "same"]

_TIMES = re.compile(r"[\d:.]+(?: sec)? \([\d.]+ \w+/sec and [\d.]+ ops/sec\)")
_MACHINE = re.compile(r"\b(\d+,1),\d+:\d\d:\d\d\.\d\d,[\d.]+,[\d.]+$", re.MULTILINE)
_NODE = re.compile(r"block node '#block\d+'")
_OVERLAY = re.compile(r"format name: qcow2\n(.*\n)vm state.*\n(Format specific.*\n(    .*\n)*)")


def build(folder: Path) -> None:
    """Make them:

    a.qed     1 MiB, empty; b.qed likewise with data at 64k and zeroes at 256k
    base.raw  1 MiB with data at 128k; ov.qed over it, with data at 64k and zeroes at 256k
    odd.raw   1000 bytes; e.qed none; pat has the bytes "abc", none has none
    dirty.qed as b.qed, not closed cleanly; junk.qed no image
    small.qed 16 MiB, with clusters of 4 KiB
    """
    for name in ("a.qed", "b.qed", "dirty.qed"):
        qemu.create(folder / name, 1 << 20)
    for name in ("b.qed", "dirty.qed"):
        qemu.io(folder / name, "write -P 1 64k 64k", "write -z 256k 64k")
    with (folder / "base.raw").open("wb") as file:
        file.truncate(1 << 20)
    qemu.io(folder / "base.raw", "write -P 3 128k 128k", options=("-f", "raw"))
    qemu.create(folder / "ov.qed", 1 << 20, backing=("base.raw", "raw"))
    qemu.io(folder / "ov.qed", "write -P 4 64k 64k", "write -z 256k 64k")
    qemu.create(folder / "e.qed", 0)
    qemu.create(folder / "small.qed", 16 << 20, cluster_size=4096, table_size=2)
    (folder / "odd.raw").write_bytes(b"x" * 1000)
    (folder / "pat").write_bytes(b"abc")
    (folder / "none").write_bytes(b"")
    (folder / "junk.qed").write_bytes(b"QED\0" + bytes(1020))
    with (folder / "dirty.qed").open("r+b") as file:
        file.seek(16)
        file.write(b"\2")


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """The blocks of a table; they are separated by empty lines."""
    parts = [part.split("\n") for part in text.strip("\n").split("\n\n")]
    return [(part[0], part[1:]) for part in parts]


def normal(text: str) -> str:
    """What was printed, without what differs from run to run and from format to format."""
    text = _MACHINE.sub(r"\1,TIME", _TIMES.sub("TIME", text))
    text = _OVERLAY.sub(r"format name: qed\n\1vm state offset: 0 bytes\n", text)
    return _NODE.sub("block node", text)


def run_block(twins: Twins, options: str, commands: Sequence[str]) -> Outcome:
    """The commands as ``-c`` options; fails unless both agree; ours is answered."""
    words = [word for command in commands for word in ("-c", command)]
    return same(twins, [*words, *options.split()], "")


def run_stdin(twins: Twins, options: str, script: str) -> Outcome:
    """The commands on stdin; likewise."""
    return same(twins, options.split(), script)


def same(twins: Twins, words: Sequence[str], stdin: str) -> Outcome:
    """Both with these arguments; fails unless they agree."""
    real = twins.theirs(words, tool="qemu-io", stdin=stdin)
    if "Assertion" in real.err:
        pytest.skip("qemu-io aborts: a write and the end of a drain met in its QED driver")
    ours = twins.ours(words, tool="qemu-io", stdin=stdin)
    said = f"\n{words} {stdin!r}"
    for name, mine, theirs in (("stdout", ours.out, real.out), ("stderr", ours.err, real.err)):
        if normal(mine) != normal(theirs):
            lines = unified_diff(normal(theirs).split("\n"), normal(mine).split("\n"), n=1)
            pytest.fail(f"{name}{said}\n" + "\n".join(lines), pytrace=False)
    assert ours.code == real.code, f"exit code{said}"
    assert_same_content(twins, said)
    return ours


def assert_same_content(twins: Twins, said: str) -> None:
    """Fail unless all files read the same, and ours have no fault.

    What an image has of its own need not be the same: where QEMU writes zeroes into clusters that
    hold data, we mark them.
    """
    names = sorted(path.name for path in twins.mine.iterdir())
    assert names == sorted(path.name for path in twins.real.iterdir()), said
    for name in names:
        mine, real = twins.mine / name, twins.real / name
        if name == "junk.qed" or mine.read_bytes() == real.read_bytes():
            continue
        assert name.endswith(".qed"), f"{name}{said}"
        compared = qemu.img("compare", "-f", "qed", "-F", "qed", mine, real, status=None)
        assert compared.returncode == 0, f"{name}: {compared.stdout}{compared.stderr}{said}"
        assert not qemu.check(mine)["corruptions"], f"{name}{said}"
