"""Random command lines: each ends with a code and at most one line on stderr, never a traceback.

They are made of what the verbs describe themselves with, so that some go all the way, and of words
that are out of place. All names are relative: nothing outside the test's folder is touched.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest

from qedasync.cli.help import known_verbs
from qedasync.cli.options import Option, Verb
from tests.cli.differential import Outcome, call

LINES = 10_000
CHUNKS = 20

VERBS = known_verbs()

NAMES = (
    "a.qed", "ov.qed", "b.raw", "new", "no/where", "dir", "", "-", "file:a.qed", "blkdebug::a.qed",
    "foo:x", "é\udcff", 'json:{"driver":"qed","file":{"driver":"file","filename":"a.qed"}}',
    "json:{", "nbd:unix:\udcff", "nbd://a..b/", "driver=qed,file.filename=a.qed", "driver=foo",
    "junk",
)  # fmt: skip
SIZES = ("0", "1", "512", "4k", "64k", "1M", "0x1000", "1x", "-1", "+4k", "9E", "1.5", "", "10MiB")
VALUES = (
    *NAMES, *SIZES, "qed", "raw", "foo", "json", "human", "help", "?", ",", "all", "leaks", "none",
    "cluster_size=4k", "table_size=2,cluster_size=8k", "backing_file=a.qed", "size=64k", "a=b",
    "preallocation=full", "secret,id=x", "any", "allow:*", "deny",
)  # fmt: skip
COMMANDS = ("read 0 4k", "write -P 1 0 4k", "aio_read 0 4k", "map", "foo", "", "read", "length")
WORDS = ("--", "-", "-x", "--foo", "--foo=1", "-h", "if=a.qed", "of=new", "bs=4k", "count=1")
BOUNDED = {"bench": ["-c", "8", "-d", "2", "a.qed"], "serve": ["--no-such-option"]}
"""What keeps a verb from running for seconds, or for ever; the last one counts."""
UNBOUNDED = [name for name in VERBS if name not in BOUNDED]


def folder_of_images(folder: Path) -> None:
    """Small ones of our own making, for the fuzz needs no other tool."""
    for words in (
        "create -q -f qed -o cluster_size=4k,table_size=2 a.qed 64k",
        "create -q -f qed -o cluster_size=4k,table_size=2 -b a.qed -F qed ov.qed",
        "create -q b.raw 64k",
    ):
        made = call(words, folder)
        assert made.code == 0, made
    (folder / "dir").mkdir()
    (folder / "junk").write_bytes(b"QED\0" + bytes(600))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "originals"
    folder.mkdir()
    folder_of_images(folder)
    return folder


class Lines:
    """Makes command lines."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def next(self) -> list[str]:
        """One more: a verb with some of its options and names, and perhaps something wrong."""
        random = self._random
        if random.random() < 0.03:
            return random.choices((*VALUES, *WORDS, *UNBOUNDED), k=random.randrange(4))
        # What serves, serves for ever once it is not refused; it has tests of its own.
        verb = random.choice([verb for verb in VERBS.values() if verb.name != "serve"])
        parts = [self._option(verb) for _ in range(random.randrange(5))] if verb.options else []
        parts += [[name] for name in self._names(verb)]
        if random.random() < 0.2:
            # After "--" there are names only, which would set BOUNDED aside.
            parts.append([random.choice(WORDS[1:] if verb.name in BOUNDED else WORDS)])
        random.shuffle(parts)
        return [verb.name, *(word for part in parts for word in part), *BOUNDED.get(verb.name, [])]

    def _option(self, verb: Verb) -> list[str]:
        option = self._random.choice(verb.options)
        if not option.value:
            return [self._spelled(option)]
        value = self._value(verb, option)
        spelled = self._spelled(option)
        if self._random.random() < 0.3:
            return [f"{spelled}={value}" if spelled.startswith("--") else f"{spelled}{value}"]
        return [spelled, value]

    def _spelled(self, option: Option) -> str:
        if option.short and (not option.long or self._random.random() < 0.6):
            return f"-{option.short}"
        return f"--{option.long}"

    def _value(self, verb: Verb, option: Option) -> str:
        if option.choices and self._random.random() < 0.7:
            return self._random.choice(option.choices)
        if verb.name == "io" and option.short == "c":
            return self._random.choice(COMMANDS)
        return self._random.choice(VALUES)

    def _names(self, verb: Verb) -> list[str]:
        """Mostly as many as the verb takes."""
        random = self._random
        names = [random.choice(NAMES[:3] if random.random() < 0.7 else NAMES)]
        if verb.name in ("convert", "compare"):
            names.append(random.choice(NAMES))
        if verb.name in ("create", "resize"):
            names.append(random.choice(SIZES))
        if verb.name == "dd":
            names = [f"if={names[0]}", f"of={random.choice(NAMES)}"]
        if random.random() < 0.1:
            names.append(random.choice(VALUES))
        return names if random.random() < 0.95 else names[:-1]


def fault(ours: Outcome, tool: str, words: list[str]) -> str | None:
    """What is wrong with how a command ended, or None."""
    if not 0 <= ours.code <= 255:
        return "exit code"
    # qemu-io says what went wrong with each of its commands, and without its name.
    lines = [] if words[:1] == ["io"] else ours.err.splitlines()
    if len(lines) > 1 or (lines and not ours.err.endswith("\n")):
        return "more than a line on stderr"
    if lines and not lines[0].startswith(f"{tool}: "):
        return "a line without a name"
    if "internal error" in ours.err or "Traceback" in ours.err + ours.out:
        return "a bug"
    return None


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_command_lines_end_with_a_code_and_a_line(
    chunk: int, originals: Path, tmp_path: Path
) -> None:
    lines = Lines(chunk)
    folder = tmp_path / "work"
    for number in range(LINES // CHUNKS):
        if number % 50 == 0:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(originals, folder)
        words = lines.next()
        tool = "qemu-img" if number % 4 == 0 else "qedasync"
        ours = call(words, folder, tool=tool)
        assert fault(ours, tool, words) is None, f"{fault(ours, tool, words)}: {words}\n{ours}"
        assert {path.name for path in tmp_path.iterdir()} == {"work"}, words


def test_random_command_lines_go_all_the_way_too(originals: Path, tmp_path: Path) -> None:
    """Were all refused, nothing but the parser would be tried."""
    folder = tmp_path / "work"
    shutil.copytree(originals, folder)
    lines = Lines(-1)
    codes = [call(lines.next(), folder).code for _ in range(200)]
    assert codes.count(0) > 10
    assert codes.count(0) < 150
