"""The command's frame: version, help, one line for what goes wrong, and an early start."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

import qedasync
from qedasync.cli import main as frame
from qedasync.cli.main import VERBS, main
from qedasync.errors import QEDError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A verb ``try`` that does what the test sets as its ``main``."""
    module = SimpleNamespace(main=lambda words: 0)
    monkeypatch.setitem(VERBS, "try", ("a.module", "try something"))
    monkeypatch.setattr(frame, "import_module", lambda name: module)
    return module


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_version_is_the_package_s(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 0
    assert capsys.readouterr().out == f"qedasync {qedasync.__version__}\n"


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_lists_every_verb(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out and summary in out for verb, (_, summary) in VERBS.items())


def test_help_of_a_verb_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["help", "bench"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("usage: qedasync bench")


def test_no_verb_prints_the_usage_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert capsys.readouterr().err.startswith("usage: qedasync")


def test_unknown_verb_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benhc"]) == 1
    assert capsys.readouterr().err == (
        "qedasync: there is no command 'benhc'; qedasync help lists them\n"
    )


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


def test_verb_interrupted_is_code_130(verb: SimpleNamespace) -> None:
    def interrupt(words: list[str]) -> int:
        raise KeyboardInterrupt

    verb.main = interrupt
    assert main(["try"]) == 130


def test_verbs_modules_are_there() -> None:
    assert all(callable(import_module(module).main) for module, _ in VERBS.values())


def test_version_needs_no_heavy_module() -> None:
    code = (
        "import sys; from qedasync.cli.main import main; main(['--version']);"
        "print(sorted({'asyncio', 'rich', 'uvloop', 'argparse', 'aiofiles'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"qedasync {qedasync.__version__}\n[]\n"


def test_output_nobody_reads_is_quiet_and_code_1() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "qedasync", "--version"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
