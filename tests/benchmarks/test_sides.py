"""Every side makes the requests that it should; those of other programs where these are."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import fio, process, qemu
from benchmarks.cases import CASES
from benchmarks.images import Recipe, Shelf
from benchmarks.process import Failed
from benchmarks.sides import AIOFILES, CALLS, COPIES, FIO_PSYNC, OTHER_PYTHON, QEMU, QEMU_IO, ours
from benchmarks.workload import Workload

MIB = 1 << 20
READS = Workload(count=64, block=4096, step=17 * 4096, size=MIB, depth=4)
FULL = Recipe(MIB, ((0, MIB),))

needs_qemu = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")
needs_fio = pytest.mark.skipif(not shutil.which("fio"), reason="needs fio")


@needs_qemu
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"view": True},
        {"write": True},
        {"write": True, "zero": True, "block": 65536, "step": 65536},
        {"write": True, "read_percent": 70},
        {"write": True, "flush_every": 8},
        {"cache": "none"},
    ],
)
def test_ours_each_kind_of_stream_runs(tmp_path: Path, more: dict[str, object]) -> None:
    (image,) = Shelf(tmp_path).standing(FULL, "qed")
    sample = ours("asyncio").run([image], replace(READS, **more))  # type: ignore[arg-type]
    assert sample.rate > 0
    assert sample.cpu > 0


@needs_qemu
def test_ours_writes_change_the_image_where_the_stream_goes(tmp_path: Path) -> None:
    (image,) = Shelf(tmp_path).standing(FULL, "qed")
    ours().run([image], replace(READS, count=1, start=8192, write=True))
    raw = tmp_path / "out.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    data = raw.read_bytes()
    assert data[8192:12288] == bytes(4096)
    assert data[:8192] + data[12288:] == b"\x5a" * (MIB - 4096)


@needs_qemu
def test_ours_several_images_share_the_requests(tmp_path: Path) -> None:
    images = Shelf(tmp_path).standing(FULL, "qed", 3)
    assert len(set(images)) == 3
    assert ours("asyncio").run(images, READS).rate > 0


@pytest.mark.parametrize(
    "side", [CALLS, COPIES, AIOFILES, *OTHER_PYTHON], ids=lambda side: side.name
)
def test_raw_side_runs(tmp_path: Path, side: object) -> None:
    files = Shelf(tmp_path).standing(FULL, "raw")
    assert side.run(files, READS).rate > 0  # type: ignore[attr-defined]


def test_calls_writes_go_where_the_stream_goes(tmp_path: Path) -> None:
    (file,) = Shelf(tmp_path).standing(Recipe(MIB), "raw")
    Path(file).write_bytes(b"\x5a" * MIB)
    CALLS.run([file], replace(READS, count=1, start=4096, write=True))
    data = Path(file).read_bytes()
    assert data == b"\x5a" * 4096 + bytes(4096) + b"\x5a" * (MIB - 8192)


@needs_qemu
def test_qemu_img_runs_and_tells_its_time(tmp_path: Path) -> None:
    files = Shelf(tmp_path).standing(FULL, "qed")
    sample = QEMU[0].run(files, replace(READS, count=2000))
    assert sample.rate > 0


@needs_qemu
def test_qemu_img_stream_that_it_refuses_fails(tmp_path: Path) -> None:
    files = Shelf(tmp_path).standing(FULL, "qed")
    with pytest.raises(Failed):
        QEMU[0].run(files, replace(READS, write=True, depth=8, flush_every=4))


@needs_qemu
def test_qemu_io_mixed_and_zero_streams_run(tmp_path: Path) -> None:
    files = Shelf(tmp_path).standing(FULL, "qed")
    assert QEMU_IO[0].run(files, replace(READS, write=True, read_percent=70)).rate > 0
    assert QEMU_IO[0].run(files, replace(READS, write=True, zero=True)).rate > 0


def test_qemu_io_script_has_a_line_for_each_request_and_waits_at_the_end() -> None:
    mixed = replace(READS, count=10, write=True, read_percent=70)
    lines = qemu.io_script(mixed).splitlines()
    assert [line.split()[0] for line in lines].count("aio_read") == 7
    assert lines[1] == f"aio_{'read' if mixed.reads(1) else 'write'} -q {17 * 4096} 4096"
    assert lines[-1] == "aio_flush"


@needs_fio
def test_fio_runs_and_tells_rate_and_latencies(tmp_path: Path) -> None:
    (file,) = Shelf(tmp_path).standing(FULL, "raw")
    work = replace(READS, count=1000)
    assert FIO_PSYNC.run([file], work).rate > 0
    told = fio.latencies(process.run(fio.command(file, work, "psync")).stdout)
    assert [float(percent) for percent in told] == list(fio.PERCENTS)
    assert sorted(told.values()) == list(told.values())


def test_cases_have_names_of_their_own_and_show_their_commands() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for case in CASES:
        for side in case.sides:
            assert side.shown(case.work).split()[0] in {"python", "qemu-img", "qemu-io", "fio"}


def test_cases_that_write_have_an_image_to_themselves() -> None:
    for case in CASES:
        if case.work.write and not case.fresh:
            assert case.image.owner == case.name
