"""Child processes, and what they used: every side of a comparison runs in one of its own."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

__all__ = ["Ended", "Failed", "run", "run_together"]

ROOT = Path(__file__).parent.parent

_LOOK = 0.05  # seconds between looks at a child's memory
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


class Failed(Exception):
    """A command that did not succeed, and what it said."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that ran to its end.

    Attributes:
        stdout: what it said.
        seconds: from its start to its end.
        cpu: processor seconds, its own and the kernel's for it.
        memory: most bytes it was seen to have in memory; 0 if it was too quick.
    """

    stdout: str
    seconds: float
    cpu: float
    memory: int


def run(command: Sequence[str], stdin: str = "") -> Ended:
    """Run one command.

    Raises:
        Failed: it is not there, or says that it did not succeed.
    """
    return run_together([command], stdin)[0]


def run_together(commands: Sequence[Sequence[str]], stdin: str = "") -> list[Ended]:
    """Run commands beside each other, each with the same input; wait for all of them."""
    started = [_Running(command, stdin) for command in commands]
    ended = [each.wait() for each in started]
    return [each.checked(done) for each, done in zip(started, ended, strict=True)]


class _Running:
    """A child; its output goes to files, so that it never waits for us."""

    def __init__(self, command: Sequence[str], stdin: str) -> None:
        self._command = command
        self._out, self._err, given = (TemporaryFile("w+") for _ in range(3))
        given.write(stdin)
        given.seek(0)
        self._begin = time.perf_counter()
        with given:
            self._process = self._start(given)

    def _start(self, given: IO[str]) -> subprocess.Popen[str]:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        try:
            return subprocess.Popen(
                self._command,
                stdin=given,
                stdout=self._out,
                stderr=self._err,
                env=environment,
                text=True,
            )
        except OSError as error:
            self._close()
            raise Failed(f"{self._command[0]}: {error.strerror}") from error

    def wait(self) -> Ended:
        memory = self._watch()
        _, status, used = os.wait4(self._process.pid, 0)
        seconds = time.perf_counter() - self._begin
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._out.seek(0)
        return Ended(self._out.read(), seconds, used.ru_utime + used.ru_stime, memory)

    def _watch(self) -> int:
        """Wait for the end; answers the most memory seen.

        The kernel's own figure at the end (``ru_maxrss``) counts what this process, which the
        child was forked from, has in memory.
        """
        end, memory = os.pidfd_open(self._process.pid), 0
        try:
            while not select.select([end], [], [], _LOOK)[0]:
                memory = max(memory, _peak(self._process.pid))
        finally:
            os.close(end)
        return memory

    def checked(self, ended: Ended) -> Ended:
        """``ended``, if it ended well."""
        self._err.seek(0)
        complaint = self._err.read().strip()
        self._close()
        if self._process.returncode:
            raise Failed(
                f"{' '.join(self._command)[:200]}: {complaint or self._process.returncode}"
            )
        return ended

    def _close(self) -> None:
        self._out.close()
        self._err.close()


def _peak(pid: int) -> int:
    """Most bytes that a process has had in memory since it began its program."""
    match = _PEAK.search(Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) << 10 if match else 0
