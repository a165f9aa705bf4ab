"""Scripts of many commands over overlays three deep: the real tools beside ours, step by step.

After every step both folders read the same, through QEMU, and nothing is corrupt.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import qedasync
from tests.cli.differential import Twins, launcher
from tests.helpers import qemu
from tests.helpers.process import ROOT

pytestmark = qemu.needs_qemu_7_2

_PROGRESS = re.compile(r"(    \(\d+\.\d\d/100%\)\r)+")


def steady(text: str) -> str:
    """Without how often progress was shown."""
    return re.sub(_PROGRESS, "", text)


GROW_AND_MERGE = """
create -f qed base.qed 1M
io base.qed write -P 1 0 512k
create -f qed -b base.qed -F qed mid.qed
io mid.qed write -P 2 100k 50k
create -f qed -o cluster_size=4k -b mid.qed -F qed top.qed
io top.qed write -P 3 130k 9k
io top.qed write -z 8k 16k
resize top.qed 2M
io top.qed write -P 4 1900k 20k
compare top.qed mid.qed
rebase -b base.qed -F qed top.qed
compare top.qed mid.qed
map --output=json base.qed
resize base.qed +1M
commit -d top.qed
compare top.qed base.qed
convert -O raw base.qed flat.raw
compare -f qed -F raw base.qed flat.raw
check top.qed
check base.qed
info base.qed
"""

FLATTEN = """
create -f raw base.raw 3M
io -f raw base.raw write -P 9 1M 1M
create -f qed -b base.raw -F raw a.qed
io a.qed write -P 1 0 70k
create -f qed -b a.qed -F qed b.qed 4M
io b.qed write -P 2 60k 100k
io b.qed write -z 2M 300k
create -f qed -o table_size=2 -b b.qed -F qed c.qed 5M
io c.qed write -P 3 4500k 100k
convert -O qed c.qed flat.qed
convert -O qed -B b.qed -F qed c.qed copy.qed
compare c.qed flat.qed
compare c.qed copy.qed
rebase -p -b '' copy.qed
compare -p copy.qed flat.qed
commit -d -b a.qed c.qed
convert -n -O qed c.qed flat.qed
compare c.qed flat.qed
rebase -u -b a.qed -F qed c.qed
compare c.qed flat.qed
dd -O raw bs=1M skip=1 count=3 if=c.qed of=part.raw
convert part.raw part.raw base.raw joined.raw
measure joined.raw
check a.qed
check b.qed
check c.qed
"""

BACK_AND_FORTH = """
create -f raw disk.raw 10M
io -f raw disk.raw write -P 5 3M 2M
io -f raw disk.raw write -P 6 9M 1M
convert -O qed disk.raw disk.qed
compare disk.raw disk.qed
create -f qed -b disk.qed -F qed one.qed
create -f qed -b one.qed -F qed two.qed
create -f qed -b two.qed -F qed three.qed
io one.qed write -P 1 0 64k
io two.qed write -P 2 32k 64k
io three.qed write -P 3 64k 64k
compare -s three.qed two.qed
convert -q -O qed -o cluster_size=8k three.qed four.qed
rebase -b disk.qed -F qed three.qed
rebase -b disk.qed -F qed two.qed
compare three.qed four.qed
commit -d three.qed
compare disk.qed four.qed
rebase -u -b '' one.qed
convert -O raw disk.qed back.raw
compare -f raw back.raw four.qed
resize back.raw --shrink 5M
convert -n -O raw -f raw back.raw disk.raw
compare disk.raw four.qed
"""

SCRIPTS = {"grow": GROW_AND_MERGE, "flatten": FLATTEN, "forth": BACK_AND_FORTH}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_of_many_commands_does_the_same(name: str, tmp_path: Path) -> None:
    twins = Twins(tmp_path)
    for line in SCRIPTS[name].strip().splitlines():
        if line.startswith("io "):
            write_both(twins, line)
        else:
            twins.run(line, filter=without_host, files=False)
        assert_read_the_same(twins, line)


def without_host(text: str) -> str:
    """Without what depends on where clusters lie: sizes on the host and offsets."""
    text = re.sub(r'disk size: .*|, "offset": \d+', "", steady(text))
    return re.sub(r"[0-9.]+% fragmented", "", text)


def write_both(twins: Twins, line: str) -> None:
    """The same writes, by qemu-io and by the library; ``io [-f FMT] FILE COMMAND...``.

    Not by qemu-io in both: rebase of ours leaves ZERO clusters where qemu-img's writes zeroes, and
    a part written into one by QEMU brings the backing file's content back (dossier §7.4).
    """
    words = line.split()[1:]
    fmt, name, *command = words[1:] if words[0] == "-f" else ["qed", *words]
    with contextlib.chdir(twins.real):
        qemu.io(name, " ".join(command), options=["-f", fmt])
    asyncio.run(write_ours(str(twins.mine / name), fmt, command))


async def write_ours(path: str, fmt: str, command: list[str]) -> None:
    """What the qemu-io command does."""
    verb, *options, first, second = command
    offset, length = qedasync.parse_size(first), qedasync.parse_size(second)
    disk: qedasync.Disk
    disk = await (qedasync.open_raw if fmt == "raw" else qedasync.open)(path, "r+")
    async with disk:
        if verb == "discard":
            await disk.discard(length, offset)
        elif options == ["-z"]:
            await disk.write_zeroes(length, offset)
        else:
            await disk.pwrite(bytes([int(options[1])]) * length, offset)


def assert_read_the_same(twins: Twins, line: str) -> None:
    """All images of both folders, with their chains."""
    names = sorted(path.name for path in twins.real.iterdir())
    assert names == sorted(path.name for path in twins.mine.iterdir()), line
    for name in names:
        mine, real = twins.mine / name, twins.real / name
        if same_bytes(mine, real):
            continue
        fmt = "raw" if name.endswith("raw") else "qed"
        said = qemu.img("compare", "-f", fmt, "-F", fmt, mine, real, status=None)
        assert said.stdout == "Images are identical.\n", f"{name} after {line}: {said.stdout}"
        if fmt == "qed":
            assert qemu.check(mine)["corruptions"] == 0, f"{name} after {line}"


def same_bytes(mine: Path, real: Path) -> bool:
    """Nothing to compare through QEMU where the file and all others below are equal."""
    size = mine.stat().st_size
    return size == real.stat().st_size and size < 1 << 20 and mine.read_bytes() == real.read_bytes()


# ------------------------------------------------------------------ random scripts


class Story:
    """Random commands that make sense: a chain of three over a raw file, changed all the time."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._chain = ["base.raw", "one.qed", "two.qed", "three.qed"]

    def beginning(self) -> Iterator[str]:
        size = self._random.choice([1, 3, 5])
        yield f"create -f raw base.raw {size}M"
        yield f"io -f raw base.raw write -P 77 {self._random.randrange(900)}k 100k"
        for below, name in zip(self._chain, self._chain[1:], strict=False):
            fmt = "raw" if below.endswith("raw") else "qed"
            clusters = self._random.choice(["4k", "16k", "64k"])
            size += self._random.choice([0, 0, 1])
            yield f"create -f qed -o cluster_size={clusters} -b {below} -F {fmt} {name} {size}M"

    def middle(self, length: int) -> Iterator[str]:
        for number in range(length):
            yield from self._some(number)

    def _some(self, number: int) -> Iterator[str]:
        kind = self._random.choice(
            ["io", "io", "io", "zero", "resize", "convert", "rebase", "commit"]
        )
        top = "three.qed"
        if kind in ("io", "zero"):
            name = self._random.choice(self._chain[1:])
            if name != top:
                name = top if self._random.random() < 0.7 else name
            offset = self._random.randrange(900) * 1024 + self._random.choice([0, 0, 512])
            length = self._random.choice([512, 4096, 30 << 10, 100 << 10])
            how = f"-P {1 + number % 250}" if kind == "io" else "-z"
            yield f"io {name} write {how} {offset} {length}"
        elif kind == "resize":
            yield f"resize {top} +{self._random.choice([512, 64 << 10, 1 << 20])}"
        elif kind == "convert":
            fmt = self._random.choice(["raw", "qed"])
            yield f"convert -O {fmt} {top} flat{number}.{fmt}"
            yield f"compare {top} flat{number}.{fmt}"
        elif kind == "rebase":
            below = self._random.choice(["one.qed -F qed", "two.qed -F qed", "base.raw -F raw"])
            yield f"rebase -b {below} {top}"
        else:
            yield f"commit -d {top}"
            yield f"check {top}"


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 23))]
)
def test_random_script_does_the_same(seed: int, tmp_path: Path) -> None:
    twins, story = Twins(tmp_path), Story(seed)
    for line in [*story.beginning(), *story.middle(14)]:
        if line.startswith("io "):
            write_both(twins, line)
        else:
            # An overlay of ours may hold zeroes where QEMU's has none, and the other way round.
            twins.run(line, filter=without_clusters, files=False)
        assert_read_the_same(twins, f"seed {seed}: {line}")


def without_clusters(text: str) -> str:
    """Without how many clusters there are."""
    return re.sub(r"\d+/\d+ = .*", "", without_host(text))


# ------------------------------------------------------------------ the links


SHELL = """\
set -e
qemu-img create -q -f qed disk.qed 4M
qemu-img create -q -f qed -b disk.qed -F qed snap.qed
cp start.raw base.raw
qemu-img convert -n -f raw -O qed base.raw disk.qed
qemu-img compare -f raw base.raw disk.qed
qemu-img convert -p -O qed snap.qed -B disk.qed -F qed copy.qed | tr '\\r' '\\n' | tail -1
qemu-img rebase -b '' copy.qed
qemu-img compare -q copy.qed base.raw && echo same
qemu-img commit snap.qed
qemu-img info --output=json snap.qed | grep -c qed
qemu-img dd -f raw -O raw bs=512 count=3 if=base.raw of=head.raw
qemu-img compare nothing disk.qed 2>/dev/null || echo "exit code $?"
qemu-img check -q disk.qed
"""


def test_shell_script_runs_unchanged_with_the_link_first_on_the_path(tmp_path: Path) -> None:
    said = []
    for kind in ("real", "ours"):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "start.raw").write_bytes(bytes(1 << 20) + b"\x05" * (1 << 20) + bytes(2 << 20))
        path = os.environ["PATH"]
        if kind == "ours":
            path = f"{launcher(tmp_path, 'qemu-img').parent}:{path}"
        done = subprocess.run(
            ["sh", "-c", SHELL],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]
    for name in ("disk.qed", "copy.qed", "head.raw"):
        assert qemu.img("compare", tmp_path / "real" / name, tmp_path / "ours" / name)
