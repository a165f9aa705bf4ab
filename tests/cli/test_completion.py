"""Completion scripts: each shell that is here is asked what it would complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
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


def run(folder: Path, *command: str) -> str:
    """What a shell prints; with no settings of the user's."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / ".config")},
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout


def ask_bash(folder: Path, line: str) -> set[str]:
    """What bash offers for the last word; to bash, a "=" is one."""
    words = re.split(r" |(?==)|(?<==)(?!$)", line)
    code = (
        script("bash", folder)
        + '\nCOMP_WORDS=("$@")\nCOMP_CWORD=$(($# - 1))\n_qedasync\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    return set(run(folder, "bash", "-c", code, "bash", *words).split("\n")) - {""}


INNER = """
fpath=($PWD/.functions $fpath)
autoload -U compinit; compinit -D -u
compadd() {
    if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\\ * ]]; then builtin compadd "$@"; return; fi
    local -a matches
    builtin compadd -O matches "$@"
    print -rl -- $matches >> .offered
    builtin compadd "$@"
}
offer() { _main_complete; exit }
zle -C offer complete-word offer
bindkey '^I' offer
"""
"""Settings of a zsh that writes down what it offers, and ends."""

OUTER = """
zmodload zsh/zpty
zpty inner zsh -f -i
zpty -w inner 'source ./.inner'
zpty -w -n inner "$1"$'\\t'
while zpty -r inner line; do :; done
cat .offered
"""
"""Types a line in such a shell."""


def ask_zsh(folder: Path, line: str) -> set[str]:
    """What zsh offers for the last word, at a terminal: its functions work nowhere else."""
    (folder / ".functions").mkdir()
    (folder / ".functions" / "_qedasync").write_text(script("zsh", folder))
    (folder / ".inner").write_text(INNER)
    (folder / ".offered").touch()
    offered = run(folder, "zsh", "-f", "-c", OUTER, "zsh", line)
    return {word.replace("\\", "") for word in offered.split("\n")} - {""}


def ask_fish(folder: Path, line: str) -> set[str]:
    """What fish offers for the last word; of ``--option=value`` the value."""
    code = script("fish", folder) + '\ncomplete -C "$argv"'
    offered = run(folder, "fish", "--no-config", "-c", code, line)
    found = {word.partition("\t")[0] for word in offered.split("\n")} - {""}
    return {word.rpartition("=")[2] for word in found}


ASK: dict[str, Callable[[Path, str], set[str]]] = {
    "bash": ask_bash,
    "zsh": ask_zsh,
    "fish": ask_fish,
}

LINES: list[tuple[str, set[str]]] = [
    ("re", {"rebase", "resize"}),
    ("check --o", {"--output", "--object"}),
    ("check --h", {"--help"}),
    ("check -r ", {"leaks", "all"}),
    ("check -r l", {"leaks"}),
    ("check --repair=a", {"all"}),
    ("check --output=", {"human", "json"}),
    ("create -f q", {"qed"}),
    ("help res", {"resize"}),
    ("completion ", set(SHELLS)),
    ("info ", {"a b.qed", "c.raw"}),
    ("info a", {"a b.qed"}),
    ("info --backing ", {"deny", "same-dir", "allow:GLOB", "any"}),
]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("line", "expected"), LINES)
def test_shell_completes(shell: str, line: str, expected: set[str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    (tmp_path / "a b.qed").touch()
    (tmp_path / "c.raw").touch()
    assert ASK[shell](tmp_path, f"qedasync {line}") == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_shell_completes_verbs(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    offered = ASK[shell](tmp_path, "qedasync c")
    assert offered == {verb for verb in (*known_verbs(), "completion") if verb.startswith("c")}


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
