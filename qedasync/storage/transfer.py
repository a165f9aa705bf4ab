"""Blocking transfers on a file descriptor, whole or with an error; they run on worker threads.

``read_fully`` and ``write_fully`` go through the page cache; the ``direct_*`` pair serves a
descriptor opened with ``O_DIRECT``, through an aligned bounce buffer. Errors leave as the host's
``OSError``.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading

from qedasync.storage.base import ReadBuffers, WriteBuffers

__all__ = [
    "ALIGNMENT",
    "IOV_MAX",
    "direct_read",
    "direct_write",
    "gather",
    "read_fully",
    "round_up",
    "scatter",
    "total_length",
    "write_fully",
]

IOV_MAX = 1024
ALIGNMENT = 4096
"""Offset, length and memory alignment that satisfies every O_DIRECT we know, in bytes."""

_BOUNCE_BYTES = 1 << 20


def total_length(buffers: ReadBuffers | WriteBuffers) -> int:
    """Bytes in all of ``buffers``."""
    if len(buffers) == 1:
        return len(buffers[0])
    return sum(map(len, buffers))


def read_fully(fd: int, buffers: ReadBuffers, offset: int) -> None:
    """Fill ``buffers`` from ``offset``; past the end of the file there are zeroes."""
    if len(buffers) == 1 and os.preadv(fd, buffers, offset) == len(buffers[0]):
        return
    remaining = [memoryview(buffer) for buffer in buffers if len(buffer)]
    while remaining:
        done = os.preadv(fd, remaining[:IOV_MAX], offset)
        if done == 0:
            for view in remaining:
                view[:] = bytes(len(view))
            return
        offset += done
        remaining = _advance(remaining, done)


def write_fully(fd: int, buffers: WriteBuffers, offset: int) -> None:
    """Write ``buffers`` at ``offset``, all of them."""
    done = 0
    if len(buffers) == 1:  # without a vector it is cheaper, for the kernel too
        done = os.pwrite(fd, buffers[0], offset)
    elif len(buffers) <= IOV_MAX:
        done = os.pwritev(fd, buffers, offset)
    if done == total_length(buffers):
        return
    remaining = _advance([memoryview(buffer) for buffer in buffers if len(buffer)], done)
    offset += done
    while remaining:
        done = os.pwritev(fd, remaining[:IOV_MAX], offset)
        if done == 0:
            raise OSError(errno.EIO, "The host wrote nothing")
        offset += done
        remaining = _advance(remaining, done)


def _advance(views: list[memoryview], done: int) -> list[memoryview]:
    """What is left of ``views`` after their first ``done`` bytes."""
    for index, view in enumerate(views):
        if done < len(view):
            return [view[done:], *views[index + 1 :]]
        done -= len(view)
    return []


def direct_read(fd: int, buffers: ReadBuffers, offset: int) -> None:
    """Like :func:`read_fully`, on a descriptor with ``O_DIRECT``; any offset and length."""
    flat = _flatten(buffers)
    position = 0
    while position < len(flat):
        start = offset + position
        aligned = start - start % ALIGNMENT
        skip = start - aligned
        step = min(len(flat) - position, _BOUNCE_BYTES - skip)
        bounce = _bounce()
        span = round_up(skip + step)
        got = _read_aligned(fd, bounce, span, aligned)
        if got < skip + step:
            bounce[got : skip + step] = bytes(skip + step - got)
        flat[position : position + step] = bounce[skip : skip + step]
        position += step
    if len(buffers) > 1:
        scatter(flat, buffers)


def direct_write(fd: int, buffers: WriteBuffers, offset: int) -> None:
    """Like :func:`write_fully`, on a descriptor with ``O_DIRECT``; any offset and length.

    A write that is not aligned reads, patches and writes the blocks at its ends: the caller must
    keep every other write to these blocks out meanwhile.
    """
    data = buffers[0] if len(buffers) == 1 else b"".join(buffers)
    source = memoryview(data)
    position = 0
    while position < len(source):
        start = offset + position
        skip = start % ALIGNMENT
        step = min(len(source) - position, _BOUNCE_BYTES - skip)
        _write_span(fd, source[position : position + step], start)
        position += step


def _write_span(fd: int, data: memoryview, offset: int) -> None:
    bounce = _bounce()
    skip = offset % ALIGNMENT
    aligned, end = offset - skip, skip + len(data)
    span = round_up(end)
    cut = None
    if skip or span != end:
        got = _read_aligned(fd, bounce, span, aligned)
        bounce[got:span] = bytes(span - got)
        size = os.fstat(fd).st_size
        if aligned + span > size:
            cut = max(size, aligned + end)
    bounce[skip:end] = data
    done = 0
    while done < span:
        wrote = os.pwrite(fd, bounce[done:span], aligned + done)
        if wrote == 0 or wrote % ALIGNMENT:
            raise OSError(errno.EIO, f"The host wrote {wrote} bytes of an aligned transfer")
        done += wrote
    if cut is not None:
        os.ftruncate(fd, cut)


def _read_aligned(fd: int, bounce: memoryview, span: int, offset: int) -> int:
    """Read up to ``span`` bytes into the bounce buffer; fewer only at the end of the file."""
    done = 0
    while done < span:
        got = os.preadv(fd, [bounce[done:span]], offset + done)
        done += got
        if got == 0 or got % ALIGNMENT:
            break
    return done


def _flatten(buffers: ReadBuffers) -> memoryview:
    if len(buffers) == 1:
        return memoryview(buffers[0])
    return memoryview(bytearray(total_length(buffers)))


def scatter(source: memoryview, buffers: ReadBuffers) -> None:
    """Fill ``buffers``, laid end to end, with bytes from the beginning of ``source``."""
    start = 0
    for buffer in buffers:
        memoryview(buffer)[:] = source[start : start + len(buffer)]
        start += len(buffer)


def gather(buffers: WriteBuffers, target: memoryview) -> None:
    """Lay ``buffers`` end to end into ``target``, from its beginning."""
    start = 0
    for buffer in buffers:
        target[start : start + len(buffer)] = buffer
        start += len(buffer)


def round_up(value: int) -> int:
    """The multiple of :data:`ALIGNMENT` that is not below ``value``."""
    return -(-value // ALIGNMENT) * ALIGNMENT


class _Local(threading.local):
    """One aligned buffer a thread; anonymous maps begin on a page."""

    buffer: memoryview | None = None


_local = _Local()


def _bounce() -> memoryview:
    if _local.buffer is None:
        _local.buffer = memoryview(mmap.mmap(-1, _BOUNCE_BYTES))
    return _local.buffer
