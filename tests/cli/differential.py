"""The real tools and ours, each on its own copy of the same files: what they say and leave.

::

    twins = Twins(tmp_path, build)               # build(folder) makes the files, once
    twins.run("info a.qed")                      # both; fails unless they agree
    twins.run('-c "read 0 64k" a.qed', tool="qemu-io")
    twins.ours("info --nonsense")                # only ours, compared with nothing

They agree when exit code and stdout are the same, the first line of stderr too, and the folders:
the same names, and files that are equal or equal as images (``qemu-img compare`` and ``check``).
A qemu-img message of several lines is one line of ours that begins with its first.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from unittest import mock

import pytest

from qedasync.cli.main import main
from tests.helpers import qemu
from tests.helpers.process import ROOT

__all__ = ["Outcome", "Twins", "call", "call_process", "identity", "launcher"]

Builder: TypeAlias = Callable[[Path], None]
Filter: TypeAlias = Callable[[str], str]
Words: TypeAlias = str | Sequence[str]

_GUESSED = "WARNING: Image format was not specified for"  # and two lines more

_LARGE = 64 << 20  # bytes; holes in such files are not read

_MAGIC = b"QED\0"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    Attributes:
        code: its exit code.
        out, err: stdout and stderr; what is no UTF-8 as lone surrogates.
    """

    code: int
    out: str
    err: str

    @property
    def first_error(self) -> str:
        """The first line of stderr, or ""; without the warning about a format that was guessed."""
        lines = self.err.split("\n")
        while lines[0].startswith(_GUESSED):
            del lines[:3]
        return lines[0]


def identity(text: str) -> str:
    """The filter that changes nothing."""
    return text


def nothing(folder: Path) -> None:
    """The builder that makes no files."""


class Twins:
    """Two folders of the same content; the real tools work in ``real``, ours in ``mine``.

    Args:
        folder: where to put them.
        build: makes the content, or the folder that has it.
        in_process: call our ``main`` here; else start a process for each command.
    """

    def __init__(
        self, folder: Path, build: Builder | Path = nothing, *, in_process: bool = True
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.real, self.mine = folder / "real", folder / "ours"
        self._in_process = in_process
        self._folder = folder
        original = build if isinstance(build, Path) else folder / "original"
        if not isinstance(build, Path):
            original.mkdir()
            build(original)
        # The same tool makes both sparse in the same way: "disk size" can be compared.
        for copy in (self.real, self.mine):
            subprocess.run(["cp", "-a", "--sparse=always", original, copy], check=True)

    def run(
        self,
        words: Words,
        *,
        tool: str = "qemu-img",
        stdin: str = "",
        filter: Filter = identity,
        stderr: bool = True,
        files: bool = True,
    ) -> Outcome:
        """Both; fails unless they agree; ours is answered.

        Args:
            words: the arguments: a list, or a text that is split as a shell does it.
            filter: what to make of each stdout before they are compared.
            stderr: compare the first line of stderr.
            files: compare the folders afterwards.
        """
        real, ours = (
            self.theirs(words, tool=tool, stdin=stdin),
            self.ours(words, tool=tool, stdin=stdin),
        )
        said = f"\n{tool} {words}\nreal: {real}\nours: {ours}"
        assert ours.code == real.code, f"exit code{said}"
        assert filter(ours.out) == filter(real.out), f"stdout{said}"
        if stderr:
            first = real.first_error
            assert ours.err.startswith(first), f"stderr{said}"
            assert bool(ours.err) == bool(first), f"stderr{said}"
        if real.code:
            assert ours.err.count("\n") <= 1, f"more than a line{said}"
        if files:
            self.assert_same_files(said)
        return ours

    def theirs(self, words: Words, *, tool: str = "qemu-img", stdin: str = "") -> Outcome:
        """Only the real tool."""
        done = subprocess.run(
            [_real(tool), *_split(words)], input=stdin.encode(), capture_output=True, cwd=self.real
        )
        return Outcome(done.returncode, _text(done.stdout), _text(done.stderr))

    def ours(self, words: Words, *, tool: str = "qemu-img", stdin: str = "") -> Outcome:
        """Only ours, called by the tool's name."""
        if self._in_process:
            return call(words, self.mine, tool=tool, stdin=stdin)
        return call_process(words, self.mine, launcher(self._folder, tool), stdin=stdin)

    def assert_same_files(self, said: str = "") -> None:
        """Fail unless both folders hold the same."""
        mine, real = _files(self.mine), _files(self.real)
        assert mine == real, f"files{said}"
        for name in mine:
            assert_same_file(self.mine / name, self.real / name, said)


@functools.cache
def _where(tool: str) -> str | None:
    return shutil.which(tool)


def _real(tool: str) -> str:
    found = _where(tool)
    if found is None:
        pytest.skip(f"there is no {tool} here")
    return found


def assert_same_file(mine: Path, real: Path, said: str = "") -> None:
    """Fail unless the files are equal, or equal as images."""
    assert mine.stat().st_size == real.stat().st_size, f"size of {mine.name}{said}"
    if mine.stat().st_size > _LARGE:
        compared = qemu.img("compare", "-f", "raw", "-F", "raw", mine, real, status=None)
        assert compared.returncode == 0, f"{mine.name}: {compared.stdout}{compared.stderr}{said}"
        return
    content, expected = mine.read_bytes(), real.read_bytes()
    if content == expected:
        return
    assert content[:4] == expected[:4] == _MAGIC, f"content of {mine.name}{said}"
    compared = qemu.img("compare", "-s", "-f", "qed", "-F", "qed", mine, real, status=None)
    assert compared.returncode == 0, f"{mine.name}: {compared.stdout}{compared.stderr}{said}"
    assert qemu.check(mine)["corruptions"] <= qemu.check(real)["corruptions"], said


def call(words: Words, folder: Path, *, tool: str = "qedasync", stdin: str = "") -> Outcome:
    """Our ``main`` in this process, in a folder, under a name; what it printed."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(3)]
    for stream in streams:
        stream.reconfigure(errors="surrogateescape", write_through=True)
    streams[0].write(stdin)
    streams[0].seek(0)
    arguments = _split(words)
    with _standard_streams(streams), contextlib.chdir(folder), _called([tool, *arguments]):
        try:
            code = main(arguments)
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
    out, err = (_text(stream.buffer.getvalue()) for stream in streams[1:])
    return Outcome(code, out, err)


def call_process(words: Words, folder: Path, command: Path, *, stdin: str = "") -> Outcome:
    """Our program in a process of its own."""
    done = subprocess.run(
        [command, *_split(words)],
        input=stdin.encode(),
        capture_output=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return Outcome(done.returncode, _text(done.stdout), _text(done.stderr))


@functools.cache
def launcher(folder: Path, tool: str) -> Path:
    """Our program as a file of that name, to be started or put first on the PATH."""
    path = folder / "bin" / tool
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f"#!{sys.executable}\nfrom qedasync.cli.main import main\nraise SystemExit(main())\n"
    )
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def _standard_streams(streams: Sequence[io.TextIOWrapper]) -> Iterator[None]:
    with (
        mock.patch.object(sys, "stdin", streams[0]),
        contextlib.redirect_stdout(streams[1]),
        contextlib.redirect_stderr(streams[2]),
    ):
        yield


def _called(argv: list[str]) -> contextlib.AbstractContextManager[object]:
    return mock.patch.object(sys, "argv", argv)


def _split(words: Words) -> list[str]:
    return shlex.split(words) if isinstance(words, str) else list(words)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
