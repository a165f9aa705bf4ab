"""Hostile images: sound ones with something changed. The same number gives the same image."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qedasync.storage.memory import SparseBytes
from tests.hostile.bases import Base

__all__ = ["FAMILIES", "FIELDS", "NAMES", "Hostile", "hostile"]

FIELDS = {
    "magic": (0, 4),
    "cluster_size": (4, 4),
    "table_size": (8, 4),
    "header_size": (12, 4),
    "features": (16, 8),
    "compat_features": (24, 8),
    "autoclear_features": (32, 8),
    "l1_table_offset": (40, 8),
    "image_size": (48, 8),
    "backing_filename_offset": (56, 4),
    "backing_filename_size": (60, 4),
}
"""Place and bytes of each field of the header."""

NAMES = (
    b"base.raw",
    b"near.raw",
    b"./base.raw",
    b"below/../base.raw",
    b"../images/base.raw",
    b"below/base.raw",
    b"../base.raw",
    b"link.raw",
    b"endless",
    b"pipe",
    b"below",
    b".",
    b"/",
    b"",
    b"self.qed",
    b"./self.qed",
    b"missing.raw",
    b"/etc/passwd",
    b"/dev/zero",
    b"/dev/stdin",
    b"/proc/self/mem",
    b"/proc/self/fd/0",
    b"file:base.raw",
    b"file:../base.raw",
    b"file:/etc/passwd",
    b"file:///etc/passwd",
    b'json:{"driver":"file","filename":"/etc/passwd"}',
    b'./json:{"driver":"file"}',
    b"nbd://127.0.0.1:1/x",
    b"nbd:unix:/tmp/none",
    b"http://127.0.0.1:1/x",
    b"ssh://host/x",
    b"fd:3",
    b"blkdebug::base.raw",
    b"null-co://",
    b"fuse:base.raw",
    b"base.raw\0/etc/passwd",
    b"\0base.raw",
    b"base.raw\n",
    b"\xff\xfe/\x80",
    b"\xed\xa0\x80",
    b"~/base.raw",
    b"$HOME/base.raw",
    b"%s%n",
    b"n" * 255,
    b"n" * 256,
    b"n" * 4000,
    b"a/" * 2000,
    b"../" * 1300,
)
"""Backing names, as bytes in the header."""


@dataclass(frozen=True, slots=True)
class Hostile:
    """An image somebody means harm with.

    Attributes:
        what: its number, and what was done to which sound image.
    """

    what: str
    family: str
    content: SparseBytes


Mutate = Callable[[random.Random, Base, SparseBytes, int], str]
"""Changes the content of a copy of a base; the number is one in its family. Says what it did."""


def hostile(number: int, bases: Sequence[Base]) -> Hostile:
    """The ``number``-th hostile image; each family has its turn."""
    families = list(FAMILIES)
    family, n = families[number % len(families)], number // len(families)
    rng = random.Random(f"{family} {n}")
    base = rng.choices(bases, [base.weight for base in bases])[0]
    content = base.content.copy()
    what = FAMILIES[family](rng, base, content, n)
    return Hostile(f"#{number} {family}: {what} in {base.name!r}", family, content)


# ----------------------------------------------------------------------- header


def _change_header(rng: random.Random, base: Base, content: SparseBytes, n: int) -> str:
    """Each field with each value that is on some border, then several fields at random."""
    borders = [(name, value) for name in FIELDS for value in _field_values(name, base)]
    if n < len(borders):
        return _set_field(content, *borders[n])
    changes = rng.sample(borders, rng.randint(2, 4))
    return ", ".join(_set_field(content, name, value) for name, value in changes)


def _field_values(name: str, base: Base) -> list[int]:
    bits = 8 * FIELDS[name][1]
    header = base.header
    now = 0x00444551 if name == "magic" else getattr(header, name)
    cluster, end = header.cluster_size, base.content.size
    values = {
        *(1 << i for i in range(0, bits, 3)),
        *((1 << i) - 1 for i in (9, 12, 26, bits - 1, bits)),
        *(now + d for d in (-512, -1, 1, 512, now, cluster, -cluster)),
        *(end + d for d in (-cluster, -base.table_bytes, -1, 0, cluster)),
        *((1 << 63) - (1 << 30) + d for d in (-512, 0, 512)),
        0,
        1 << (bits - 1),
        header.l1_table_offset + base.table_bytes,
        base.table_entries**2 * cluster,
    }
    return sorted(value for value in values if 0 <= value < 1 << bits)


def _set_field(content: SparseBytes, name: str, value: int) -> str:
    place, length = FIELDS[name]
    content.write(value.to_bytes(length, "little"), place)
    return f"{name}={value:#x}"


def _get_field(content: SparseBytes, name: str) -> int:
    place, length = FIELDS[name]
    raw = bytearray(length)
    content.read_into(raw, place)
    return int.from_bytes(raw, "little")


def _sometimes_dirty(rng: random.Random, content: SparseBytes) -> str:
    """Opened for writing, such an image is repaired first."""
    if rng.random() > 0.3:
        return ""
    _set_field(content, "features", _get_field(content, "features") | 2)
    return " and not closed"


# ----------------------------------------------------------------------- tables


def _change_l1(rng: random.Random, base: Base, content: SparseBytes, n: int) -> str:
    return _change_table(rng, base, content, base.tables[0], "L1")


def _change_l2(rng: random.Random, base: Base, content: SparseBytes, n: int) -> str:
    table = rng.choice(base.tables[1:])
    return _change_table(rng, base, content, table, f"the L2 table at {table:#x}")


def _change_table(
    rng: random.Random, base: Base, content: SparseBytes, table: int, name: str
) -> str:
    entries = min(base.table_entries, 4096)
    changes = []
    for _ in range(rng.choice((1, 1, 2, 5, 40))):
        index = rng.choice((0, 1, 5, 8, entries // 2, entries - 1, rng.randrange(entries)))
        first = rng.choice(_offsets(rng, base))
        run = min(rng.choice((1, 1, 1, 2, 64, 512)), entries - index)
        step = rng.choice((0, base.header.cluster_size, -base.header.cluster_size, 8))
        values = [(first + i * step) % (1 << 64) for i in range(run)]
        content.write(struct.pack(f"<{run}Q", *values), table + 8 * index)
        changes.append(f"[{index}]={first:#x}" + (f"+{step:#x}*{run}" if run > 1 else ""))
    shown = " ".join(changes[:5]) + (" ..." if len(changes) > 5 else "")
    return f"{name}: {shown}{_sometimes_dirty(rng, content)}"


def _offsets(rng: random.Random, base: Base) -> list[int]:
    """Entries that are somebody else's, on a border, or nonsense."""
    cluster, end = base.header.cluster_size, base.content.size
    up = -(-end // cluster) * cluster
    return [
        *(0, 1, 2, 8, 511, 512, cluster - 1, cluster, 2 * cluster),
        *base.tables,
        *(table + cluster for table in base.tables),
        *(table + base.table_bytes for table in base.tables),
        *(up + d for d in (-2 * cluster, -cluster, -base.table_bytes, -8, 0, cluster)),
        *((1 << 63) + d for d in (-cluster, 0, cluster)),
        *((1 << 64) - d for d in (1, 8, cluster, 2 * cluster, base.table_bytes)),
        1 << rng.randrange(64),
        rng.randrange(1 << 64),
        rng.randrange(1, up // cluster + 1) * cluster,
        rng.randrange(1, up // cluster + 1) * cluster,
    ]


# ------------------------------------------------------------- the file's length


def _cut(rng: random.Random, base: Base, content: SparseBytes, n: int) -> str:
    """Shorter: at sectors first, then anywhere; nothing at all is one of them."""
    size = n * 512 if n < 100 else rng.randrange(content.size)
    size = min(size, content.size - 1)
    content.resize(size)
    return f"cut to {size} bytes{_sometimes_dirty(rng, content) if size > 64 else ''}"


def _stretch(rng: random.Random, base: Base, content: SparseBytes, n: int) -> str:
    """A giant with nothing in it, and a header or tables that make use of it."""
    size = rng.choice((1 << rng.randrange(30, 63), (1 << 63) - 1, rng.randrange(1 << 44)))
    content.resize(size)
    big = [
        _set_field(content, "image_size", rng.choice((1 << 40, 1 << 61, (1 << 63) - (1 << 30)))),
        _set_field(content, "cluster_size", 1 << rng.randrange(12, 27)),
        _set_field(content, "table_size", 1 << rng.randrange(5)),
    ][: rng.randrange(4)]
    if rng.random() < 0.7:
        big.append(_scatter_tables(rng, base, content, size))
    return f"stretched to {size} bytes, {', '.join(big)}{_sometimes_dirty(rng, content)}"


def _scatter_tables(rng: random.Random, base: Base, content: SparseBytes, size: int) -> str:
    """L1 entries all over the file, or all the same."""
    cluster, table = base.header.cluster_size, base.tables[0]
    count = min(rng.choice((1, 64, 512)), base.table_entries)
    same = rng.random() < 0.3
    anchor = rng.randrange(max(1, size // cluster)) * cluster
    values = [
        anchor if same else rng.randrange(max(1, size // cluster)) * cluster for _ in range(count)
    ]
    content.write(struct.pack(f"<{count}Q", *values), table)
    return f"{count} L2 tables in holes"


# ---------------------------------------------------------------- backing files


def _name_backing(rng: random.Random, base: Base, content: SparseBytes, n: int) -> str:
    name = NAMES[n % len(NAMES)] if n < 4 * len(NAMES) else rng.randbytes(rng.randrange(1, 60))
    room = base.header.header_size * base.header.cluster_size - 64
    content.write(name[:room], 64)
    features = rng.choice((1, 1, 1, 3, 5, 7))
    size = rng.choice((len(name), len(name), len(name), 4095, 4096, room, 1))
    _set_field(content, "features", features)
    _set_field(content, "backing_filename_offset", rng.choice((64, 64, 64, 64, 0, 4095)))
    _set_field(content, "backing_filename_size", size)
    autoclear = rng.choice((0, 0, 1, 1 << 63))
    _set_field(content, "autoclear_features", autoclear)
    return (
        f"backing name {name[:40]!r}, {size} bytes, features {features}, autoclear {autoclear:#x}"
    )


# ------------------------------------------------------------------------- bytes


def _flip(rng: random.Random, base: Base, content: SparseBytes, n: int) -> str:
    """Random bytes, most of them where the header and the tables are in use."""
    count = rng.choice((1, 1, 2, 4, 16, 64))
    places = []
    for _ in range(count):
        start = rng.choice((0, *base.tables))
        reach = 64 if start == 0 else rng.choice((8, 64, 4096))
        place = start + rng.randrange(reach)
        if rng.random() < 0.2:
            place = rng.randrange(content.size)
        content.write(rng.randbytes(1), place)
        places.append(place)
    return f"bytes at {places[:6]} changed{_sometimes_dirty(rng, content)}"


def _shuffle(rng: random.Random, base: Base, content: SparseBytes, n: int) -> str:
    """A piece of the file copied over another one: tables over tables, data over tables."""
    sizes = (8, 64, 512, 4096)
    anchors = [0, *base.tables, rng.randrange(content.size)]
    for _ in range(rng.randint(1, 3)):
        piece = bytearray(rng.choice(sizes))
        content.read_into(piece, rng.choice(anchors))
        content.write(piece, rng.choice(anchors) + rng.choice((0, 0, 8, 512)))
    return f"pieces swapped{_sometimes_dirty(rng, content)}"


def _combine(rng: random.Random, base: Base, content: SparseBytes, n: int) -> str:
    """Two or three of the others at once."""
    chosen = rng.sample([_change_header, _change_l1, _change_l2, _flip, _cut, _name_backing], 3)
    return "; ".join(mutate(rng, base, content, 10**6) for mutate in chosen[: rng.randint(2, 3)])


FAMILIES: dict[str, Mutate] = {
    "header": _change_header,
    "L1": _change_l1,
    "L2": _change_l2,
    "cut": _cut,
    "stretched": _stretch,
    "backing": _name_backing,
    "bytes": _flip,
    "L2 again": _change_l2,
    "shuffled": _shuffle,
    "combined": _combine,
}
"""The ways to make an image hostile."""
