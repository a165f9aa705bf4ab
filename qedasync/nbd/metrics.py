"""What a server counts, as text for Prometheus, and a small responder that gives it out.

Source: the Prometheus text exposition format, version 0.0.4.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from qedasync.nbd.counters import BUCKETS, Counters

if TYPE_CHECKING:
    from qedasync.nbd.server import Server

__all__ = ["LoopDelay", "exposition", "serve_metrics"]

_TICK = 0.1
_MAX_REQUEST = 8192
_HELP = {
    "connections": "Clients connected now.",
    "connections_accepted_total": "Clients that came in.",
    "connections_refused_total": "Clients turned away for being too many.",
    "connections_failed_total": "Clients hung up on for breaking the protocol.",
    "requests_total": "Requests answered, by command.",
    "read_bytes_total": "Payload bytes sent.",
    "written_bytes_total": "Payload bytes taken.",
    "requests_in_flight": "Requests that wait for their reply now.",
    "request_seconds": "Time from a request to its reply.",
    "loop_delay_seconds": "How late the event loop was at its last tick.",
    "loop_delay_max_seconds": "How late it was at most.",
}


@dataclass(slots=True)
class LoopDelay:
    """How late the event loop is.

    Attributes:
        last, largest: seconds.
    """

    last: float = 0.0
    largest: float = 0.0

    async def watch(self) -> None:
        """Look ten times a second, until cancelled."""
        while True:
            begin = perf_counter()
            await asyncio.sleep(_TICK)
            self.last = max(0.0, perf_counter() - begin - _TICK)
            self.largest = max(self.largest, self.last)


def exposition(server: Server, delay: LoopDelay) -> str:
    """All metrics as text."""
    lines = [*_server_lines(server.counters, delay), *_image_lines(server)]
    return "\n".join(lines) + "\n"


def _server_lines(counters: Counters, delay: LoopDelay) -> Iterator[str]:
    yield from _one("connections", "gauge", counters.connections)
    yield from _one("connections_accepted_total", "counter", counters.accepted)
    yield from _one("connections_refused_total", "counter", counters.refused)
    yield from _one("connections_failed_total", "counter", counters.failed)
    requests = dict(counters.requests)
    requests["read"] = requests.get("read", 0) + counters.inline_reads
    requests["write"] = requests.get("write", 0) + counters.inline_writes
    yield from _head("requests_total", "counter")
    for command, count in sorted(requests.items()):
        yield f'qedasync_nbd_requests_total{{command="{command}"}} {count}'
    yield from _one("read_bytes_total", "counter", counters.bytes_read)
    yield from _one("written_bytes_total", "counter", counters.bytes_written)
    yield from _one("requests_in_flight", "gauge", counters.in_flight)
    yield from _histogram(counters)
    yield from _one("loop_delay_seconds", "gauge", delay.last)
    yield from _one("loop_delay_max_seconds", "gauge", delay.largest)


def _histogram(counters: Counters) -> Iterator[str]:
    yield from _head("request_seconds", "histogram")
    total = 0
    for bound, count in zip([*BUCKETS, "+Inf"], counters.latency, strict=True):
        total += count
        label = bound if isinstance(bound, str) else f"{bound:g}"
        yield f'qedasync_nbd_request_seconds_bucket{{le="{label}"}} {total}'
    yield f"qedasync_nbd_request_seconds_sum {counters.latency_sum:.6f}"
    yield f"qedasync_nbd_request_seconds_count {total}"


def _image_lines(server: Server) -> Iterator[str]:
    """What the images behind the exports count themselves."""
    stats: dict[str, Mapping[str, int]] = {}
    for name, export in server.exports.items():
        found = getattr(export.disk, "stats", None)
        if dataclasses.is_dataclass(found) and not isinstance(found, type):
            stats[name] = dataclasses.asdict(found)
    names = sorted({key for counts in stats.values() for key in counts})
    for key in names:
        yield f"# TYPE qedasync_image_{key}_total counter"
        for name, counts in stats.items():
            yield f'qedasync_image_{key}_total{{export="{_escaped(name)}"}} {counts[key]}'


def _one(name: str, kind: str, value: float) -> Iterator[str]:
    yield from _head(name, kind)
    yield (
        f"qedasync_nbd_{name} {value:g}"
        if isinstance(value, float)
        else (f"qedasync_nbd_{name} {value}")
    )


def _head(name: str, kind: str) -> Iterator[str]:
    yield f"# HELP qedasync_nbd_{name} {_HELP[name]}"
    yield f"# TYPE qedasync_nbd_{name} {kind}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@asynccontextmanager
async def serve_metrics(server: Server, host: str, port: int) -> AsyncIterator[int]:
    """Answer ``GET /metrics`` over HTTP while inside; gives the port."""
    delay = LoopDelay()
    watching = asyncio.create_task(delay.watch(), name="qedasync nbd: loop delay")
    answer = _answerer(lambda: exposition(server, delay))
    try:
        async with await asyncio.start_server(answer, host, port, limit=_MAX_REQUEST) as listener:
            yield int(listener.sockets[0].getsockname()[1])
    finally:
        watching.cancel()
        await asyncio.wait([watching])


def _answerer(
    text: Callable[[], str],
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
            known = head.split(b" ", 2)[:2] in ([b"GET", b"/metrics"], [b"GET", b"/"])
            body = text().encode() if known else b"there is only /metrics\n"
            status = b"200 OK" if known else b"404 Not Found"
            writer.write(
                b"HTTP/1.1 " + status + b"\r\nContent-Type: text/plain; version=0.0.4\r\n"
                b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            await writer.drain()
        writer.close()

    return answer
