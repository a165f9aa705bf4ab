"""``qedasync io``: qemu-io's little language of reads, writes and breakpoints, on open images."""

from qedasync.cli.io.verb import VERB, main

__all__ = ["VERB", "main"]
