"""The README's examples do what they say."""

from __future__ import annotations

import re
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
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = run(["-W", "error", "-c", example], tmp_path)
    assert done.returncode == 0, done.stderr
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
