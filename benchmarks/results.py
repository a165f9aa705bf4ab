"""What the cases gave, as values that go to JSON and come back from it.

Everything that is printed or drawn is made from these, so a report can be made anew from a file.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.sides import Role, Sample

__all__ = ["SWEPT", "Bound", "Curve", "Figure", "Measured", "Report", "Row"]


SWEPT = "Swept"
"""The group of rows that are points of a figure."""


@dataclass(slots=True)
class Measured:
    """One side's runs.

    Attributes:
        rates: requests (of jobs: runs) per second, a round each.
        cpu: processor seconds per request, a round each.
        memory: most bytes in memory of any round.
    """

    name: str
    role: Role
    command: str
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: int = 0

    def add(self, sample: Sample) -> None:
        """One more round."""
        self.rates.append(sample.rate)
        self.cpu.append(sample.cpu)
        self.memory = max(self.memory, sample.memory)

    @property
    def rate(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rates)


@dataclass(slots=True)
class Row:
    """One case's outcome; see :class:`benchmarks.cases.Case` for the words.

    The ratio of a round is our rate over that of the rival who was best in that round.
    """

    name: str
    group: str
    what: str
    why: str
    sides: list[Measured]
    bar: float | None = None
    aim: float | None = None
    share_aim: float | None = None

    def of(self, role: Role) -> list[Measured]:
        """The sides that have a role."""
        return [side for side in self.sides if side.role == role]

    @property
    def ours(self) -> Measured:
        return self.of("ours")[0]

    @property
    def best_rival(self) -> Measured | None:
        """The rival with the highest median; None if none could run."""
        return max(self.of("rival"), key=lambda side: side.rate, default=None)

    @property
    def limit(self) -> Measured | None:
        """The limit that bounds us."""
        return next(iter(self.of("limit")), None)

    @property
    def ratios(self) -> list[float]:
        """Round by round."""
        return self.ratios_of(self.ours)

    def ratios_of(self, side: Measured) -> list[float]:
        """Of any of our sides, round by round; empty without a rival."""
        rivals = [rival.rates for rival in self.of("rival")]
        if not rivals:
            return []
        best = map(max, zip(*rivals, strict=True))
        return [mine / theirs for mine, theirs in zip(side.rates, best, strict=True)]

    @property
    def ratio(self) -> float | None:
        """The median of the ratios."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def share(self) -> float | None:
        """Our rate over the limit's."""
        return None if self.limit is None else self.ratio_beside(self.limit)

    def ratio_beside(self, side: Measured) -> float | None:
        """For one side: our rate over its, or, of a side of ours, over the best rival's; the
        median of the rounds."""
        if side.role == "ours":
            ratios = self.ratios_of(side)
        else:
            pairs = zip(self.ours.rates, side.rates, strict=True)
            ratios = [mine / theirs for mine, theirs in pairs]
        return statistics.median(ratios) if ratios else None

    @property
    def holds(self) -> bool:
        """Whether what we promise is kept."""
        return self.bar is None or (self.ratio is not None and self.ratio >= self.bar)


@dataclass(slots=True)
class Curve:
    """Points (x, y) of one side; ``style`` keeps its colour from figure to figure."""

    name: str
    style: int
    points: list[tuple[float, float]]


@dataclass(slots=True)
class Figure:
    """Curves over something that was varied.

    Attributes:
        x, y: what the axes show.
        x_unit: how x values are written: ``""`` for plain numbers, ``"B"`` for bytes.
        y_unit: ``"/s"`` for rates, ``"s"`` for seconds.
    """

    name: str
    group: str
    what: str
    why: str
    x: str
    y: str
    curves: list[Curve]
    x_unit: str = ""
    y_unit: str = "/s"
    command: str = ""


@dataclass(slots=True)
class Bound:
    """A claim without a rival: a sentence with figures, and whether it holds."""

    name: str
    what: str
    why: str
    text: str
    holds: bool
    values: dict[str, float]


@dataclass(slots=True)
class Report:
    """A whole run.

    Attributes:
        about: facts of the machine and the programs, for people.
        settings: how it was run, for people.
        noise: how quiet the machine was, for people.
    """

    about: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    noise: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)

    def add(self, part: Row | Figure | Bound) -> None:
        """One more outcome."""
        if isinstance(part, Row):
            self.rows.append(part)
        elif isinstance(part, Figure):
            self.figures.append(part)
        else:
            self.bounds.append(part)

    def as_json(self) -> str:
        """All of it, and the figures that follow from it, for those who read the file."""
        document = asdict(self)
        for shown, row in zip(document["rows"], self.rows, strict=True):
            shown |= {"ratio": row.ratio, "ratios": row.ratios, "share": row.share}
        return json.dumps(_rounded(document), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> Self:
        """What :meth:`as_json` wrote."""
        found = json.loads(path.read_text("utf-8"))
        facts = {name: found[name] for name in ("about", "settings", "noise")}
        return cls(
            **facts,
            rows=[_row(row) for row in found["rows"]],
            figures=[_figure(figure) for figure in found["figures"]],
            bounds=[Bound(**bound) for bound in found["bounds"]],
        )

    def groups(self) -> dict[str, list[Row]]:
        """Heading -> its rows, in the order of the run; points of figures are no group."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.group != SWEPT:
                groups.setdefault(row.group, []).append(row)
        return groups

    def headline(self) -> Sequence[Row]:
        """The rows that promise something."""
        return [row for row in self.rows if row.bar is not None]


def _row(found: dict[str, Any]) -> Row:
    for name in ("ratio", "ratios", "share"):
        del found[name]
    return Row(**{**found, "sides": [Measured(**side) for side in found["sides"]]})


def _figure(found: dict[str, Any]) -> Figure:
    curves = [
        Curve(each["name"], each["style"], [(x, y) for x, y in each["points"]])
        for each in found["curves"]
    ]
    return Figure(**{**found, "curves": curves})


def _rounded(value: Any) -> Any:
    """Numbers with five digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
