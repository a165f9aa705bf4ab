"""What ``help COMMAND`` says beyond the command's line."""

from __future__ import annotations

__all__ = ["TEXTS"]

_SHARED = {
    "C": "a line of numbers instead of two lines: bytes, requests, time, bytes/s, requests/s",
    "f": "the bytes are on the disk before the command ends",
    "q": "say nothing",
    "v": "print the bytes in hexadecimal",
    "P read": "complain unless all bytes read are this one",
    "P write": "the byte to write; 0xcd unless said",
    "p": "accepted, does nothing",
    "u": "with -z: the blocks may be given back",
    "z": "write zeroes without sending any",
    "i": "only say that it is not done",
}


def _text(what: str, example: str, *flags: str) -> str:
    lines = [f" {line}" for line in what.split("\n")]
    lines += ["", " Example:", f" {example}", ""]
    for flag in flags:
        letter, _, said = flag.partition(" ")
        lines.append(f" -{letter}, -- {_SHARED.get(flag, said)}")
    return "\n".join(["", *lines, "", ""])


_BESIDE = (
    "\nCommands go on beside the request; 'aio_flush' waits for it. Its failure, or bytes that\n\
are not as expected, do not make the command fail."
)

TEXTS = {
    "read": _text(
        "Reads bytes of the image and, if asked, compares or prints them.",
        "'read -v 512 1k' prints one KiB from byte 512 on",
        "b from the VM state, which these images do not have",
        "C",
        "l how many bytes to compare (with -P)",
        "p",
        "P read",
        "q",
        "s where to begin to compare (with -P)",
        "v",
    ),
    "readv": _text(
        "As read, with a buffer for each length, in one request.",
        "'readv -v 512 1k 1k' prints two KiB from byte 512 on",
        "C",
        "P read",
        "v",
        "q",
    ),
    "write": _text(
        "Writes one byte over and over, the bytes of a file, or zeroes.",
        "'write -P 7 512 1k' writes one KiB of sevens from byte 512 on",
        "b to the VM state, which these images do not have",
        "c compressed, which these images cannot be",
        "f",
        "n with -z: fail rather than write zeroes out",
        "p",
        "P write",
        "s the file to take the bytes from, over and over",
        "C",
        "q",
        "u",
        "z",
    ),
    "writev": _text(
        "As write, with a buffer for each length, in one request.",
        "'writev 512 1k 1k' writes two KiB from byte 512 on",
        "P write",
        "C",
        "f",
        "q",
    ),
    "aio_read": _text(
        f"As readv, in the background.{_BESIDE}",
        "'aio_read -v 512 1k 1k' prints two KiB from byte 512 on",
        "C",
        "P read",
        "i",
        "v",
        "q",
    ),
    "aio_write": _text(
        f"As writev, in the background.{_BESIDE}",
        "'aio_write 512 1k 1k' writes two KiB from byte 512 on",
        "P write",
        "C",
        "f",
        "i",
        "q",
        "u",
        "z",
    ),
    "discard": _text(
        "Says that bytes are not needed any more.",
        "'discard 0 64k' gives back what the first 64 KiB take",
        "C",
        "q",
    ),
    "open": _text(
        "Opens an image for the commands that follow; 'close' comes first if one is open.",
        "'open -r -o driver=raw disk.raw' opens a raw file for reading",
        "r for reading only",
        "s keep what is written in a temporary overlay",
        "C keep in the image what is read from the backing file",
        "n past the host's page cache; the same as -t none",
        "U take no locks",
        "k the same as -i native",
        "i threads, native or io_uring; all the same here",
        "t the cache mode; writethrough unless said",
        "d ignore or unmap; discards are done anyway",
        "o options of the driver",
    ),
    "reopen": _text(
        "Goes on with the open image in another way.",
        "'reopen -r -c none' goes on reading past the host's page cache",
        "r for reading only",
        "w for writing too",
        "c the cache mode",
        "o options of the driver: read-only, cache.direct, cache.no-flush",
    ),
    "sigraise": _text(
        "Sends the program itself a signal, and tidies nothing up.",
        "'sigraise 9' ends it as a crash would",
    ),
}
