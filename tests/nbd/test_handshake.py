"""The server's handshake, byte for byte, without a socket."""

from __future__ import annotations

import struct

import pytest

from qedasync.nbd.handshake import ExportFacts, Outcome, ServerHandshake
from qedasync.nbd.wire import MAX_OPTION, TransmissionFlag
from tests.nbd.talk import GREETING, flags, go, meta, option, replies

ACK, SERVER, INFO, CONTEXT = 1, 2, 3, 4
UNSUP, POLICY, INVALID, TLS_REQD, UNKNOWN, TOO_BIG = (
    (1 << 31) + number for number in (1, 2, 3, 5, 6, 9)
)
EXPORTS = {
    "disk": ExportFacts(1 << 30, TransmissionFlag(0x16D), "a disk"),
    "other": ExportFacts(512, TransmissionFlag(3)),
}


def shaken(*sent: bytes, **wish: bool) -> tuple[ServerHandshake, list[tuple[int, int, bytes]]]:
    """A handshake after the flags and what was sent, and the answers."""
    handshake = ServerHandshake(EXPORTS, **wish)  # type: ignore[arg-type]
    assert handshake.take_output() == GREETING
    handshake.receive(flags() + b"".join(sent))
    return handshake, replies(handshake.take_output())


def test_greeting_comes_first_and_waits_for_the_flags() -> None:
    handshake = ServerHandshake(EXPORTS)
    assert handshake.take_output() == GREETING
    assert handshake.receive(flags()[:3]) is None
    assert handshake.take_output() == b""


def test_unknown_client_flag_ends_it() -> None:
    handshake = ServerHandshake(EXPORTS)
    assert handshake.receive(flags(7)) is Outcome.CLOSE


def test_any_cut_of_the_stream_gives_the_same_answers() -> None:
    sent = flags() + option(8) + meta(10, b"disk", b"base:allocation") + go(b"disk", 3) + b"rest"
    whole = ServerHandshake(EXPORTS)
    whole.receive(sent)
    for cut in range(1, len(sent)):
        parts = ServerHandshake(EXPORTS)
        parts.receive(sent[:cut])
        parts.receive(sent[cut:])
        assert parts.rest == b"rest"
        assert parts.take_output() == whole._output
        assert (parts.export_name, parts.contexts) == ("disk", {"base:allocation": 1})


def test_list_names_every_export() -> None:
    _, answers = shaken(option(3))
    assert answers == [
        (3, SERVER, b"\0\0\0\4diska disk"),
        (3, SERVER, b"\0\0\0\5other"),
        (3, ACK, b""),
    ]


def test_go_tells_size_flags_block_sizes_and_what_was_wished_for() -> None:
    handshake, answers = shaken(go(b"disk", 1, 2, 3))
    assert handshake.outcome is Outcome.TRANSMISSION
    assert answers == [
        (7, INFO, b"\0\1disk"),
        (7, INFO, b"\0\2a disk"),
        (7, INFO, struct.pack(">HIII", 3, 1, 4096, 32 << 20)),
        (7, INFO, struct.pack(">HQH", 0, 1 << 30, 0x16D)),
        (7, ACK, b""),
    ]


def test_info_leaves_the_choice_open() -> None:
    handshake, answers = shaken(go(b"other", number=6))
    assert handshake.outcome is None
    assert answers[-1] == (6, ACK, b"")


@pytest.mark.parametrize("zeroes", [True, False])
def test_export_name_answers_without_a_header(zeroes: bool) -> None:
    handshake = ServerHandshake(EXPORTS)
    handshake.take_output()
    outcome = handshake.receive(flags(1 if zeroes else 3) + option(1, b"other"))
    assert outcome is Outcome.TRANSMISSION
    assert handshake.take_output() == struct.pack(">QH", 512, 3) + bytes(124 if zeroes else 0)


def test_export_name_unknown_hangs_up() -> None:
    assert shaken(option(1, b"nothing"))[0].outcome is Outcome.CLOSE


@pytest.mark.parametrize("name", [b"nothing", b"\xff\xfe", b"x" * 5000])
def test_go_unknown_name_is_refused_and_may_be_tried_again(name: bytes) -> None:
    handshake, answers = shaken(go(name), go(b"disk"))
    assert answers[0][:2] == (7, UNKNOWN)
    assert handshake.outcome is Outcome.TRANSMISSION


@pytest.mark.parametrize(
    "sent",
    [
        option(7),
        option(7, b"\0\0\0\4disk"),
        option(7, struct.pack(">I", 1 << 31) + b"disk\0\0"),
        option(7, b"\0\0\0\4disk\0\2\0\1"),
        option(3, b"x"),
        option(8, b"x"),
        option(9, b"\0\0\0\4disk\0\0\0\0"),
        meta(10, b"disk"),
    ],
)
def test_option_whose_lengths_do_not_fit_is_invalid(sent: bytes) -> None:
    handshake, answers = shaken(sent)
    assert [kind for _, kind, _ in answers] == [INVALID]
    assert handshake.outcome is None


@pytest.mark.parametrize(
    "body",
    [
        b"\0\0\0\4disk\0\0\0\1",
        b"\0\0\0\4disk\0\0\0\1\0\0\0\5base",
        b"\0\0\0\4disk\xff\xff\xff\xff",
        b"\0\0\0\4disk\0\0\0\0x",
        b"\0\0\0\5disk\0\0\0\0",
    ],
)
def test_meta_context_whose_lengths_do_not_fit_is_invalid(body: bytes) -> None:
    handshake, answers = shaken(option(8), option(10, body))
    assert answers[1][:2] == (10, INVALID)
    assert handshake.contexts == {}


def test_option_too_long_is_passed_over_without_being_held() -> None:
    handshake = ServerHandshake(EXPORTS)
    handshake.take_output()
    handshake.receive(flags() + struct.pack(">QII", 0x49484156454F5054, 7, MAX_OPTION + 1))
    for _ in range(MAX_OPTION // 1024):
        handshake.receive(bytes(1024))
        assert len(handshake.rest) < 2048
    handshake.receive(bytes(1) + go(b"disk"))
    answers = replies(handshake.take_output())
    assert answers[0][:2] == (7, TOO_BIG)
    assert handshake.outcome is Outcome.TRANSMISSION


def test_contexts_of_another_export_do_not_come_along() -> None:
    handshake, _ = shaken(option(8), meta(10, b"other", b"base:allocation"), go(b"disk"))
    assert handshake.contexts == {}


@pytest.mark.parametrize(
    ("queries", "names"),
    [
        ((), ["base:allocation", "qemu:allocation-depth"]),
        ((b"base:",), ["base:allocation"]),
        ((b"qemu:",), ["qemu:allocation-depth"]),
        ((b"qemu:allocation-depth", b"no:such"), ["qemu:allocation-depth"]),
        ((b"",), []),
    ],
)
def test_list_meta_context_answers_queries(queries: tuple[bytes, ...], names: list[str]) -> None:
    _, answers = shaken(option(8), meta(9, b"disk", *queries))
    assert [data[4:].decode() for _, kind, data in answers if kind == CONTEXT] == names


def test_extended_headers_bring_structured_replies_and_stay() -> None:
    handshake, answers = shaken(option(11), option(8))
    assert handshake.extended
    assert handshake.structured
    assert answers[1][1] == (1 << 31) + 10


def test_unknown_option_is_unsupported() -> None:
    assert shaken(option(99, b"abc"))[1] == [(99, UNSUP, b"unknown option")]


def test_abort_is_acknowledged() -> None:
    handshake, answers = shaken(option(2))
    assert answers == [(2, ACK, b"")]
    assert handshake.outcome is Outcome.CLOSE


def test_endless_options_end_it() -> None:
    handshake, _ = shaken(*[option(99)] * 300)
    assert handshake.outcome is Outcome.CLOSE


def test_no_option_magic_ends_it() -> None:
    assert shaken(option(7, magic=1))[0].outcome is Outcome.CLOSE


@pytest.mark.parametrize("sent", [option(3), go(b"disk"), option(8), meta(9, b"disk"), option(99)])
def test_tls_required_nothing_is_told_before_it(sent: bytes) -> None:
    handshake, answers = shaken(sent, tls_offered=True, tls_required=True)
    assert [kind for _, kind, _ in answers] == [TLS_REQD]
    assert handshake.outcome is None


def test_tls_required_export_name_hangs_up() -> None:
    handshake, _ = shaken(option(1, b"disk"), tls_offered=True, tls_required=True)
    assert handshake.outcome is Outcome.CLOSE


def test_starttls_forgets_what_was_said_before() -> None:
    handshake, answers = shaken(
        option(11), meta(10, b"disk", b"base:allocation"), option(5), tls_offered=True
    )
    assert answers[-1] == (5, ACK, b"")
    assert handshake.outcome is Outcome.STARTTLS
    inside = handshake.after_tls()
    assert inside.take_output() == b"", "no second greeting"
    assert (inside.structured, inside.extended, inside.contexts) == (False, False, {})
    inside.receive(go(b"disk"))
    assert inside.outcome is Outcome.TRANSMISSION


def test_starttls_with_more_plain_text_behind_it_hangs_up() -> None:
    """CVE-2021-3716 (nbdkit) and its like: what comes before TLS must not count inside it."""
    handshake, _ = shaken(option(5), option(8), tls_offered=True)
    assert handshake.outcome is Outcome.CLOSE


def test_starttls_not_configured_is_refused() -> None:
    assert shaken(option(5))[1][0][1] == POLICY


def test_starttls_twice_is_invalid() -> None:
    inside = shaken(option(5), tls_offered=True)[0].after_tls()
    inside.receive(option(5))
    assert replies(inside.take_output())[0][1] == INVALID
