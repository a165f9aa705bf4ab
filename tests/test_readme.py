"""The README's examples do what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

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


def test_readme_command_lines_run_one_after_the_other(tmp_path: Path) -> None:
    section = README.partition("## The command line")[2].partition("## NBD")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(lines) > 12
    for program, *words in lines:
        assert program == "qedasync"
        done = run(["-m", "qedasync", *words], tmp_path)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        assert done.stderr == ""
