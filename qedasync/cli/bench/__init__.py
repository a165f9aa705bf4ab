"""``qedasync bench``: measure an image, or one made for the purpose.

An image that is given is never written to without ``--write``, or qemu-img's ``-w``.
"""

from __future__ import annotations

from collections.abc import Sequence

from qedasync.cli.bench.options import VERB, check_words, means_qemu, with_verify_value
from qedasync.cli.options import parse
from qedasync.cli.run import link_name

__all__ = ["VERB", "main"]


def main(words: Sequence[str]) -> int:
    """Run ``qedasync bench``; answers the exit code."""
    parsed = parse(VERB, with_verify_value(words))
    link = link_name()
    if means_qemu(parsed, link):
        from qedasync.cli.bench.qemu import run as run_as_qemu

        check_words(parsed, words)
        return run_as_qemu(parsed)
    from qedasync.cli.bench.measure import run

    return run(parsed, words)
