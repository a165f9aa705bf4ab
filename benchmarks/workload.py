"""A stream of equal requests, the same for qedasync and for ``qemu-img bench``.

Request number ``i`` goes to ``(start + i * step) % size``, as qemu-img's ``-o``, ``-S`` and the
image's size define it. A step that is odd in units of the block visits every block before it comes
back, which is what stands for "random" here: both sides then make the same requests in the same
order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Workload"]


@dataclass(frozen=True, slots=True)
class Workload:
    """What to do with an image.

    Attributes:
        count: requests.
        block: bytes of each.
        step: bytes from one request's start to the next's.
        size: guest bytes the stream wraps at; a multiple of ``block``.
        start: where it begins.
        write: writes, else reads.
        depth: requests in flight.
        cache: cache mode, in qedasync's words and qemu-img's.
    """

    count: int
    block: int
    step: int
    size: int
    start: int = 0
    write: bool = False
    depth: int = 64
    cache: str = "writeback"

    def positions(self) -> list[int]:
        """Where each request goes; made before the clock starts."""
        return [(self.start + i * self.step) % self.size for i in range(self.count)]

    def as_dict(self) -> dict[str, int | str | bool]:
        return asdict(self)

    def qemu_command(self, image: str, aio: str) -> list[str]:
        """The same stream as a command of QEMU's."""
        command = ["qemu-img", "bench", "-f", "qed", "-t", self.cache, "-i", aio]
        command += ["-c", str(self.count), "-d", str(self.depth), "-s", str(self.block)]
        command += ["-S", str(self.step), "-o", str(self.start)]
        return [*command, *(["-w"] if self.write else []), image]
