"""Which backing files an image may name, and errors of the library in the words of QEMU's tools."""

from __future__ import annotations

import errno
import fnmatch
import os
from collections.abc import Callable
from typing import Any, TypeAlias

import qedasync
from qedasync.cli.common import FORMATS, beside, is_path
from qedasync.cli.nodes.remote import nbd_uri
from qedasync.cli.options import ToolError

__all__ = ["admit", "errno_of", "explain", "gate", "policy"]

Gate: TypeAlias = Callable[[qedasync.BackingRequest], bool]

_FORMAT_ERRORS = {
    "magic": "Image not in QED format",
    "cluster_size": "QED cluster size is invalid",
    "table_size": "QED table size is invalid",
    "image_size": "QED image size is invalid",
    "l1_table_offset": "QED table offset is invalid",
    "header_size": "QED header size is too large",
    "backing_filename_offset": "QED backing filename offset is invalid",
    "backing_filename_size": "Failed to read backing filename",
}


def policy(word: str | None) -> Any:
    """The library's policy for ``--backing``, or for ``QEDASYNC_BACKING`` if that is None.

    Raises:
        ToolError: there is no such policy.
    """
    rule = gate(word)
    return "auto" if rule is _is_beside else _opener(rule)


def gate(word: str | None) -> Gate:
    """The same as a function that lets names pass, or not."""
    word = word or os.environ.get("QEDASYNC_BACKING") or "same-dir"
    if word in _GATES:
        return _GATES[word]
    if word.startswith("allow:"):
        return _allow(word.removeprefix("allow:"))
    raise ToolError(f"Invalid backing policy '{word}'; use deny, same-dir, allow:GLOB or any")


def _nothing(request: qedasync.BackingRequest) -> bool:
    return False


def _is_beside(request: qedasync.BackingRequest) -> bool:
    return request.is_beside


def _anything(request: qedasync.BackingRequest) -> bool:
    return True


_GATES: dict[str, Gate] = {"deny": _nothing, "same-dir": _is_beside, "any": _anything}


def _allow(pattern: str) -> Gate:
    """Files whose path, or the name for them, is like the pattern; and those of the directory."""

    def allow(request: qedasync.BackingRequest) -> bool:
        names = (request.path, request.name)
        return request.is_beside or any(fnmatch.fnmatchcase(name, pattern) for name in names)

    return allow


def _opener(rule: Gate) -> Callable[[qedasync.BackingRequest], Any]:
    """A policy that also opens what only others can: NBD's names, and other formats."""

    async def decide(request: qedasync.BackingRequest) -> Any:
        if not rule(request):
            return False
        uri = None if request.path else nbd_uri(request.name)
        if not uri and (not request.path or request.format in (None, *FORMATS)):
            return True
        from qedasync import nbd

        return await (nbd.connect(uri) if uri else nbd.backing(rule)(request))

    return decide


def admit(name: str, path: str, image: str, word: str | None) -> None:
    """Let a name that an image has for its backing file pass, as the library does, or refuse it.

    Args:
        path: where it leads.
        word: the policy.

    Raises:
        BackingRefused: the policy forbids it.
    """
    is_file = is_path(name.removeprefix("file:"))
    real = os.path.realpath(path) if is_file else ""
    allowed = gate(word)(qedasync.BackingRequest(name, real, image, 1))
    if not allowed or not (is_file or nbd_uri(name)):
        raise qedasync.BackingRefused("", name=name)


def explain(error: qedasync.QEDError, name: str, image: str = "") -> str:
    """An error of the library in the words of QEMU's tools.

    Args:
        name: of what could not be opened.
        image: its path, where the name is not that.
    """
    if isinstance(error, qedasync.BackingRefused):
        return _refusal(error.name)
    if isinstance(error, qedasync.BackingError):
        return f"Could not open backing file: {_why_not(error, image or name)}"
    if isinstance(error, qedasync.UnsupportedFeature):
        return f"Unsupported QED features: {error.value:x}"
    if isinstance(error, qedasync.FormatError):
        return _FORMAT_ERRORS.get(error.field, str(error))
    if isinstance(error, qedasync.StorageError):
        return str(error.strerror)
    return str(error)


def _why_not(error: qedasync.BackingError, image: str) -> str:
    cause, path = error.__cause__, beside(image, error.name).removeprefix("file:")
    if isinstance(cause, qedasync.FormatError):
        return _foreign(error.name) if cause.field == "format" else explain(cause, path)
    if error.errno == errno.EISDIR:
        return f"'file' driver requires '{path}' to be a regular file"
    why = explain(cause, path) if isinstance(cause, qedasync.QEDError) else ""
    why = why or (os.strerror(error.errno) if error.errno else str(error))
    return f"Could not open '{path}': {why}"


def _foreign(name: str) -> str:
    return (
        f"'{name}' is an image of another format; --backing any, or --backing 'allow:{name}',"
        " opens it by means of qemu-nbd"
    )


def _refusal(name: str) -> str:
    if not is_path(name.removeprefix("file:")) and not nbd_uri(name):
        return (
            f"the backing file '{name}' is not a plain path; no policy of --backing allows it,"
            " but --image-opts can name another one"
        )
    return (
        f"the backing file '{name}' is not allowed by the policy; --backing any, or"
        f" --backing 'allow:{name}', opens it"
    )


def errno_of(error: BaseException) -> int:
    """The host's error number that an error stands for."""
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) and number else errno.EIO
