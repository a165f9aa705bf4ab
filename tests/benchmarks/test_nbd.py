"""The NBD cases' rows: who is the rival, and who stands beside."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.nbd import NBD_CASES, NbdResult


def result(*servers: str) -> NbdResult:
    found = NbdResult(NBD_CASES[0])
    for number, server in enumerate(servers, 1):
        found.add(server, 10.0 * number, 1.0)
    return found


def test_row_rival_is_the_server_as_it_runs_unless_told() -> None:
    row = result("ours", "threads", "io_uring").row()
    assert [(side.name, side.role) for side in row.sides] == [
        ("qedasync serve", "ours"),
        ("qemu-nbd", "rival"),
        ("qemu-nbd --aio=io_uring", "other"),
    ]
    assert row.ratio == 2.0
    assert row.ratio_beside(row.sides[2]) == 3.0
    assert row.sides[0].cpu == [1.0 / NBD_CASES[0].count]


def test_row_case_without_bar_promises_nothing() -> None:
    found = result("ours", "threads")
    found.case = next(case for case in NBD_CASES if not case.bar)
    assert found.row().bar is None


def test_row_nbdkit_is_the_limit_and_no_rival() -> None:
    row = result("ours", "threads", "nbdkit").row()
    limit = row.limit
    assert limit is not None
    assert (limit.name, limit.role) == ("nbdkit, raw", "limit")
    assert (row.ratio, row.share) == (2.0, 3.0)
    assert row.best_rival is row.sides[1]


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")
def test_prepare_raw_file_has_the_bytes_of_the_image(tmp_path: Path) -> None:
    case = replace(NBD_CASES[0], size=1 << 20, filled=128 << 10, rehearsed=None)
    case.prepare(tmp_path / "disk.qed")
    case.prepare(tmp_path / "disk.raw", "raw")
    assert (tmp_path / "disk.raw").read_bytes() == b"\x5a" * (128 << 10) + bytes(896 << 10)
    compare = ["qemu-img", "compare", "-f", "qed", "-F", "raw", "disk.qed", "disk.raw"]
    subprocess.run(compare, cwd=tmp_path, check=True)
