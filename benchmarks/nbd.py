"""Our NBD server beside qemu-nbd: the same image, the same client, a Unix socket, in turn.

A round starts each server, lets a client run against it, and ends it. qemu-nbd runs as it does
unless told otherwise (threads), which is who the bar is against, and in its other modes, the best
of which is told beside. nbdkit serves a raw file of the same content: the limit, as it has nothing
to decode. A client has its own limit: where two servers reach it, they look alike. So
there is a client too that does as good as nothing per request (:func:`pump`), and every row has the
servers' processor time per request, which no client and no other load on the machine changes.

``python -m benchmarks.nbd SOCKET SIZE JSON`` is one run of that client; it prints the seconds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import qemu
from benchmarks.nbd_servers import DEFAULT, MODES, NBDKIT, RunError, processor_seconds, served
from benchmarks.results import Bound, Measured, Row
from benchmarks.sides import Role
from benchmarks.workload import Workload

__all__ = ["NBD_CASES", "NbdCase", "NbdResult", "idle_memory", "run_nbd_case"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_WHY = "The same image and client, a Unix socket; the rival as it runs unless told otherwise."
_SPREAD = 17 * 4 * KIB  # odd in blocks: visits all of a power of two before it repeats
_COPY_BYTES = 2 * GIB
_CONNECTIONS = 200
_IDLE_BYTES = 256 * KIB
_TIME = re.compile(r"Run completed in ([0-9.]+) seconds")

Client = Callable[[str, Path, Path], float]
"""Takes the server's URI, its socket and the folder; answers the seconds."""


@dataclass(frozen=True, slots=True)
class NbdCase:
    """One claim against qemu-nbd.

    Attributes:
        name: for the command line and the report.
        what: one line for the table.
        bar: the ratio (our rate over that of qemu-nbd as it runs unless told) that we promise; 0
            for a case that shows limits.
        count: requests of a run, or mebibytes.
        client: runs it.
        size: guest bytes of the image.
        filled: bytes from its beginning that hold data before the run.
        rehearsed: the stream that has been run on the image before, by qemu-img.
        fresh: whether every run needs a new image.
        beside_raw: whether nbdkit runs it too, on a raw file of the same content.
    """

    name: str
    what: str
    bar: float
    count: int
    client: Client
    size: int
    filled: int = 0
    rehearsed: Workload | None = None
    fresh: bool = False
    beside_raw: bool = False

    def prepare(self, image: Path, format: str = "qed") -> None:
        """Make the image, by QEMU's tools, and written back."""
        image.unlink(missing_ok=True)
        if format == "raw":
            image.touch()
            os.truncate(image, self.size)
        else:
            qemu.create(str(image), self.size)
        if self.filled:
            qemu.fill(str(image), [(0, self.filled)], format=format)
        if self.rehearsed is not None:
            qemu.bench(str(image), self.rehearsed, "threads", format)
        subprocess.run(["sync", "-f", str(image)], check=True)


@dataclass(slots=True)
class NbdResult:
    """What a case gave: rates and the server's processor seconds, a round each, by server."""

    case: NbdCase
    rates: dict[str, list[float]] = field(default_factory=dict)
    processor: dict[str, list[float]] = field(default_factory=dict)

    def add(self, server: str, seconds: float, processor: float) -> None:
        """A run has ended."""
        self.rates.setdefault(server, []).append(self.case.count / seconds)
        self.processor.setdefault(server, []).append(processor / self.case.count)

    def row(self) -> Row:
        """For the report; other modes than the one that qemu-nbd has unless told stand beside."""
        case = self.case
        sides = [self._measured(server) for server in ("ours", *MODES) if server in self.rates]
        if NBDKIT in self.rates:
            sides.append(self._measured(NBDKIT))
        return Row(case.name, "NBD servers", case.what, _WHY, sides, bar=case.bar or None)

    def _measured(self, server: str) -> Measured:
        name, role, command = _told(server)
        return Measured(name, role, command, self.rates[server], self.processor[server])


def _told(server: str) -> tuple[str, Role, str]:
    """Its name, what it is beside us, and its command, for the report."""
    if server == "ours":
        return "qedasync serve", "ours", "qedasync serve -f qed -t -k SOCKET IMAGE"
    if server == NBDKIT:
        return "nbdkit, raw", "limit", "nbdkit --unix SOCKET file RAW"
    options = "".join(f" {word}" for word in MODES[server])
    role: Role = "rival" if server == DEFAULT else "other"
    return f"qemu-nbd{options}", role, f"qemu-nbd -f qed -t{options} -k SOCKET IMAGE"


# ----------------------------------------------------------------------- clients


def _bench(work: Workload, clients: int = 1) -> Client:
    """``qemu-img bench``; several at once share the requests."""

    def run(uri: str, sock: Path, folder: Path) -> float:
        command = ["qemu-img", "bench", "-f", "raw", "-c", str(work.count // clients)]
        command += ["-d", str(work.depth), "-s", str(work.block), "-S", str(work.step)]
        command += ["-w"] if work.write else []
        running = [
            subprocess.Popen(
                [*command, "-o", str(work.size // clients * number), uri],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for number in range(clients)
        ]
        said = [process.communicate()[0] for process in running]
        times = [float(found[1]) for found in map(_TIME.search, said) if found]
        if len(times) < clients:
            raise RunError
        return max(times)

    return run


def _copy(source: str, target: str) -> Client:
    """``nbdcopy``; ``{uri}`` is the server, other names are files of the folder."""

    def run(uri: str, sock: Path, folder: Path) -> float:
        command = ["nbdcopy", source.format(uri=uri), target.format(uri=uri)]
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True)
        seconds = time.perf_counter() - begin
        folder.joinpath("out.raw").unlink(missing_ok=True)
        if done.returncode:
            raise RunError
        return seconds

    return run


def _fio(work: Workload, jobs: int = 1) -> Client:
    """fio through libnbd, at random places."""

    def run(uri: str, sock: Path, folder: Path) -> float:
        command = ["fio", "--name=nbd", "--ioengine=nbd", f"--uri={uri}", "--output-format=json"]
        command += [f"--rw=rand{'write' if work.write else 'read'}", f"--bs={work.block}"]
        command += [f"--iodepth={work.depth}", f"--numjobs={jobs}", "--group_reporting"]
        command += [f"--number_ios={work.count // jobs}", f"--size={work.size}", "--norandommap"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
        told = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        return work.count / float(told["write" if work.write else "read"]["iops"])

    return run


def _pump(work: Workload) -> Client:
    """:func:`pump`, in a process of its own."""

    def run(uri: str, sock: Path, folder: Path) -> float:
        command = [sys.executable, "-m", "benchmarks.nbd", str(sock), json.dumps(work.as_dict())]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)["seconds"])

    return run


def _reads(count: int, block: int = 4 * KIB, step: int = _SPREAD) -> Workload:
    return Workload(count=count, block=block, step=step, size=256 * MIB, depth=16)


def _writes(count: int) -> Workload:
    return Workload(count=count, block=4 * KIB, step=_SPREAD, size=256 * MIB, write=True, depth=16)


_NEW = Workload(count=20_000, block=4 * KIB, step=64 * KIB, size=4 * GIB, write=True, depth=16)

NBD_CASES = (
    NbdCase(
        "nbd-read-4k",
        "4 KiB reads, 16 in flight, cached",
        2.5,
        100_000,
        _bench(_reads(100_000)),
        256 * MIB,
        filled=256 * MIB,
        beside_raw=True,
    ),
    NbdCase(
        "nbd-write-4k",
        "4 KiB writes in place, 16 in flight",
        2.5,
        60_000,
        _bench(_writes(60_000)),
        256 * MIB,
        rehearsed=_writes(100_000),
        beside_raw=True,
    ),
    NbdCase(
        "nbd-read-1m",
        "1 MiB reads, 16 in flight, cached",
        1.5,
        4_000,
        _bench(_reads(4_000, MIB, MIB)),
        256 * MIB,
        filled=256 * MIB,
        beside_raw=True,
    ),
    NbdCase(
        "nbd-alloc-4k",
        "4 KiB writes, each into a new 64 KiB cluster",
        5.0,
        20_000,
        _bench(_NEW),
        4 * GIB,
        fresh=True,
    ),
    NbdCase(
        "nbd-read-4k-8",
        "4 KiB reads of 8 clients, 16 in flight each",
        2.0,
        160_000,
        _bench(_reads(160_000), clients=8),
        256 * MIB,
        filled=256 * MIB,
    ),
    NbdCase(
        "nbd-copy-out",
        "nbdcopy of a full image of 2 GiB into a raw file",
        1.2,
        _COPY_BYTES // MIB,
        _copy("{uri}", "out.raw"),
        _COPY_BYTES,
        filled=_COPY_BYTES,
        beside_raw=True,
    ),
    NbdCase(
        "nbd-copy-null",
        "nbdcopy of a full image of 2 GiB into nothing",
        1.2,
        _COPY_BYTES // MIB,
        _copy("{uri}", "null:"),
        _COPY_BYTES,
        filled=_COPY_BYTES,
        beside_raw=True,
    ),
    NbdCase(
        "nbd-copy-in",
        "nbdcopy of 2 GiB of random bytes into a new image",
        1.2,
        _COPY_BYTES // MIB,
        _copy("random.raw", "{uri}"),
        _COPY_BYTES,
        fresh=True,
        beside_raw=True,
    ),
    NbdCase(
        "nbd-fio-read-4k",
        "4 KiB reads by fio, 16 in flight",
        0,
        100_000,
        _fio(_reads(100_000)),
        256 * MIB,
        filled=256 * MIB,
    ),
    NbdCase(
        "nbd-fio-write-4k",
        "4 KiB writes in place by fio, 16 in flight",
        0,
        60_000,
        _fio(_writes(60_000)),
        256 * MIB,
        rehearsed=_writes(100_000),
    ),
    NbdCase(
        "nbd-pump-read-4k",
        "4 KiB reads, 16 in flight, by a client that does next to nothing",
        0,
        100_000,
        _pump(_reads(100_000)),
        256 * MIB,
        filled=256 * MIB,
    ),
    NbdCase(
        "nbd-pump-write-4k",
        "4 KiB writes in place, 16 in flight, by that client",
        0,
        60_000,
        _pump(_writes(60_000)),
        256 * MIB,
        rehearsed=_writes(100_000),
    ),
)


# -------------------------------------------------------------------------- runs


def run_nbd_case(case: NbdCase, rounds: int, folder: Path) -> Row:
    """All rounds of one case, after one that does not count.

    Raises:
        RunError: qemu-nbd did not get through it as it is by default, so there is no rival.
    """
    result = NbdResult(case)
    if case.name == "nbd-copy-in":
        _make_random(folder / "random.raw")
    servers = ["ours", *MODES]
    if case.beside_raw and shutil.which("nbdkit"):
        servers.append(NBDKIT)
    images = {server: _image(case, server, folder) for server in servers}
    if not case.fresh:
        _prepare(case, images.values())
    for round_number in range(rounds + 1):
        for server in list(servers):
            if case.fresh:
                _prepare(case, [images[server]])
            try:
                seconds, processor = _one_run(case, server, images[server], folder)
            except RunError:
                servers.remove(server)
                continue
            if round_number:
                result.add(server, seconds, processor)
    for image in images.values():
        image.unlink(missing_ok=True)
    return _without_failed(result, servers).row()


def _image(case: NbdCase, server: str, folder: Path) -> Path:
    """What a server serves; those that take QED share one image."""
    return folder / f"{case.name}.{'raw' if server == NBDKIT else 'qed'}"


def _prepare(case: NbdCase, images: Iterable[Path]) -> None:
    for image in set(images):
        case.prepare(image, image.suffix.removeprefix("."))


def _without_failed(result: NbdResult, servers: list[str]) -> NbdResult:
    """qemu-nbd fails in some modes: with io_uring, two allocating writes at once abort it."""
    if "ours" not in servers:
        raise SystemExit(f"{result.case.name}: our server did not get through it")
    if DEFAULT not in servers:
        raise RunError(f"only these servers got through it: {', '.join(servers)}")
    result.rates = {server: result.rates[server] for server in servers}
    return result


def _one_run(case: NbdCase, server: str, image: Path, folder: Path) -> tuple[float, float]:
    with served(server, image, folder) as (process, sock):
        before = processor_seconds(process.pid)
        seconds = case.client(f"nbd+unix:///?socket={sock}", sock, folder)
        return seconds, processor_seconds(process.pid) - before


def _make_random(path: Path) -> None:
    if path.exists():
        return
    with path.open("wb") as file:
        for _ in range(_COPY_BYTES // MIB):
            file.write(os.urandom(MIB))
    subprocess.run(["sync", "-f", str(path)], check=True)


# ------------------------------------------------- a client as quick as they come


def pump(path: str, work: Workload) -> float:
    """Seconds for the stream. Counts the bytes of the replies, and looks at nothing in them."""
    with socket.socket(socket.AF_UNIX) as sock:
        _enter(sock, path)
        payload = bytes(work.block) if work.write else b""
        kind, reply = int(work.write), 16 + (0 if work.write else work.block)
        requests = [
            struct.pack(">IHHQQI", 0x25609513, 0, kind, number, pos, work.block) + payload
            for number, pos in enumerate(work.positions())
        ]
        into = bytearray(MIB)
        begin = time.perf_counter()
        sent = work.depth
        sock.sendall(b"".join(requests[:sent]))
        come, left = 0, work.count * reply
        while left > 0:
            got = sock.recv_into(into)
            if not got:
                raise RunError
            come, left = come + got, left - got
            answered = come // reply
            come -= answered * reply
            if answered and sent < work.count:
                sock.sendall(b"".join(requests[sent : sent + answered]))
                sent += answered
        return time.perf_counter() - begin


def _enter(sock: socket.socket, path: str) -> None:
    """The shortest handshake there is: simple replies."""
    sock.connect(path)
    _exactly(sock, 18)
    sock.sendall(struct.pack(">I", 3) + struct.pack(">QII", 0x49484156454F5054, 1, 0))
    _exactly(sock, 10)


def _exactly(sock: socket.socket, count: int) -> None:
    while count:
        got = len(sock.recv(count))
        if not got:
            raise RunError
        count -= got


# -------------------------------------------------------------------- idle clients


def idle_memory(directory: Path) -> Bound:
    """What a connection that has read something and is quiet now takes of the server's memory."""
    image = directory / "idle.qed"
    qemu.create(str(image), MIB)
    with served("ours", image, directory) as (process, sock), ExitStack() as stack:
        taken = [_resident(process.pid)]
        for _ in range(2):  # what the first ones make the allocator keep is not theirs
            for _ in range(_CONNECTIONS):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                _enter(client, os.fspath(sock))
                client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 0, 0, 64 * KIB))
                _exactly(client, 16 + 64 * KIB)
            taken.append(_resident(process.pid))
    each = (taken[2] - taken[1]) / _CONNECTIONS
    return Bound(
        "nbd-idle-memory",
        "Memory of an NBD connection that is quiet",
        "What thousands of clients that do nothing cost.",
        f"{each / KIB:.0f} KiB for each of {_CONNECTIONS} (bar {_IDLE_BYTES // KIB} KiB)",
        each <= _IDLE_BYTES,
        {"KiB": each / KIB},
    )


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    where, wish = sys.argv[1:]
    print(json.dumps({"seconds": pump(where, Workload(**json.loads(wish)))}))
