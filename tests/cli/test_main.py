"""The command's frame: version, help, one line for what goes wrong, and an early start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import qedasync
from qedasync.cli import main as frame
from qedasync.cli.help import known_verbs
from qedasync.cli.main import QEMU_VERSION, VERBS, main
from qedasync.cli.options import ToolError
from qedasync.errors import QEDError
from tests.cli.differential import Twins, call, call_process, launcher
from tests.helpers.process import ROOT


@pytest.fixture(autouse=True)
def name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is called qedasync, not pytest."""
    monkeypatch.setattr(sys, "argv", ["qedasync"])


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A verb ``try`` that does what the test sets as its ``main``."""
    module = SimpleNamespace(main=lambda words: 0)
    monkeypatch.setitem(VERBS, "try", "a.module")
    monkeypatch.setattr(frame, "import_module", lambda name: module)
    return module


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_version_is_the_package_s(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 0
    assert capsys.readouterr().out == f"qedasync {qedasync.__version__}\n"


@pytest.mark.parametrize("tool", ["qemu-img", "qemu-io", "qemu-nbd"])
def test_version_of_a_link_is_the_tool_s(tool: str, tmp_path: Path) -> None:
    ours = call("--version", tmp_path, tool=tool)
    word = "" if tool == "qemu-nbd" else "version "
    assert ours.out == f"{tool} {word}{QEMU_VERSION} (qedasync {qedasync.__version__})\n"


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_lists_every_verb(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in known_verbs())


@pytest.mark.parametrize("words", [["help", "info"], ["info", "--help"], ["info", "-h", "--foo"]])
def test_help_of_a_verb_is_its_own(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("NAME\n    qedasync info - ")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Not enough arguments; 'qedasync help' lists the commands"),
        (["benhc"], "Command not found: benhc; 'qedasync help' lists the commands"),
        (["help", "benhc"], "Command not found: benhc; 'qedasync help' lists the commands"),
        (["--foo"], "unrecognized option '--foo'"),
        (["info", "--foo"], "unrecognized option '--foo'"),
        (["info", "-f"], "missing argument for option '-f'"),
        (["info"], "Expecting one image file name"),
    ],
)
def test_wrong_words_are_one_line_and_code_1(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    assert capsys.readouterr() == ("", f"qedasync: {says}\n")


@pytest.mark.parametrize("words", ["", "foo", "--foo", "-x", "foo bar"])
def test_link_qemu_img_says_what_qemu_img_says(words: str, tmp_path: Path) -> None:
    Twins(tmp_path).run(words)


def test_link_qemu_nbd_serves(tmp_path: Path) -> None:
    ours = call("x.qed", tmp_path, tool="qemu-nbd")
    assert (ours.code, ours.err.count("\n")) == (1, 1)
    assert ours.err.startswith(
        "qemu-nbd: Failed to blk_new_open 'x.qed': Could not open 'x.qed': No such file"
    )


def test_link_as_a_file_is_the_tool(tmp_path: Path) -> None:
    ours = call_process("foo", tmp_path, launcher(tmp_path, "qemu-img"))
    assert (ours.code, ours.err) == (1, "qemu-img: Command not found: foo\n")


def test_verb_that_is_not_there_yet_fails_when_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(VERBS, "try", "qedasync.cli.no_such_module")
    assert main(["try"]) == 1
    assert capsys.readouterr().err == "qedasync: there is no 'try' yet\n"
    assert main(["help"]) == 0


def test_verb_gets_the_rest_and_gives_the_code(verb: SimpleNamespace) -> None:
    seen: list[str] = []

    def note(words: list[str]) -> int:
        seen.extend(words)
        return 7

    verb.main = note
    assert main(["try", "a", "--b"]) == 7
    assert seen == ["a", "--b"]


@pytest.mark.parametrize("error", [QEDError("it broke"), OSError(5, "it broke")])
def test_verb_error_is_one_line_and_code_1(
    verb: SimpleNamespace, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: list[str]) -> int:
        raise error

    verb.main = fail
    assert main(["try"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"qedasync: {error}\n"


def test_verb_error_of_many_lines_is_one(
    verb: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: list[str]) -> int:
        raise ToolError("a name\nof two lines\x1b[2J", 7)

    verb.main = fail
    assert main(["try"]) == 7
    assert capsys.readouterr().err == "qedasync: a name of two lines\\x1b[2J\n"


def test_verb_bug_is_one_line(
    verb: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: list[str]) -> int:
        raise IndexError("oops")

    verb.main = fail
    monkeypatch.delenv("QEDASYNC_DEBUG", raising=False)
    assert main(["try"]) == 1
    assert capsys.readouterr().err.startswith("qedasync: internal error")
    monkeypatch.setenv("QEDASYNC_DEBUG", "1")
    with pytest.raises(IndexError):
        main(["try"])


def test_verb_interrupted_is_code_130(verb: SimpleNamespace) -> None:
    def interrupt(words: list[str]) -> int:
        raise KeyboardInterrupt

    verb.main = interrupt
    assert main(["try"]) == 130


def test_output_nobody_reads_is_quiet_and_code_1() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "qedasync", "--version"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_cancels_the_work_and_gives_its_code(number: signal.Signals, code: int) -> None:
    program = """if True:
        import asyncio
        from qedasync.cli import main as frame
        from qedasync.cli.run import run_async

        async def work():
            try:
                print("ready", flush=True)
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                print("tidied up", flush=True)

        frame._dispatch = lambda words: run_async(work())
        raise SystemExit(frame.main([]))
    """
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=30) == ("tidied up\n", "")
    assert process.returncode == code


def test_any_file_name_can_be_printed(verb: SimpleNamespace, tmp_path: Path) -> None:
    def fail(words: list[str]) -> int:
        print(words[0])
        raise ToolError(words[0])

    verb.main = fail
    name = os.fsdecode(b"\xff\xfe.qed")
    ours = call(["try", name], tmp_path)
    assert (ours.out, ours.err) == (f"{name}\n", f"qedasync: {name}\n")
