"""``qedasync serve``: what it takes. The work is in :mod:`qedasync.cli.serving`, which is heavy.

Called as qemu-nbd it takes that tool's options; these differ in ``-c`` and ``-d`` alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from qedasync.cli.common import BACKING, CACHES, FORMAT, IMAGE_OPTS
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, WrongOption, parse
from qedasync.cli.run import link_name

__all__ = ["VERB", "main"]

_OURS = (
    Option("c", "cache", "MODE", "cache mode; writeback unless said", CACHES),
    Option("", "tls-cert", "FILE", "the server's certificate, PEM"),
    Option("", "tls-key", "FILE", "its key, PEM"),
    Option("", "tls-ca", "FILE", "who signs the clients' certificates, PEM"),
    Option("", "tls-verify", "", "clients must have a certificate"),
    Option("", "allow", "CN", "let in only clients whose certificate has this common name"),
    Option("", "metrics", "PORT", "serve /metrics for Prometheus on this port"),
)
_THEIRS = (
    Option("c", "connect", "DEV", "refused: no device of the kernel's is connected"),
    Option("d", "disconnect", "DEV", "refused likewise"),
    Option("", "cache", "MODE", "cache mode; writeback unless said", CACHES),
)
_BOTH = (
    Option("k", "socket", "PATH", "listen on a Unix socket"),
    Option("b", "bind", "HOST", "listen on this address; 127.0.0.1 unless said"),
    Option("p", "port", "PORT", "listen on this TCP port (10809); 0 takes a free one"),
    Option("x", "export-name", "NAME", "the export's name; once for each image"),
    Option("D", "description", "TEXT", "what clients are told of the export"),
    FORMAT,
    IMAGE_OPTS,
    Option("r", "read-only", "", "refuse writes"),
    Option("s", "snapshot", "", "keep what is written in a temporary overlay"),
    Option("o", "offset", "BYTES", "begin so far into the image"),
    Option("e", "shared", "N", "clients at once (0: a thousand, as unless said); more wait"),
    Option("t", "persistent", "", "go on when the last client has left"),
    Option("n", "nocache", "", "past the host's page cache; the same as --cache=none"),
    Option("", "tls-creds", "DIR|ID", "certificates, laid out as QEMU and libnbd have them"),
    Option("", "tls-hostname", "NAME", "with -L: whose name the certificate must have"),
    Option("", "tls-authz", "ID", "refused: use --allow"),
    Option("", "object", "OBJECT", "tls-creds-x509,id=ID,endpoint=server,dir=DIR for --tls-creds"),
    Option("", "pid-file", "FILE", "write the process number there once it listens"),
    Option("", "aio", "MODE", "checked: the fastest way there is, is used"),
    Option("", "discard", "MODE", "checked: discards reach the image", ("ignore", "unmap")),
    Option("", "detect-zeroes", "MODE", "make zero writes of zeroes", ("off", "on", "unmap")),
    Option("", "fork", "", "go to the background once it listens"),
    Option("v", "verbose", "", "say on stderr which clients are hung up on, and why"),
    Option("L", "list", "", "list the exports of the server there, and end"),
    Option("A", "allocation-depth", "", "accepted: clients may always ask for it"),
    Option("B", "bitmap", "NAME", "refused: these images have none"),
    Option("l", "load-snapshot", "NAME", "refused likewise"),
    Option("T", "trace", "PATTERN", "accepted: there are no trace events here"),
    Option("", "selinux-label", "LABEL", "refused: no labels are set"),
    BACKING,
)

VERB = Verb(
    name="serve",
    summary="serve images over NBD",
    names="IMAGE...",
    options=(*_BOTH, *_OURS),
    text="""\
    Serves each IMAGE as an export, by its -x NAME, or by its file name if there are several, or
    as the default export. Ends after the last client has left, unless -t. SIGTERM and SIGINT end it
    in good order: requests in flight are answered, everything is flushed, the images are closed.
    SIGHUP reads the certificates again. Listens on the sockets that systemd hands over, if any.

    Called as qemu-nbd it prints nothing, lets one client in at a time, listens on all addresses,
    and takes one image; -c is that tool's --connect.
    """,
    examples=(
        Example("qedasync serve -k /tmp/disk.sock -t disk.qed", "One image on a Unix socket"),
        Example(
            "qedasync serve -b 0.0.0.0 --tls-creds /etc/pki/nbd --tls-verify -t disk.qed",
            "Over TCP, to clients with a certificate",
        ),
        Example("qedasync serve -L -k /tmp/disk.sock", "What a server has"),
    ),
)
_QEMU_NBD = Verb(VERB.name, VERB.summary, VERB.names, (*_BOTH, *_THEIRS), VERB.text, VERB.examples)


def main(words: Sequence[str]) -> int:
    """Run ``qedasync serve``; answers the exit code."""
    parsed = _parse_as_qemu(words) if link_name() == "qemu-nbd" else parse(VERB, words)
    if parsed.has("list"):
        from qedasync.cli.serve_list import list_exports

        return list_exports(parsed)
    from qedasync.cli.serving import serve

    return serve(parsed)


def _parse_as_qemu(words: Sequence[str]) -> Parsed:
    try:
        return parse(_QEMU_NBD, words)
    except WrongOption as error:
        raise ToolError(error.getopt) from error
