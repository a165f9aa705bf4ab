"""``qedasync serve``: what it takes. The work is in :mod:`qedasync.cli.serving`, which is heavy."""

from __future__ import annotations

from collections.abc import Sequence

from qedasync.cli.common import BACKING
from qedasync.cli.options import Example, Option, Verb, parse

__all__ = ["VERB", "main"]

_CACHES = ("writeback", "writethrough", "none", "unsafe")

VERB = Verb(
    name="serve",
    summary="serve images over NBD",
    names="IMAGE...",
    options=(
        Option("k", "socket", "PATH", "listen on a Unix socket"),
        Option("b", "bind", "HOST", "listen on this address (127.0.0.1)"),
        Option("p", "port", "PORT", "listen on this TCP port (10809); 0 takes a free one"),
        Option("x", "export-name", "NAME", "the export's name; once for each image"),
        Option("D", "description", "TEXT", "what clients are told of the export"),
        Option("f", "format", "FMT", "the images' format; looked for unless said", ("qed", "raw")),
        Option("r", "read-only", "", "refuse writes"),
        Option("e", "shared", "N", "clients at once; 0, as unless said, for a thousand"),
        Option("t", "persistent", "", "go on when the last client has left"),
        Option("c", "cache", "MODE", "cache mode (writeback)", _CACHES),
        Option("", "tls-creds", "DIR", "certificates, laid out as QEMU and libnbd have them"),
        Option("", "tls-cert", "FILE", "the server's certificate, PEM"),
        Option("", "tls-key", "FILE", "its key, PEM"),
        Option("", "tls-ca", "FILE", "who signs the clients' certificates, PEM"),
        Option("", "tls-verify", "", "clients must have a certificate"),
        Option("", "allow", "CN", "let in only clients whose certificate has this common name"),
        Option("", "pid-file", "FILE", "write the process number there once it listens"),
        Option("", "metrics", "PORT", "serve /metrics for Prometheus on this port"),
        Option("", "aio", "MODE", "taken for qemu-nbd's sake; the fastest way there is, is used"),
        Option("", "discard", "MODE", "taken for qemu-nbd's sake; discards reach the image"),
        Option("", "fork", "", "go to the background once it listens"),
        BACKING,
    ),
    text="""\
    Serves each IMAGE as an export, by its -x NAME, or by its file name if there are several, or
    as the default export. Ends after the last client has left, unless -t. SIGTERM and SIGINT end it
    in good order: requests in flight are answered, everything is flushed, the images are closed.
    SIGHUP reads the certificates again. Listens on the sockets that systemd hands over, if any.
    """,
    examples=(
        Example("qedasync serve -k /tmp/disk.sock -t disk.qed", "One image on a Unix socket"),
        Example(
            "qedasync serve -b 0.0.0.0 --tls-creds /etc/pki/nbd --tls-verify -t disk.qed",
            "Over TCP, to clients with a certificate",
        ),
    ),
)


def main(words: Sequence[str]) -> int:
    """Run ``qedasync serve``; answers the exit code."""
    from qedasync.cli.serving import serve

    return serve(parse(VERB, words))
