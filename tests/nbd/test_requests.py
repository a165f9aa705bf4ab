"""Requests out of a stream that is cut anywhere, and what is refused before memory is taken."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedasync.nbd.buffers import BufferPool
from qedasync.nbd.requests import SCRATCH_BYTES, ProtocolError, RequestReader
from tests.nbd.talk import request

LARGE = bytes(range(256)) * 1024


def stream(extended: bool) -> bytes:
    return b"".join(
        [
            request(0, 4096, 512, cookie=1, extended=extended),
            request(1, 8192, 5, cookie=2, payload=b"hello", extended=extended),
            request(1, 0, len(LARGE), cookie=3, flags=1, payload=LARGE, extended=extended),
            request(3, 0, 0, cookie=4, extended=extended),
            request(1, 7, 0, cookie=5, extended=extended),
        ]
    )


def taken(reader: RequestReader, data: bytes, cuts: list[int]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        for one in reader.feed(data[start:end]):
            assert bytes(one.payload) in (b"", b"hello", LARGE)
            found.append((one.command, one.flags, one.cookie, one.offset, len(one.payload)))
    return found


WANTED = [
    (0, 0, 1, 4096, 0),
    (1, 0, 2, 8192, 5),
    (1, 1, 3, 0, len(LARGE)),
    (3, 0, 4, 0, 0),
    (1, 0, 5, 7, 0),
]


@pytest.mark.parametrize("extended", [False, True])
@given(st.lists(st.integers(0, len(stream(False))), max_size=8).map(sorted))
def test_stream_cut_anywhere_gives_the_same_requests(extended: bool, cuts: list[int]) -> None:
    reader = RequestReader(extended=extended, max_payload=1 << 20)
    assert taken(reader, stream(extended), cuts) == WANTED


def test_payload_goes_straight_into_its_own_buffer() -> None:
    reader = RequestReader(extended=False, max_payload=1 << 20)
    assert reader.feed(request(1, 0, len(LARGE))) == []
    into = reader.get_buffer()
    assert len(into) == len(LARGE)
    into[:] = LARGE
    (one,) = reader.updated(len(LARGE))
    assert one.payload == LARGE


@pytest.mark.parametrize("length", [(32 << 20) + 1, 0xFFFFFFFF])
def test_payload_too_long_is_refused_before_memory_is_taken(length: int) -> None:
    reader = RequestReader(extended=False, max_payload=32 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=f"{length} bytes"):
            reader.feed(request(1, 0, length))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_extended_read_with_a_huge_length_is_a_request_like_others() -> None:
    """The length of a read is not a payload's; the export says no to it."""
    reader = RequestReader(extended=True, max_payload=1 << 20)
    (one,) = reader.feed(request(0, 0, 1 << 63, extended=True))
    assert one.length == 1 << 63


@pytest.mark.parametrize("first", [b"\0", b"GET / HTTP/1.1\r\nHost: example\r\n\r\n"])
def test_no_request_is_a_protocol_error(first: bytes) -> None:
    reader = RequestReader(extended=False, max_payload=1 << 20)
    with pytest.raises(ProtocolError):
        reader.feed(first + bytes(64))


def test_short_payload_still_to_come_does_not_keep_what_follows_from_coming_along() -> None:
    """The reader asks for all that the socket has, not for the rest of the payload alone."""
    reader = RequestReader(extended=False, max_payload=1 << 20)
    write = request(1, 0, 4096, payload=b"w" * 4096)
    assert reader.feed(write[:100]) == []
    assert len(reader.get_buffer()) > 4096 + 28
    first, second = reader.feed(write[100:] + request(0, 512, 512, cookie=2))
    assert (bytes(first.payload), second.cookie) == (b"w" * 4096, 2)


def test_readers_share_a_scratch_buffer() -> None:
    """Each keeps the beginning of its own request, whoever comes between."""
    scratch = bytearray(SCRATCH_BYTES)
    readers = [
        RequestReader(extended=False, max_payload=1 << 20, scratch=scratch) for _ in range(3)
    ]
    streams = [request(1, 0, 1000, cookie=n, payload=bytes([n]) * 1000) for n in range(3)]
    for reader, stream in zip(readers, streams, strict=True):
        assert reader.feed(stream[:700]) == []
    for number, (reader, stream) in enumerate(zip(readers, streams, strict=True)):
        (one,) = reader.feed(stream[700:])
        assert (one.cookie, bytes(one.payload)) == (number, bytes([number]) * 1000)


def test_kept_payload_outlasts_what_comes_next() -> None:
    reader = RequestReader(extended=False, max_payload=1 << 20)
    pool = BufferPool()
    write = request(1, 0, 5, payload=b"first")
    reader.get_buffer()[: len(write)] = write
    (one,) = reader.updated(len(write))
    one.keep(pool)
    reader.get_buffer()[: len(write)] = bytes(len(write))
    assert bytes(one.payload) == b"first"
    one.release(pool)
    assert not one.payload
