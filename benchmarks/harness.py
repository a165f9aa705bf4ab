"""Side by side, in turn: every round runs QEMU in each of its modes and then us, on like images.

A round's ratio is our rate over QEMU's best in that round; what is reported is the median of the
rounds and their spread. Machines are noisy: only ratios from one run are worth quoting.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import qemu
from benchmarks.cases import Case

__all__ = ["Result", "run_case", "warm_up"]


@dataclass(slots=True)
class Result:
    """What a case gave.

    Attributes:
        ours, theirs: requests per second, a round each; QEMU's are those of its best mode.
        modes: QEMU's mode that was best, a round each.
        bare: the same stream as system calls in a loop, requests per second, a round each.
    """

    case: Case
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios)

    @property
    def share(self) -> float:
        """Our rate over that of the bare system calls, the median of the rounds."""
        return statistics.median(
            ours / bare for ours, bare in zip(self.ours, self.bare, strict=True)
        )

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.case.name,
            "what": self.case.what,
            "bar": self.case.bar,
            "ratio": self.ratio,
            "ratios": self.ratios,
            "ours_per_second": self.ours,
            "qemu_per_second": self.theirs,
            "qemu_modes": self.modes,
            "bare_per_second": self.bare,
            "share_of_bare": self.share,
            "workload": self.case.work.as_dict(),
            "command": f"python -m benchmarks {self.case.name}",
            "qemu_command": " ".join(self.case.work.qemu_command("IMAGE", self.modes[-1])),
        }


def warm_up(directory: Path, size: int = 6 << 30) -> None:
    """Let the host touch its memory once: the first use of a page is slow in a virtual machine."""
    path = directory / "warm-up"
    chunk = bytes(1 << 20)
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(chunk)
    path.unlink()


def run_case(case: Case, rounds: int, directory: Path, loop: str = "uvloop") -> Result:
    """All rounds of one case, after one that does not count."""
    result = Result(case)
    with _image(case, directory) as standing:
        for round_number in range(rounds + 1):
            theirs, mode = _best_of_qemu(case, standing, directory)
            ours = _ours(case, standing, directory, loop)
            bare = _bare(case, directory)
            if round_number:
                result.bare.append(bare)
                result.ours.append(ours)
                result.theirs.append(theirs)
                result.modes.append(mode)
    return result


def _best_of_qemu(case: Case, standing: Path, directory: Path) -> tuple[float, str]:
    rates = {}
    for mode in qemu.AIO_MODES:
        with _for_one_run(case, standing, directory) as image:
            seconds = qemu.bench(str(image), case.work, mode)
        if seconds:
            rates[mode] = case.work.count / seconds
    if not rates:
        raise SystemExit(f"{case.name}: qemu-img bench runs in no mode here")
    mode = max(rates, key=lambda name: rates[name])
    return rates[mode], mode


def _ours(case: Case, standing: Path, directory: Path, loop: str) -> float:
    with _for_one_run(case, standing, directory) as image:
        wish = json.dumps(case.work.as_dict())
        command = [sys.executable, "-m", "benchmarks.ours", str(image), wish, loop]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return case.work.count / float(json.loads(done.stdout)["seconds"])


def _bare(case: Case, directory: Path) -> float:
    """On a raw file with the same ranges filled."""
    path = directory / f"{case.name}.raw"
    if case.fresh or not path.exists():
        path.unlink(missing_ok=True)
        with path.open("wb", buffering=0) as file:
            for offset, length in case.allocated:
                file.seek(offset)
                for _ in range(length // qemu.FILL_BYTES):
                    file.write(bytes(qemu.FILL_BYTES))
    wish = json.dumps(case.work.as_dict())
    command = [sys.executable, "-m", "benchmarks.bare", str(path), wish]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return case.work.count / float(json.loads(done.stdout)["seconds"])


@contextmanager
def _for_one_run(case: Case, standing: Path, directory: Path) -> Iterator[Path]:
    if not case.fresh:
        yield standing
        return
    with _image(case, directory) as image:
        yield image


@contextmanager
def _image(case: Case, directory: Path) -> Iterator[Path]:
    """An image for the case, written back so that no old dirty pages weigh on a run."""
    handle, name = tempfile.mkstemp(suffix=".qed", dir=directory)
    os.close(handle)
    path = Path(name)
    try:
        case.prepare(name)
        subprocess.run(["sync", "-f", name], check=True)
        yield path
    finally:
        path.unlink()
