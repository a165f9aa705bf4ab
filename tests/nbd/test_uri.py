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


@pytest.mark.parametrize(
    "uri",
    [
        "http://host/x",
        "nbd://host:x/",
        "nbd://host:99999/",
        "nbd+unix:///x",
        "nbd://host/x?socket=s",
        "nbd+unix://host/x?socket=s",
        "nbd://host/?no-such=1",
        "nbd://[::1/",
        "nbd+ssh://host/x",
    ],
)
def test_uri_bad_is_refused(uri: str) -> None:
    with pytest.raises(RequestError):
        parse_uri(uri)


@pytest.mark.parametrize("name", ["disk.qed", "/tmp/nbd://x", "file:x", "nbd:host:1"])
def test_plain_names_are_not_uris(name: str) -> None:
    assert not is_nbd_uri(name)
