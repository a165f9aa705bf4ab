"""Long random scripts for qemu-io and ours: the same output and the same images."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from tests.cli.differential import Twins
from tests.cli.io.pair import run_stdin
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2

SIZE = 1 << 20
SHORT = ("1", "511", "512")
EDGES = (0, 512, 4096, 65535, 65536, 65537, 131072, SIZE - 65536, SIZE - 1, SIZE, SIZE + 1)


def place(random: Random) -> tuple[str, str]:
    """Offset and length; sometimes out of the image, sometimes no numbers."""
    offset = random.choice(EDGES) if random.random() < 0.3 else random.randrange(SIZE)
    length = random.choice((0, 1, 511, 512, 4096, 65536, 100000, 200000))
    words = [str(offset), str(length)]
    if random.random() < 0.15:
        words[random.randrange(2)] = random.choice(("64k", "0x8000", "1.5k", "x", "9E", "3G", "-1"))
    return words[0], words[1]


def flags(random: Random, letters: str) -> str:
    """Some of the letters, as options."""
    chosen = "".join(letter for letter in letters if random.random() < 0.2)
    return f"-{chosen} " if chosen else ""


def pattern(random: Random) -> str:
    return f"-P {random.choice((0, 1, 5, 255, 256, 'x'))} " if random.random() < 0.6 else ""


def command(random: Random, images: Sequence[str]) -> str:
    """One command; requests of aio_* end before the next, as their order is nobody's promise."""
    offset, length = place(random)
    name = random.choice(
        "read read readv write write writez writev aio_read aio_write discard alloc map length"
        " flush reopen open wrong".split()
    )
    if name in ("read", "readv", "aio_read"):
        letters = flags(random, "Cqv" if length in SHORT else "Cq")
        return f"{name} {letters}{pattern(random)}{offset} {length}"
    if name == "writez":
        if "ov.qed" in images:  # of clusters that are zeroes there, QEMU brings old data back
            length = random.choice(SHORT)
        return f"write {flags(random, 'Cfqunz')}-z {offset} {length}"
    if name in ("write", "writev", "aio_write"):
        return f"{name} {flags(random, 'Cfq')}{pattern(random)}{offset} {length}"
    if name == "discard":  # less than a cluster: of whole ones QEMU keeps the data, and we do not
        return f"discard {offset} {random.choice((1, 512, 65535))}"
    if name == "alloc":
        return f"alloc {offset} {length}"
    if name == "reopen":
        return random.choice(("reopen -r", "reopen -w", "reopen -c writeback", "reopen -c none"))
    if name == "open":
        words = ("close", "open -r {}", "open {}", "open nope.qed")
        return random.choice(words).format(random.choice(images))
    if name == "wrong":
        return random.choice(
            ("read", "write 1", "nope", "read -Z 0 1", "map 1", "alloc", "flush x")
        )
    return name


def script(seed: int, length: int, images: Sequence[str]) -> str:
    random = Random(seed)
    lines = []
    for _ in range(length):
        lines.append(command(random, images))
        if lines[-1] == "reopen -c none" and lines[-1] in lines[:-1]:
            lines[-1] = "reopen -r"  # after two, QEMU fails unaligned reads with -c writeback, too
        if lines[-1].startswith("aio_"):
            lines.append("aio_flush")
        if lines[-1] == "close":
            lines.append(f"open {random.choice(images)}")
    return "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("images", [("a.qed", "b.qed"), ("ov.qed",)])
def test_random_script_like_qemu_io(twins: Twins, images: Sequence[str], seed: int) -> None:
    run_stdin(twins, f"-f qed {images[-1]}", script(seed, 150, images))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
@pytest.mark.parametrize("images", [("a.qed", "b.qed"), ("ov.qed",)])
def test_many_random_scripts_like_qemu_io(twins: Twins, images: Sequence[str], seed: int) -> None:
    run_stdin(twins, images[-1], script(seed, 300, images))
