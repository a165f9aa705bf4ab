"""Cases with one thing varied: a figure each, with a curve for every kind of side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.cases import CASES, Case
from benchmarks.images import Recipe
from benchmarks.results import SWEPT, Curve, Figure, Row
from benchmarks.sides import QEMU
from benchmarks.workload import Workload

__all__ = ["SWEEPS", "Sweep"]

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

_DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)
_SIZES = (GIB, 16 * GIB, 256 * GIB, 4 * TIB, 64 * TIB)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is varied, and how.

    Attributes:
        x: what the axis shows.
        values: along the axis, from small to large.
        case: the case at a value.
        x_unit: see :class:`benchmarks.results.Figure`.
    """

    name: str
    what: str
    why: str
    x: str
    values: Sequence[int]
    case: Callable[[int], Case]
    x_unit: str = ""

    def figure(self, rows: Sequence[Row]) -> Figure:
        """Curves of our rates, the best rival's, and the limit's where there is one."""
        pairs = list(zip(map(float, self.values), rows, strict=True))
        curves = [Curve("qedasync", 0, [(x, row.ours.rate) for x, row in pairs])]
        rivals = [(x, row.best_rival.rate) for x, row in pairs if row.best_rival]
        limits = [(x, row.limit.rate) for x, row in pairs if row.limit]
        if rivals:
            curves.append(Curve("QEMU's best", 1, rivals))
        if limits and rows[0].limit:
            curves.append(Curve(rows[0].limit.name, 2, limits))
        return Figure(
            self.name,
            SWEPT,
            self.what,
            self.why,
            self.x,
            "requests a second",
            curves,
            x_unit=self.x_unit,
            command=f"python -m benchmarks {self.name}",
        )


def _named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def _depth(name: str) -> Callable[[int], Case]:
    """A case at another queue depth, with fewer requests where each waits for the last."""

    def at(depth: int) -> Case:
        case = _named(name)
        work = replace(case.work, depth=depth, count=max(case.work.count // 4, 64 * depth))
        return replace(case, name=f"{name}@depth-{depth}", work=work)

    return at


def _images(n_images: int) -> Case:
    case = _named("read-4k")
    image = Recipe(16 * MIB, ((0, 16 * MIB),))
    work = Workload(count=51_200, block=4 * KIB, step=17 * 4 * KIB, size=16 * MIB)
    return replace(
        case,
        name=f"read-4k@images-{n_images}",
        work=work,
        image=image,
        sides=QEMU,
        n_images=n_images,
    )


def _size(size: int) -> Case:
    case = _named("seq-read-4k")
    image = Recipe(size, ((0, 64 * MIB),))
    work = Workload(count=16_384, block=4 * KIB, step=4 * KIB, size=size)
    return replace(
        case, name=f"read-4k@size-{size >> 30}g", work=work, image=image, sides=QEMU, bar=None
    )


SWEEPS = (
    Sweep(
        "depth-read-4k",
        "Cached 4 KiB reads by queue depth",
        "An inline read needs no depth to be fast; threads do.",
        "requests in flight",
        _DEPTHS,
        _depth("read-4k"),
    ),
    Sweep(
        "depth-alloc-4k",
        "4 KiB writes into new clusters by queue depth",
        "The more wait, the larger the group that one commit takes.",
        "requests in flight",
        _DEPTHS,
        _depth("alloc-4k"),
    ),
    Sweep(
        "depth-direct-read-4k",
        "O_DIRECT 4 KiB reads by queue depth",
        "Where the device is the limit, what counts is to keep it busy.",
        "requests in flight",
        _DEPTHS,
        _depth("direct-read-4k"),
    ),
    Sweep(
        "images-read-4k",
        "Cached 4 KiB reads on many images in one loop, 64 requests in flight in all",
        "One process and one core for all of ours; the rival is as many qemu-img at once.",
        "images",
        _IMAGES,
        _images,
    ),
    Sweep(
        "size-read-4k",
        "The same 16 384 reads of 4 KiB in images of any size",
        "Cost follows the work, not the size of the image.",
        "size of the image",
        _SIZES,
        _size,
        x_unit="B",
    ),
)
