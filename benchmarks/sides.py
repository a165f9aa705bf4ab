"""The sides of a comparison: how each is run, on what file, and what it says of its time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from benchmarks import fio, handmade, qemu
from benchmarks.process import Ended, run_together
from benchmarks.workload import Workload

__all__ = [
    "AIOFILES",
    "CALLS",
    "COPIES",
    "FIO_PSYNC",
    "FIO_URING",
    "OTHER_PYTHON",
    "QEMU",
    "QEMU_DIRECT",
    "QEMU_IO",
    "Role",
    "Sample",
    "Side",
    "ours",
]

Role = Literal["ours", "rival", "limit", "other"]
"""Ours is compared with the best rival, and set against a limit; others are shown beside."""

Took = Callable[[Ended, Workload], dict[str, float]]
"""``seconds`` that the requests took, and ``cpu`` seconds if the side can tell them apart."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one side.

    Attributes:
        rate: requests per second.
        cpu: processor seconds per request.
        memory: most bytes the process had in memory; of several processes the sum.
    """

    rate: float
    cpu: float
    memory: int


@dataclass(frozen=True, slots=True)
class Side:
    """Who makes the requests.

    Attributes:
        name: for the report.
        file: what it works on: an image, or a raw file that holds the same bytes.
        commands: of a run on some files; several are run beside each other.
        took: reads what a process said.
        script: what the processes are told on their input.
    """

    name: str
    role: Role
    file: Literal["qed", "raw"]
    commands: Callable[[Sequence[str], Workload], list[list[str]]]
    took: Took
    script: Callable[[Workload], str] = lambda work: ""

    def run(self, files: Sequence[str], work: Workload) -> Sample:
        """Once.

        Raises:
            Failed: it cannot do it, or not here.
        """
        all_ended = run_together(self.commands(files, work), self.script(work))
        took = [self.took(ended, work) for ended in all_ended]
        cpu = sum(each.get("cpu", ended.cpu) for each, ended in zip(took, all_ended, strict=True))
        return Sample(
            rate=work.count / max(each["seconds"] for each in took),
            cpu=cpu / work.count,
            memory=sum(ended.memory for ended in all_ended),
        )

    def shown(self, work: Workload) -> str:
        """The command for people."""
        file = "IMAGE" if self.file == "qed" else "FILE"
        (words,) = self.commands([file], work)
        words = [f"'{word}'" if word.startswith("{") else word for word in words]
        script = " < COMMANDS" if self.script(work) else ""
        return " ".join(words).replace(sys.executable, "python") + script


def ours(loop: str = "uvloop", python: str = sys.executable, name: str = "qedasync") -> Side:
    """qedasync on a loop of that kind, in that interpreter."""

    def commands(files: Sequence[str], work: Workload) -> list[list[str]]:
        first, *more = files
        wish = json.dumps(work.as_dict())
        return [[python, "-m", "benchmarks.ours", first, wish, loop, *more]]

    return Side(name, "ours", "qed", commands, _as_json)


def _as_json(ended: Ended, work: Workload) -> dict[str, float]:
    took: dict[str, float] = json.loads(ended.stdout)
    return took


def _qemu_img(aio: str) -> Side:
    def commands(files: Sequence[str], work: Workload) -> list[list[str]]:
        share = work.shared(len(files))
        return [qemu.bench_command(file, share, aio) for file in files]

    def took(ended: Ended, work: Workload) -> dict[str, float]:
        return {"seconds": qemu.bench_seconds(ended.stdout)}

    return Side(f"qemu-img bench -i {aio}", "rival", "qed", commands, took)


def _qemu_io(aio: str) -> Side:
    def commands(files: Sequence[str], work: Workload) -> list[list[str]]:
        return [qemu.io_command(files[0], work, aio)]

    def took(ended: Ended, work: Workload) -> dict[str, float]:
        return {"seconds": ended.seconds}

    return Side(f"qemu-io -i {aio}", "rival", "qed", commands, took, qemu.io_script)


def _child(module: str, way: str, name: str, role: Role) -> Side:
    """A Python program of ours on a raw file."""

    def commands(files: Sequence[str], work: Workload) -> list[list[str]]:
        wish = json.dumps(work.as_dict())
        return [[sys.executable, "-m", f"benchmarks.{module}", way, files[0], wish]]

    return Side(name, role, "raw", commands, _as_json)


def _fio(engine: str) -> Side:
    def commands(files: Sequence[str], work: Workload) -> list[list[str]]:
        return [fio.command(files[0], work, engine)]

    def took(ended: Ended, work: Workload) -> dict[str, float]:
        return fio.took(ended.stdout, work)

    return Side(f"fio {engine}", "limit", "raw", commands, took)


QEMU = tuple(map(_qemu_img, ("threads", "io_uring")))
"""``qemu-img bench`` in each way that a buffered file allows."""

QEMU_DIRECT = tuple(map(_qemu_img, ("threads", "native", "io_uring")))
"""The same past the page cache."""

QEMU_IO = tuple(map(_qemu_io, ("threads", "io_uring")))
"""``qemu-io``, for what ``qemu-img bench`` cannot do. Its start counts: some 10 ms of a second."""

_rival = partial(_child, "handmade", role="rival")
AIOFILES = _rival("aiofiles", name="aiofiles, seek and read")
OTHER_PYTHON = (
    _rival("executor", name="run_in_executor(os.pread)"),
    *([_rival("aiofile", name="aiofile")] if handmade.is_there("aiofile") else []),
)

CALLS = _child("bare", "calls", "bare system calls", "limit")
COPIES = _child("bare", "copies", "copies in memory", "limit")
FIO_PSYNC = _fio("psync")
FIO_URING = _fio("io_uring")
