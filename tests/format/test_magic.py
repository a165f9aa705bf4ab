"""What a file begins with, against what QEMU makes of the same file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from qedasync.format.magic import HEAD_BYTES, identify
from tests.helpers import qemu

MADE = ["qed", "qcow", "qcow2", "vmdk", "vdi", "vhdx", "vpc", "parallels", "raw"]

HEADS = {
    "nothing": b"",
    "a byte": b"Q",
    "qed": b"QED\0",
    "qed, cut": b"QED",
    "qcow 0": b"QFI\xfb" + struct.pack(">I", 0),
    "qcow 1": b"QFI\xfb" + struct.pack(">I", 1) + bytes(40),
    "qcow 2": b"QFI\xfb" + struct.pack(">I", 2) + bytes(100),
    "qcow 3": b"QFI\xfb" + struct.pack(">I", 3) + bytes(100),
    "qcow 258": b"QFI\xfb" + struct.pack(">I", 258) + bytes(100),
    "vmdk 4": b"KDMV" + bytes(100),
    "vmdk 3": b"COWD" + bytes(100),
    "descriptor": b"# Disk DescriptorFile\nversion=1\nCID=1\n",
    "descriptor, blank line": b"# Disk\n   \nversion=3\n",
    "descriptor, empty line": b"# Disk\n\nversion=1\n",
    "descriptor, carriage returns": b"# Disk\r\n  \r\nversion=2\r\n",
    "descriptor, later version": b"# Disk DescriptorFile\nversion=4\n",
    "descriptor, cut": b"# Disk DescriptorFile\nversion=1",
    "descriptor, too late": b"#".ljust(505) + b"\nversion=1\n",
    "comment": b"# Disk DescriptorFile\n",
    "vdi": bytes(64) + b"\x7f\x10\xda\xbe" + bytes(500),
    "vdi, elsewhere": bytes(63) + b"\x7f\x10\xda\xbe" + bytes(500),
    "vhdx": b"vhdxfile",
    "vpc": b"conectix",
    "luks 1": b"LUKS\xba\xbe\0\x01" + bytes(600),
    "luks 2": b"LUKS\xba\xbe\0\x02" + bytes(600),
    "parallels": b"WithoutFreeSpace" + struct.pack("<I", 2) + bytes(600),
    "parallels, extended": b"WithouFreSpacExt" + struct.pack("<I", 2) + bytes(600),
    "parallels 3": b"WithoutFreeSpace" + struct.pack("<I", 3) + bytes(600),
    "bochs": struct.pack("<32s16s16sI", b"Bochs Virtual HD Image", b"Redolog", b"Growing", 1 << 17),
    "bochs, fixed": struct.pack(
        "<32s16s16sI", b"Bochs Virtual HD Image", b"Redolog", b"Fixed", 1 << 17
    ),
    "text": b"#!/bin/sh\necho\n",
}


@pytest.mark.parametrize("fmt", MADE)
def test_image_that_qemu_makes_is_identified(fmt: str, tmp_path: Path) -> None:
    qemu.img("create", "-q", "-f", fmt, tmp_path / "x", "8M")
    assert identify((tmp_path / "x").read_bytes()) == fmt


@qemu.needs_qemu_7_2
@pytest.mark.parametrize("name", HEADS)
def test_head_is_identified_as_qemu_does(name: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(HEADS[name].ljust(1024, b"\0"))
    said = qemu.img("info", "--output=json", tmp_path / "x", status=None)
    found = identify(HEADS[name])
    if said.returncode == 0:
        assert found == json.loads(said.stdout)["format"]
    else:  # it is no sound image of the format that QEMU took it for
        assert found != "raw", said.stderr


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_head_may_be_any_buffer_of_any_length(kind: type) -> None:
    assert identify(kind(b"QED\0" + bytes(2 * HEAD_BYTES))) == "qed"
    assert identify(kind(b"conectix")) == "vpc"
