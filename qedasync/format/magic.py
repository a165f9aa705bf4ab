"""What images of known formats begin with, as QEMU tells them apart.

It is a guess: a guest writes what it likes to the beginning of a raw disk.
"""

from __future__ import annotations

import re

__all__ = ["HEAD_BYTES", "identify"]

HEAD_BYTES = 512
"""So much of a file is looked at."""

_MAGIC = {
    "qed": rb"QED\0",
    "qcow": rb"QFI\xfb\0\0\0\x01",
    "qcow2": rb"QFI\xfb(?!\0\0\0[\0\x01])",
    "vmdk": rb"KDMV|COWD|(?:#[^\n]*\n| +\r?\n)*version=[123]\r?\n",
    "vdi": rb".{64}\x7f\x10\xda\xbe",
    "vhdx": rb"vhdxfile",
    "vpc": rb"conectix",
    "luks": rb"LUKS\xba\xbe\0\x01",
    "parallels": rb"(?:WithoutFreeSpace|WithouFreSpacExt)\x02\0\0\0",
    "bochs": rb"Bochs Virtual HD Image\0.{9}Redolog\0.{8}Growing\0.{8}\0\0[\x01\x02]\0",
    "cloop": rb"#!/bin/sh\n#V2\.0 Format\nmodprobe cloop file=\$0 &&"
    rb" mount -r -t iso9660 /dev/cloop \$1\n",
}
_PATTERNS = {name: re.compile(magic, re.DOTALL) for name, magic in _MAGIC.items()}


def identify(head: bytes | bytearray | memoryview) -> str:
    """The format of a file that begins so, by QEMU's name for it; ``"raw"`` if it is none of them.

    Args:
        head: the first 512 bytes, or all there is; what is missing counts as zeroes.
    """
    whole = bytes(head[:HEAD_BYTES]).ljust(HEAD_BYTES, b"\0")
    return next((name for name, pattern in _PATTERNS.items() if pattern.match(whole)), "raw")
