"""What needs a process of its own, or no qemu-io beside: requests at once, signals, terminals."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.cli.differential import call, call_process, launcher
from tests.helpers import qemu
from tests.helpers.process import ROOT, Talk

PROMPT = b"qemu-io> "


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.qed"
    assert call(["create", "-q", "-f", "qed", "a.qed", "1M"], tmp_path).code == 0
    return path


@pytest.fixture
def tool(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return launcher(tmp_path_factory.mktemp("links"), "qemu-io")


@pytest.fixture
def talk(tool: Path, image: Path) -> Iterator[Talk]:
    with Talk([tool, "-f", "qed", image], PROMPT) as process:
        yield process


def run(image: Path, *commands: str, options: str = "") -> list[str]:
    """Our output, a list of lines."""
    words = [word for command in commands for word in ("-c", command)]
    outcome = call([*words, *options.split(), image.name], image.parent, tool="qemu-io")
    assert outcome.err == ""
    return outcome.out.splitlines()


def test_many_requests_at_once_all_end_and_hold(image: Path) -> None:
    writes = [f"aio_write -P {i} {i * 40}k 50k" for i in range(20)]
    said = run(image, *writes, "aio_flush", "length")
    assert sum(line.startswith("wrote 51200/51200") for line in said) == 20
    assert said[-1] == "1 MiB"
    reads = [f"aio_read -qP {i} {i * 40 + 10}k 30k" for i in range(20)]
    assert run(image, *reads, "aio_flush") == []
    assert run(image, "read -qP 1 900k 1") == [
        "Pattern verification failed at offset 921600, 1 bytes"
    ]


def test_request_without_flush_ends_before_the_program(image: Path) -> None:
    assert run(image, "length", "aio_write -P 3 0 64k")[1].startswith("wrote 65536")
    assert run(image, "read -qP 3 0 64k") == []


def test_request_completes_while_the_user_is_silent(talk: Talk) -> None:
    assert talk.ask("aio_write -P 3 0 64k") == ""
    deadline = time.monotonic() + 20
    while (said := talk.ask("sleep 10")) == "":
        assert time.monotonic() < deadline
    assert said.startswith("wrote 65536/65536 bytes at offset 0\n")


def test_lines_typed_get_a_prompt_each(talk: Talk) -> None:
    assert talk.ask("length") == "1 MiB\n"
    assert talk.ask("") == ""
    assert talk.ask("alloc 0 1k") == "0/1024 bytes allocated at offset 0 bytes\n"
    talk.leave()


def test_image_is_locked_until_closed(talk: Talk, image: Path) -> None:
    info = ["info", "-f", "qed", image.name]
    assert "Failed to get" in call(info, image.parent, tool="qemu-img").err
    talk.ask("close")
    assert call(info, image.parent, tool="qemu-img").code == 0


def test_snapshot_leaves_image_and_directory_alone(
    image: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = image.read_bytes()
    said = run(image, "write -qP 7 0 1M", "read -P 7 0 1M", "map", "reopen -r", options="-s")
    assert said[0] == "read 1048576/1048576 bytes at offset 0"
    assert image.read_bytes() == before
    assert list(temporary.iterdir()) == []


def test_snapshot_without_place_for_it_says_so(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(image.parent / "nowhere"))
    outcome = call(["-s", image.name], image.parent, tool="qemu-io")
    assert outcome.err.startswith("qemu-io: can't open device a.qed: ")
    assert outcome.code == 1


def test_backing_file_policy_is_asked(image: Path) -> None:
    words = ["create", "-q", "-f", "qed", "-F", "qed", "-b", str(image), "sub/ov.qed"]
    (image.parent / "sub").mkdir()
    assert call(words, image.parent).code == 0
    refused = call(["-c", "length", "sub/ov.qed"], image.parent, tool="qemu-io")
    assert "not allowed by the policy" in refused.err
    for words in (
        ["-c", "length", "--backing", "any", "sub/ov.qed"],
        ["-c", "open sub/ov.qed", "-c", "length", "--backing", "any"],
    ):
        assert call(words, image.parent, tool="qemu-io").out == "1 MiB\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_waiting_for_input_closes_image(tool: Path, image: Path, number: int) -> None:
    with subprocess.Popen([tool, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"write -q 0 64k\nlength\n")
        process.stdin.flush()
        said = b""
        while not said.endswith(b"1 MiB\n" + PROMPT):
            said += os.read(process.stdout.fileno(), 4096)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert image.read_bytes()[16] == 0  # NEED_CHECK


def test_signal_while_sleeping_ends_it(tool: Path, image: Path) -> None:
    command: list[str | Path] = [tool, "-c", "length", "-c", "sleep 60000", image]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1 MiB\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_signal_while_waiting_for_a_request_closes_image(tool: Path, image: Path) -> None:
    script = ["break write_aio A", "aio_write 0 64k", "wait_break A", "length", "aio_flush"]
    words = [word for command in script for word in ("-c", command)]
    with subprocess.Popen(
        [tool, *words, f"blkdebug::{image}"],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        said = b""
        while not said.endswith(b"1 MiB\n"):
            said += process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert image.read_bytes()[16] == 0  # NEED_CHECK


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP])
def test_sigraise_ends_it_as_qemu_io(
    tool: Path, image: Path, number: int, request: pytest.FixtureRequest
) -> None:
    # A process inherits what is ignored, and under nohup that is SIGHUP.
    request.addfinalizer(partial(signal.signal, signal.SIGHUP, signal.getsignal(signal.SIGHUP)))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    words = ["-c", "length", "-c", f"sigraise {number}", "-c", "length", image.name]
    outcome = call_process(words, image.parent, tool)
    assert (outcome.code, outcome.out) == (-number, "1 MiB\n")


def test_abort_ends_it_and_leaves_image_marked(tool: Path, image: Path) -> None:
    words = ["-c", "write -q 0 64k", "-c", "abort", image.name]
    assert call_process(words, image.parent, tool).code == -signal.SIGABRT
    assert image.read_bytes()[16] & 2  # NEED_CHECK


def test_output_closed_ends_quietly(tool: Path, image: Path) -> None:
    shell = f"{tool} -c 'read -v 0 1M' {image} | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_terminal_has_editing_completion_and_history(
    tool: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = image.parent / "history"
    monkeypatch.setenv("QEDASYNC_HISTORY", str(history))
    monkeypatch.setenv("TERM", "dumb")
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [tool, image], stdin=follower, stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        said = until(leader, b"qemu-io> ")
        os.write(leader, b"lengh\bth\n")  # a slip, put right
        said += until(leader, b"1 MiB\r\nqemu-io> ")
        os.write(leader, b"disc\t0 512\n")
        said += until(leader, b"qemu-io> ", b"discard 512/512 bytes")
        os.write(leader, b"\x04")
        assert process.wait(20) == 0
    os.close(leader)
    assert history.read_text().splitlines() == ["length", "discard 0 512"]


def until(terminal: int, *texts: bytes) -> bytes:
    """What a terminal shows until all texts have come."""
    said = b""
    while not all(text in said for text in texts):
        said += os.read(terminal, 4096)
    return said


def test_help_page_names_what_the_command_line_takes() -> None:
    page = call(["help", "io"], ROOT).out
    assert "--snapshot" in page
    assert "QEDASYNC_HISTORY" in page


def test_version_among_other_options() -> None:
    assert call(["-r", "--version"], ROOT, tool="qemu-io").out.startswith("qemu-io version 7.2.")


@qemu.needs_qemu
def test_image_written_here_is_whole_for_qemu(image: Path) -> None:
    run(image, "write -qP 5 100k 300k", "write -qz 64k 64k", "aio_write -q 900k 10k")
    assert qemu.check(image)["corruptions"] == 0
    assert qemu.io(image, "read -qP 5 128k 272k", "read -qP 0 64k 64k") == ""
