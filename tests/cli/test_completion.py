"""Completion scripts: bash is asked what it would complete; the others must name all there is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qedasync.cli.help import known_verbs
from tests.cli.differential import call

SHELLS = ("bash", "zsh", "fish")


def script(shell: str, folder: Path) -> str:
    """What ``qedasync completion`` prints."""
    ours = call(["completion", shell], folder)
    assert (ours.code, ours.err) == (0, "")
    return ours.out


def completed(folder: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    code = (
        script("bash", folder)
        + '\nCOMP_WORDS=("$@")\nCOMP_CWORD=$(($# - 1))\n_qedasync\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", code, "bash", "qedasync", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split("\n")) - {""}


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


@needs_bash
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["c"], {"create", "check", "convert", "compare", "commit", "completion"}),
        (["re"], {"rebase", "resize"}),
        (["check", "--o"], {"--output", "--object"}),
        (["check", "-r", ""], {"leaks", "all"}),
        (["check", "-r", "l"], {"leaks"}),
        (["check", "--repair", "=", "a"], {"all"}),
        (["check", "--output", "="], {"human", "json"}),
        (["create", "-f", "q"], {"qed"}),
        (["help", "res"], {"resize"}),
        (["completion", ""], set(SHELLS)),
        (["info", ""], {"a b.qed", "c.raw"}),
        (["info", "a"], {"a b.qed"}),
        (["info", "-x"], set()),
    ],
)
def test_bash_completes(words: list[str], expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "a b.qed").touch()
    (tmp_path / "c.raw").touch()
    assert completed(tmp_path, *words) == expected & (known(words) or expected)


def known(words: list[str]) -> set[str]:
    """The verbs there are, where a verb is asked for."""
    return set(known_verbs()) if len(words) == 1 else set()


@pytest.mark.parametrize("shell", SHELLS)
def test_script_names_every_verb_option_and_choice(shell: str, tmp_path: Path) -> None:
    text = script(shell, tmp_path)
    for verb in known_verbs().values():
        assert verb.name in text
        for option in verb.options:
            assert option.long in text
            assert all(choice.replace(":", r"\:" if shell == "zsh" else ":") in text
                       for choice in option.choices)  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS)
def test_script_is_the_shell_s_language(shell: str, tmp_path: Path) -> None:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"there is no {shell} here")
    path = tmp_path / "script"
    path.write_text(script(shell, tmp_path))
    done = subprocess.run([found, "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"]])
def test_other_shells_are_refused(words: list[str], tmp_path: Path) -> None:
    ours = call(["completion", *words], tmp_path)
    assert (ours.code, ours.out) == (1, "")
    assert ours.err == "qedasync: completion is for one of bash, zsh, fish\n"
