"""Jobs on whole images, beside qemu-img's: convert both ways, compare, map, check.

A round runs qemu-img, the job in a Python process that is up (from open to close), and the command
``qedasync``, one after the other on the same files. qemu-img's time is that of its process, so the
first ratio is for a program that has Python running, the second one for a shell.

``python -m benchmarks.jobs NAME FOLDER LOOP`` is one run of a job; it prints the seconds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import qedasync
from benchmarks.ours import run_on
from benchmarks.results import Measured, Row

__all__ = ["JOBS", "Job", "prepare", "run_job"]

MIB, GIB = 1 << 20, 1 << 30

_WHY = "In a program that runs, from open to close, and as a command, with its start."

_DISK_BYTES = 2 * GIB
_FILES_BYTES = 1700 * MIB  # what an ext4 file system of that size has room for
_TREE = Path("/usr")

_LEAKS = 3  # qemu-img check's status: it sees some in any image of so many clusters
_N_CLUSTERS = 1 << 20
_CLUSTER = 4096
_TABLE_SIZE = 16


@dataclass(frozen=True, slots=True)
class Job:
    """One claim against qemu-img.

    Attributes:
        name: for the command line and the report.
        what: one line for the table.
        bar: the ratio (qemu-img's time over ours) that we promise.
        words: qemu-img's command, and ours; the names are files of the folder.
        run: the same through the library; called in the folder.
        makes: the file that it writes, or "".
    """

    name: str
    what: str
    bar: float
    words: tuple[str, ...]
    run: Callable[[], Awaitable[object]]
    makes: str = ""


async def _to_qed() -> None:
    await qedasync.convert("disk.raw", "out.qed", durable=False)


async def _to_raw() -> None:
    await qedasync.convert("disk.qed", "out.raw", format="raw", durable=False)


async def _compare() -> None:
    if not (await qedasync.compare("disk.raw", "disk.qed")).identical:
        raise SystemExit("the images differ")


async def _map(name: str) -> None:
    async with qedasync.open(name) as image:
        async for _ in image.extents():
            pass


async def _check(name: str) -> None:
    async with qedasync.open(name) as image:
        if not (await image.check()).ok:
            raise SystemExit(f"{name} is not sound")


JOBS = (
    Job(
        "convert-raw-qed",
        "Convert a raw disk of 2 GiB, ext4 with the files of a system, into an image",
        1.5,
        ("convert", "-f", "raw", "-O", "qed", "disk.raw", "out.qed"),
        _to_qed,
        "out.qed",
    ),
    Job(
        "convert-qed-raw",
        "Convert that image into a raw disk",
        1.5,
        ("convert", "-f", "qed", "-O", "raw", "disk.qed", "out.raw"),
        _to_raw,
        "out.raw",
    ),
    Job(
        "compare",
        "Compare the raw disk with the image",
        1.0,
        ("compare", "-f", "raw", "-F", "qed", "disk.raw", "disk.qed"),
        _compare,
    ),
    Job(
        "map",
        "Map of 1M clusters that guests have written here and there: 1M runs",
        1.0,
        ("map", "-f", "qed", "scattered.qed"),
        lambda: _map("scattered.qed"),
    ),
    Job(
        "map-one-run",
        "Map of 1M clusters written from end to end, between tables",
        1.0,
        ("map", "-f", "qed", "ordered.qed"),
        lambda: _map("ordered.qed"),
    ),
    Job(
        "check",
        "Check of 1M clusters that guests have written here and there",
        1.0,
        ("check", "-f", "qed", "scattered.qed"),
        lambda: _check("scattered.qed"),
    ),
    Job(
        "check-one-run",
        "Check of 1M clusters written from end to end",
        1.0,
        ("check", "-f", "qed", "ordered.qed"),
        lambda: _check("ordered.qed"),
    ),
)


# -------------------------------------------------------------------------- runs


def run_job(job: Job, rounds: int, folder: Path, loop: str = "uvloop") -> Row:
    """All rounds of one job, after one that does not count. See :func:`prepare`."""
    library = [sys.executable, "-m", "benchmarks.jobs", job.name, str(folder), loop]
    command = [sys.executable, "-m", "qedasync", *job.words]
    ours = Measured("qedasync", "ours", f"python -m benchmarks.jobs {job.name} FOLDER {loop}")
    shell = Measured("the command qedasync", "ours", " ".join(["qedasync", *job.words]))
    theirs = Measured("qemu-img", "rival", " ".join(["qemu-img", *job.words]))
    for round_number in range(rounds + 1):
        seconds, _ = _timed(["qemu-img", *job.words], job, folder)
        _, said = _timed(library, job, Path.cwd(), folder)
        shell_seconds, _ = _timed(command, job, folder)
        if round_number:
            theirs.rates.append(1 / seconds)
            ours.rates.append(1 / float(json.loads(said)["seconds"]))
            shell.rates.append(1 / shell_seconds)
    return Row(job.name, "Whole images", job.what, _WHY, [ours, shell, theirs], bar=job.bar)


def _timed(
    command: list[str], job: Job, where: Path, folder: Path | None = None
) -> tuple[float, str]:
    """Seconds of a process, and what it said; what it made is removed."""
    here = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), here])}
    subprocess.run(["sync", "-f", str(folder or where)], check=True)
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode not in (0, _LEAKS):
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    if job.makes:
        (folder or where).joinpath(job.makes).unlink()
    return seconds, done.stdout


# ------------------------------------------------------------------------ images


def prepare(jobs: list[Job], folder: Path, tree: Path = _TREE) -> None:
    """Make the images that the jobs need, in the page cache, and written back."""
    words = {word for job in jobs for word in job.words}
    if words & {"disk.raw", "disk.qed"}:
        _make_disk(folder, tree)
    for name, scattered in (("scattered.qed", True), ("ordered.qed", False)):
        if name in words:
            _make_full(folder / name, scattered)
    subprocess.run(["sync", "-f", str(folder)], check=True)
    for path in folder.glob("disk.*"):
        with path.open("rb", buffering=0) as file:
            while file.read(MIB):
                pass


def _make_disk(folder: Path, tree: Path) -> None:
    """disk.raw, an ext4 file system of real files, and disk.qed, which qemu-img makes of it."""
    stage = folder / "stage"
    size = 0
    for source in _files(tree):
        if size >= _FILES_BYTES:
            break
        target = stage / source.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        size += source.stat().st_size
        _link_or_copy(source, target)
    disk = folder / "disk.raw"
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    mkfs = shutil.which("mkfs.ext4", path=path) or "mkfs.ext4"
    command = [mkfs, "-q", "-F", "-d", str(stage), str(disk), f"{_DISK_BYTES >> 10}k"]
    subprocess.run(command, check=True)
    shutil.rmtree(stage)
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qed", "disk.raw", "disk.qed"]
    subprocess.run(command, check=True, cwd=folder)


def _files(tree: Path) -> Iterator[Path]:
    """The ordinary files of a tree that can be read, in the same order every time."""
    for folder, folders, names in os.walk(tree):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                yield path


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _make_full(path: Path, scattered: bool) -> None:
    """An image of 1M clusters, all allocated, each table behind the clusters it maps.

    By hand: only the tables are written, what the clusters hold does not matter here.
    """
    entries, table = _TABLE_SIZE * _CLUSTER // 8, _TABLE_SIZE * _CLUSTER
    n_tables = _N_CLUSTERS // entries
    header = (0x00444551, _CLUSTER, _TABLE_SIZE, 1, 0, 0, 0, _CLUSTER, _N_CLUSTERS * _CLUSTER, 0, 0)
    first = _CLUSTER + table
    offsets: list[int] = []
    tables: list[int] = []
    for number in range(n_tables):
        start = first + number * (entries * _CLUSTER + table)
        offsets += range(start, start + entries * _CLUSTER, _CLUSTER)
        tables.append(start + entries * _CLUSTER)
    end = tables[-1] + table
    if scattered:
        random.Random(1).shuffle(offsets)
    with path.open("wb") as file:
        file.write(struct.pack("<IIIIQQQQQII", *header))
        file.seek(_CLUSTER)
        file.write(_little(tables))
        for number, offset in enumerate(tables):
            file.seek(offset)
            file.write(_little(offsets[number * entries : (number + 1) * entries]))
        file.truncate(end)


def _little(values: list[int]) -> bytes:
    packed = array("Q", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


async def _measure(job: Job) -> float:
    for name in ("open", "open_raw", "create", "convert", "compare", "CheckResult"):
        getattr(qedasync, name)  # loaded at first use, and once in a program
    begin = time.perf_counter()
    await job.run()
    return time.perf_counter() - begin


if __name__ == "__main__":
    name, where, chosen = sys.argv[1:]
    os.chdir(where)
    wanted = next(job for job in JOBS if job.name == name)
    print(json.dumps({"seconds": run_on(chosen, _measure(wanted))}))
