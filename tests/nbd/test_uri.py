"""NBD URIs, good and bad."""

from __future__ import annotations

import pytest

from qedasync import RequestError
from qedasync.nbd import Address, is_nbd_uri, parse_uri


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("nbd://host", Address(False, "", "host")),
        ("nbd://host/", Address(False, "", "host")),
        ("nbd://host:1/a", Address(False, "a", "host", 1)),
        ("nbds://host/a%20b", Address(True, "a b", "host")),
        ("nbd://[::1]:20000/x/y", Address(False, "x/y", "::1", 20000)),
        ("nbd:///x", Address(False, "x", "localhost")),
        ("nbd+unix:///x?socket=/tmp/s", Address(False, "x", socket="/tmp/s")),
        ("nbd+unix://?socket=s%3Ft", Address(False, "", socket="s?t")),
        ("nbd+unix:///?socket=%00abstract", Address(False, "", socket="\0abstract")),
        ("nbd://host//x", Address(False, "/x", "host")),
        ("nbds://host/x?tls-type=x509", Address(True, "x", "host")),
        (
            "nbds+unix:///?socket=s&tls-certificates=/pki&tls-hostname=h&tls-verify-peer=0",
            Address(True, "", socket="s", certificates="/pki", verify=False, hostname="h"),
        ),
    ],
)
def test_uri_good(uri: str, address: Address) -> None:
    assert is_nbd_uri(uri)
    assert parse_uri(uri) == address
    assert address.certificates or parse_uri(str(address)) == address


@pytest.mark.parametrize("word", ["1", "true", "YES", "on"])
def test_uri_verify_peer_is_a_flag(word: str) -> None:
    assert parse_uri(f"nbds://host?tls-verify-peer={word}").verify
    no = {"1": "0", "true": "False", "YES": "no", "on": "off"}[word]
    assert not parse_uri(f"nbds://host?tls-verify-peer={no}").verify


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("nbd+vsock://2/x", "virtual sockets"),
        ("nbds+vsock://2/x", "virtual sockets"),
        ("nbd+ssh://host/x", "ssh"),
        ("nbds://alice@host/x", "user's name"),
        ("nbds://host/x?tls-psk-file=keys", "without certificates"),
        ("nbds+unix:///x?socket=s&tls-username=alice", "without certificates"),
        ("nbds://host/x?tls-type=psk", "without certificates"),
        ("nbd://host/x?tls-certificates=/pki", "is for nbds://"),
        ("nbds://host/x?tls-verify-peer=perhaps", "neither 1 nor 0"),
        ("nbds://host/x?no-such=1", "no-such"),
    ],
)
def test_uri_that_libnbd_may_follow_is_refused_with_the_reason(uri: str, why: str) -> None:
    assert is_nbd_uri(uri)
    with pytest.raises(RequestError, match=why):
        parse_uri(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "http://host/x",
        "nbd://host:x/",
        "nbd://host:99999/",
        "nbd+unix:///x",
        "nbd://host/x?socket=s",
        "nbd+unix://host/x?socket=s",
        "nbd://[::1/",
        "nbd+ftp://host/x",
    ],
)
def test_uri_bad_is_refused(uri: str) -> None:
    with pytest.raises(RequestError):
        parse_uri(uri)


@pytest.mark.parametrize("name", ["disk.qed", "/tmp/nbd://x", "file:x", "nbd:host:1"])
def test_plain_names_are_not_uris(name: str) -> None:
    assert not is_nbd_uri(name)


def test_names_of_any_bytes_go_into_a_uri_and_come_out_of_it() -> None:
    address = Address(tls=False, export="e\udcff", socket="/tmp/s\udcfe")
    assert str(address) == "nbd+unix:///e%FF?socket=/tmp/s%FE"
    assert parse_uri(str(address)) == address
