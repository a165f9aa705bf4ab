"""The README's examples do what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qedasync.cli.main import VERBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_readme_python_example_runs_and_prints_a_sound_image(tmp_path: Path) -> None:
    example, jobs, nbd = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = run(["-W", "error", "-c", example], tmp_path)
    assert done.returncode == 0, done.stderr
    more = "import asyncio, qedasync\n\n" + jobs + nbd + "asyncio.run(jobs())\nasyncio.run(nbd())\n"
    further = run(["-W", "error", "-c", more], tmp_path)
    assert further.returncode == 0, further.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith(" data")
    assert any(line.endswith(" zero") for line in lines)
    assert lines[-1] == "True"


def test_readme_bench_commands_are_taken_as_they_stand(tmp_path: Path) -> None:
    commands = re.findall(r"^qedasync (bench disk.*?)(?: *#.*)?$", README, re.MULTILINE)
    assert len(commands) == 2
    made = run(
        ["-c", "import asyncio, qedasync; asyncio.run(qedasync.create('disk.qed', '64M'))"],
        tmp_path,
    )
    assert made.returncode == 0, made.stderr
    for command in commands:
        words = command.split()
        if "--runtime" in words:
            words[words.index("--runtime") + 1] = "0.2"
        done = run(["-m", "qedasync", *words, "--number", "200"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert "IOPS" in done.stdout


def script(beginning: str, end: str) -> str:
    """All shell blocks between two headings, in order: what a user pastes into one directory."""
    part = README.partition(f"\n{beginning}\n")[2].partition(f"\n{end}\n")[0]
    return "\n".join(re.findall(r"```sh\n(.*?)```", part, re.DOTALL))


def paste(commands: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run them in an empty directory, up to the first that fails."""
    programs, work = cwd / "bin", cwd / "work"
    for folder in (programs, work):
        folder.mkdir()
    program = programs / "qedasync"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qedasync "$@"\n')
    program.chmod(0o755)
    environment = {"PYTHONPATH": str(ROOT), "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(
        ["sh", "-eu", "-c", commands],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_readme_command_lines_run_one_after_the_other(tmp_path: Path) -> None:
    done = paste(script("## The command line", "## NBD"), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "Images are identical." in done.stdout
    assert "they differ" in done.stdout


def test_readme_has_a_section_for_each_verb() -> None:
    headings = re.findall(r"^##+ (.*)$", README, re.MULTILINE)
    named = set(re.findall(r"\w+", " ".join(headings)))
    assert set(VERBS) - {"serve"} <= named
    assert "qedasync serve" in script("## NBD", "## `qedasync bench`")


@pytest.mark.skipif(
    not all(map(shutil.which, ("nbdinfo", "nbdcopy", "qemu-io", "qemu-img"))),
    reason="needs libnbd's and QEMU's tools",
)
def test_readme_nbd_server_is_used_by_real_clients(tmp_path: Path) -> None:
    done = paste(script("## NBD", "## `qedasync bench`"), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "read 65536/65536 bytes at offset 1048576" in done.stdout
    copied = (tmp_path / "work" / "vm.raw").read_bytes()
    assert copied == bytes(1 << 20) + b"\x05" * 65536 + bytes((63 << 20) - 65536)
