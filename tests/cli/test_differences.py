"""Rows of docs/differences.md, the command line: what the real tool does, and what ours does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.cli.differential import Outcome, Twins
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2


def both(
    twins: Twins, words: str | Sequence[str], tool: str = "qemu-img", stdin: str = ""
) -> list[Outcome]:
    """The real tool's answer, then ours."""
    return [run(words, tool=tool, stdin=stdin) for run in (twins.theirs, twins.ours)]


def image(*commands: str, size: str = "4M") -> Callable[[Path], None]:
    """Builds ``x.qed``, and does the commands to it."""

    def build(folder: Path) -> None:
        qemu.img("create", "-q", "-f", "qed", folder / "x.qed", size)
        qemu.io(folder / "x.qed", *commands)

    return build


def test_object_secret_is_refused(tmp_path: Path) -> None:
    words = "create -q --object secret,id=s,data=x -f qed x.qed 1M"
    real, ours = both(Twins(tmp_path), words)
    assert (real.code, ours.code) == (0, 1)
    assert not (tmp_path / "ours" / "x.qed").exists()


def test_create_of_table_size_1_is_refused(tmp_path: Path) -> None:
    twins = Twins(tmp_path)
    real, ours = both(twins, "create -q -f qed -o table_size=1 x.qed 8M")
    assert (real.code, ours.code) == (0, 1)
    assert "table_size" in ours.err
    assert "table offset is invalid" in twins.theirs("info -f qed x.qed").err


def test_check_counts_no_leak_that_is_none(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        qemu.create(folder / "x.qed", 32 << 20, cluster_size=4096, table_size=2)
        qemu.io(folder / "x.qed", "write -P 8 0 17M")

    real, ours = both(Twins(tmp_path, build), "check x.qed")
    assert (real.code, ours.code) == (3, 0)
    assert "1 leaked clusters were found" in real.out
    assert ours.out.startswith("No errors were found on the image.\n")


def test_map_of_4_gib_in_one_table_is_printed(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        qemu.create(folder / "x.qed", (4 << 30) + (1 << 20), cluster_size=1 << 20)
        qemu.io(folder / "x.qed", "write 0 1M")

    real, ours = both(Twins(tmp_path, build), "map --output=json x.qed")
    assert real.code < 0
    assert ours.code == 0
    assert '"start": 1048576, "length": 4294967296' in ours.out


def test_io_write_of_zeroes_in_the_background_took_no_hours(tmp_path: Path) -> None:
    twins = Twins(tmp_path, image())
    words = ["-c", "aio_write -z 0 64k", "-c", "aio_flush", "x.qed"]
    ours = twins.ours(words, tool="qemu-io")
    assert ours.code == 0
    assert "64 KiB, 1 ops; 00.0" in ours.out


def test_io_line_of_any_length_is_a_command(tmp_path: Path) -> None:
    line = "read " + " " * 1100 + "0 512\n"
    real, ours = both(Twins(tmp_path, image()), "x.qed", "qemu-io", line)
    assert (real.code, ours.code) == (1, 0)
    assert "read 512/512 bytes at offset 0" in ours.out


def test_io_failed_flush_at_the_end_is_told(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        image("write 0 64k")(folder)  # so that the next needs no flush between tables
        rule = '[inject-error]\nevent = "none"\niotype = "flush"\nerrno = "5"\n'
        (folder / "rule").write_text(rule)

    words = ["-t", "writeback", "-c", "write 0 64k", "blkdebug:rule:x.qed"]
    real, ours = both(Twins(tmp_path, build), words, "qemu-io")
    assert (real.code, ours.code) == (0, 1)
    assert "Could not close" in ours.err


def test_io_temporary_overlay_is_a_qed_image(tmp_path: Path) -> None:
    real, ours = both(Twins(tmp_path, image()), "-s -c info x.qed", "qemu-io")
    assert "format name: qcow2" in real.out
    assert "format name: qed" in ours.out


@pytest.mark.parametrize("words", ["-d 0 x.qed", "empty.qed"])
def test_bench_that_never_ends_or_divides_by_zero_is_refused(words: str, tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        image()(folder)
        qemu.create(folder / "empty.qed", 0)

    ours = Twins(tmp_path, build).ours(f"bench {words}")
    assert ours.code == 1
    assert ours.err.count("\n") == 1


@pytest.mark.parametrize("side", ["real", "ours"])
def test_raw_file_that_another_writes_is_refused(side: str, tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        qemu.img("create", "-q", folder / "x.raw", "1M")

    twins = Twins(tmp_path, build)
    folder, run = {"real": (twins.real, twins.theirs), "ours": (twins.mine, twins.ours)}[side]
    with qemu.hold(folder / "x.raw", "-f", "raw"):
        assert run("map -f raw x.raw").code == (1 if side == "ours" else 0)
    assert run("map -f raw x.raw").code == 0
