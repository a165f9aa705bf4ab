"""Which backing files an image may name, and errors of the library in the words of QEMU's tools."""

from __future__ import annotations

import errno
import fnmatch
import os
from collections.abc import Callable
from typing import Any

import qedasync
from qedasync.cli.common import beside, is_path
from qedasync.cli.options import ToolError

__all__ = ["admit", "errno_of", "explain", "policy"]

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
    word = word or os.environ.get("QEDASYNC_BACKING") or "same-dir"
    if word == "deny":
        return _nothing
    if word == "same-dir":
        return "auto"
    if word == "any":
        return "any"
    if word.startswith("allow:"):
        return _allow(word.removeprefix("allow:"))
    raise ToolError(f"Invalid backing policy '{word}'; use deny, same-dir, allow:GLOB or any")


def _nothing(request: qedasync.BackingRequest) -> bool:
    return False


def _allow(pattern: str) -> Callable[[qedasync.BackingRequest], bool]:
    """Files whose path, or the name for them, is like the pattern; and those of the directory."""

    def allow(request: qedasync.BackingRequest) -> bool:
        names = (request.path, request.name)
        return _is_beside(request) or any(fnmatch.fnmatchcase(name, pattern) for name in names)

    return allow


def _is_beside(request: qedasync.BackingRequest) -> bool:
    directory = os.path.dirname(os.path.realpath(request.image_path))
    return os.path.dirname(request.path) == directory


def admit(name: str, path: str, image: str, word: str | None) -> None:
    """Let a name that an image has for its backing file pass, as the library does, or refuse it.

    Args:
        path: where it leads.
        word: the policy.

    Raises:
        BackingRefused: the policy forbids it.
    """
    rule = policy(word)
    request = qedasync.BackingRequest(name, os.path.realpath(path), image, 1)
    if callable(rule):
        allowed = rule(request)
    else:
        allowed = rule == "any" or _is_beside(request)
    if not allowed or not is_path(name.removeprefix("file:")):
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
        return explain(cause, path)
    if error.errno == errno.EISDIR:
        return f"'file' driver requires '{path}' to be a regular file"
    why = explain(cause, path) if isinstance(cause, qedasync.QEDError) else ""
    why = why or (os.strerror(error.errno) if error.errno else str(error))
    return f"Could not open '{path}': {why}"


def _refusal(name: str) -> str:
    if not is_path(name.removeprefix("file:")):
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
