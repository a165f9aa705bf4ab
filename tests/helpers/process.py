"""Another process that a test talks to through pipes, and may kill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parent.parent.parent


class Ended(Exception):
    """The process ended instead of answering; the text is what it had said."""


class Talk:
    """A process whose answers end with a fixed text. Ends with its ``with`` block at the latest.

    Args:
        command: what to run.
        prompt: what each answer ends with, the first one too, before anything was asked.
        cwd: where to run it.
    """

    def __init__(self, command: Sequence[str | Path], prompt: bytes, cwd: Path = ROOT) -> None:
        self._prompt = prompt
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            bufsize=0,
        )
        try:
            self._read_answer()
        except BaseException:
            self.kill()
            raise

    def ask(self, line: str) -> str:
        """Send a line; what comes back, without the prompt."""
        self.tell(line)
        return self._read_answer()

    def tell(self, line: str) -> None:
        """Send a line and wait for nothing."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def answer_lines(self) -> list[str]:
        """At least one line of a process that talks unasked; only whole ones."""
        said = b""
        while not said.endswith(b"\n"):
            said += self._read_some(said)
        return said.decode().splitlines()

    def kill(self) -> None:
        """End it as a crash would (SIGKILL). Idempotent."""
        self._process.kill()
        self._close()

    def leave(self) -> None:
        """Close its input and wait until it has ended by itself. Idempotent."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def _read_answer(self) -> str:
        said = b""
        while not said.endswith(self._prompt):
            said += self._read_some(said)
        return said.removesuffix(self._prompt).decode()

    def _read_some(self, said: bytes) -> bytes:
        assert self._process.stdout is not None
        more = os.read(self._process.stdout.fileno(), 1 << 16)
        if not more:
            raise Ended(said.decode())
        return more

    def _close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


def python(code: str, *arguments: str | Path, prompt: bytes = b"ready\n") -> Talk:
    """A Python process that runs ``code`` with this project's package at hand."""
    return Talk([sys.executable, "-c", code, *arguments], prompt)
