"""Open the stack of files that a name means, from the bottom up."""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import qedasync
from qedasync.cli.nodes.copy_on_read import CopyOnRead
from qedasync.cli.nodes.spec import Spec, parse_image_opts, parse_name
from qedasync.cli.options import Parsed, ToolError

if TYPE_CHECKING:
    from qedasync.cli.nodes.blkdebug import BlkdebugStorage

__all__ = ["Access", "Node", "access_from", "open_node", "resolve_file"]

FORMATS = ("qed", "raw")
PROTOCOLS = ("file", "host_device", "host_cdrom", "blkdebug", "nbd")

_CACHES = {  # word -> (past the page cache, every write durable, flushes)
    "none": (True, False, True),
    "writeback": (False, False, True),
    "unsafe": (False, False, False),
    "directsync": (True, True, True),
    "writethrough": (False, True, True),
}

_GENERIC = {
    "driver",
    "node-name",
    "read-only",
    "auto-read-only",
    "cache",
    "discard",
    "detect-zeroes",
    "force-share",
}
_KNOWN = {
    "qed": {"file", "backing"},
    "raw": {"file", "offset", "size"},
    "file": {"filename", "locking", "aio", "aio-max-batch", "drop-cache", "x-check-cache-dropped"},
    "host_device": {"filename", "locking", "aio", "drop-cache", "x-check-cache-dropped"},
    "host_cdrom": {"filename", "locking", "aio", "drop-cache", "x-check-cache-dropped"},
    "nbd": {"uri"},
    "blkdebug": {
        "image", "x-image", "config", "align", "inject-error", "set-state", "max-transfer",
        "opt-write-zero", "max-write-zero", "opt-discard", "max-discard", "take-child-perms",
        "unshare-child-perms",
    },
}  # fmt: skip

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


@dataclass(frozen=True, slots=True)
class Access:
    """How a verb wants to open an image.

    Attributes:
        writable: for writing too.
        cache: qemu-img's word.
        force_share: take no locks.
        backing: ``"deny"``, ``"same-dir"``, ``"allow:GLOB"`` or ``"any"``; None for what
            ``QEDASYNC_BACKING`` says, or the library's default.
        no_backing: leave the backing file closed.
        write_backing: open a backing file that the options give for writing, too.
        copy_on_read: what is read from a backing file is written to the image.
        check: repair an image that was not closed cleanly, before the first write.
    """

    writable: bool = False
    cache: str = "writeback"
    force_share: bool = False
    backing: str | None = None
    no_backing: bool = False
    write_backing: bool = False
    copy_on_read: bool = False
    check: bool = True


@dataclass(slots=True)
class Node:
    """An open stack.

    Attributes:
        disk: what is read and written.
        format: ``"qed"``, ``"raw"``, or the protocol's name if that was asked for.
        filename: as QEMU reports it.
        spec: the options it was opened with.
        allocated: bytes that the file takes on the host; None where nobody can tell.
        debug: the blkdebug in the stack, if there is one.
        file: path of the file at the bottom, "" if it is none.
    """

    disk: Any
    format: str
    filename: str
    spec: Spec
    allocated: int | None
    debug: BlkdebugStorage | None
    file: str

    async def close(self) -> None:
        """Release it all."""
        await self.disk.close()


def access_from(parsed: Parsed, **fields: Any) -> Access:
    """What the options that all verbs share say, and what the verb says itself."""
    fields.setdefault("force_share", parsed.has("force-share"))
    fields.setdefault("backing", parsed.last("backing"))
    return Access(**fields)


async def open_node(
    name: str, fmt: str | None, access: Access, *, image_opts: bool = False
) -> Node:
    """Open what a name means.

    Args:
        fmt: the format; looked for if None.
        image_opts: the name is options.

    Raises:
        ToolError: it cannot be opened; in QEMU's words.

    Cancellation: nothing stays open.
    """
    try:
        spec = parse_image_opts(name) if image_opts else parse_name(name)
        return await _open(spec, fmt, access, name, plain=not image_opts)
    except ToolError as error:
        raise ToolError(f"Could not open '{name}': {error}", error.code) from error
    except qedasync.QEDError as error:
        raise ToolError(f"Could not open '{name}': {explain(error, name)}") from error


def explain(error: qedasync.QEDError, name: str) -> str:
    """An error of the library in the words of QEMU's tools."""
    if isinstance(error, qedasync.BackingRefused):
        return (
            f"the backing file '{error.name}' is not allowed by the policy; --backing any, or"
            f" --backing 'allow:{error.name}', opens it"
        )
    if isinstance(error, qedasync.BackingError):
        cause = error.__cause__
        why = explain(cause, error.name) if isinstance(cause, qedasync.QEDError) else None
        why = why or (os.strerror(error.errno) if error.errno else str(error))
        return f"Could not open backing file: Could not open '{error.name}': {why}"
    if isinstance(error, qedasync.UnsupportedFeature):
        return f"Unsupported QED features: {error.value:x}"
    if isinstance(error, qedasync.FormatError):
        return _FORMAT_ERRORS.get(error.field, str(error))
    if isinstance(error, qedasync.StorageError):
        return str(error.strerror)
    return str(error)


# ---------------------------------------------------------------------- opening


@dataclass(slots=True)
class _Bottom:
    """An open protocol node."""

    storage: qedasync.Storage
    driver: str
    filename: str
    exact: bool  # whether the plain name says it all
    allocated: int | None
    debug: BlkdebugStorage | None
    file: str


async def _open(spec: Spec, fmt: str | None, access: Access, name: str, *, plain: bool) -> Node:
    driver = spec.get("driver")
    if driver is not None and not isinstance(driver, str):
        raise ToolError("Parameter 'driver' expects a string")
    if driver is not None and fmt is not None and driver != fmt:
        raise ToolError("Driver specified twice")
    driver = driver or fmt
    if driver is not None and driver not in FORMATS and driver not in PROTOCOLS:
        raise ToolError(f"Unknown driver '{driver}'")
    access = _with_options(spec, access)
    if driver in PROTOCOLS and (spec.get("driver") is not None or "file" not in spec):
        bottom = await _open_protocol({**spec, "driver": driver}, access, raw=True)
        disk = await _raw_disk(bottom.storage, bottom.filename, access)
        return _node(disk, driver, bottom, spec, name)
    if driver in PROTOCOLS:
        bottom = await _open_file(spec, access, raw=True)
        disk = await _raw_disk(bottom.storage, bottom.filename, access)
        return _node(disk, driver, bottom, spec, name)
    if "file" not in spec:
        if driver is None:
            raise ToolError("Must specify either driver or file")
        raise ToolError('A block device must be specified for "file"')
    if driver is not None:
        _check_known(driver, spec)
    return await _open_format(spec, driver, access, name)


def _with_options(spec: Spec, access: Access) -> Access:
    """What the options say of the way to open it."""
    if _is_on(spec, "read-only"):
        if access.writable:
            raise ToolError("Block node is read-only")
    if _is_on(spec, "force-share"):
        access = Access(**{**_fields(access), "force_share": True})
    if access.force_share and access.writable:
        raise ToolError("force-share=on can only be used with read-only images")
    return access


def _fields(access: Access) -> dict[str, Any]:
    return {key: getattr(access, key) for key in Access.__dataclass_fields__}


def _is_on(spec: Mapping[str, Any], key: str) -> bool:
    value = spec.get(key, False)
    if value in (True, "on", "yes", "true", "y"):
        return True
    if value in (False, "off", "no", "false", "n"):
        return False
    raise ToolError(f"Parameter '{key}' expects 'on' or 'off'")


def _check_known(driver: str, spec: Spec) -> None:
    for key in spec:
        if key not in _GENERIC and key not in _KNOWN[driver]:
            if driver in FORMATS:
                raise ToolError(f"Block format '{driver}' does not support the option '{key}'")
            raise ToolError(f"Block protocol '{driver}' doesn't support the option '{key}'")


async def _open_format(spec: Spec, driver: str | None, access: Access, name: str) -> Node:
    bottom = await _open_file(spec, access, raw=driver == "raw")
    try:
        fmt = driver or await _probe(bottom.storage)
        if driver is None:
            _check_known(fmt, spec)
        if fmt == "raw":
            disk = await _raw_disk(_window(bottom.storage, spec), bottom.filename, access)
        else:
            disk = await _qed_disk(spec, bottom, access)
    except BaseException:
        await bottom.storage.close()
        raise
    return _node(disk, fmt, bottom, spec, name)


async def _open_file(spec: Spec, access: Access, *, raw: bool) -> _Bottom:
    """The ``file`` child; it may be a format itself."""
    child = spec["file"]
    if not isinstance(child, dict):
        raise ToolError(f"Cannot find device='{child}' nor node-name='{child}'")
    driver = child.get("driver", "file" if "filename" in child else None)
    if driver in FORMATS:
        inner = await _open(dict(child), None, access, "", plain=False)
        storage = qedasync.DiskStorage(inner.disk)
        return _Bottom(
            storage, str(driver), inner.filename, False, inner.allocated, inner.debug, inner.file
        )
    if driver is None:
        raise ToolError("Must specify either driver or file")
    if driver not in PROTOCOLS:
        raise ToolError(f"Unknown driver '{driver}'")
    return await _open_protocol({**child, "driver": driver}, access, raw=raw)


async def _open_protocol(spec: Spec, access: Access, *, raw: bool) -> _Bottom:
    driver = spec["driver"]
    if driver == "blkdebug":
        return await _open_blkdebug(spec, access, raw=raw)
    _check_known(driver, spec)
    if driver == "nbd":
        from qedasync import nbd

        client = await nbd.connect(str(spec.get("uri", "")))
        return _Bottom(qedasync.DiskStorage(client), "nbd", client.path, True, None, None, "")
    filename = spec.get("filename")
    if not isinstance(filename, str) or not filename:
        raise ToolError(f"The '{driver}' block driver requires a file name")
    _check_kind(driver, filename, access)
    direct = _CACHES[access.cache][0]
    try:
        storage = await qedasync.open_storage(
            filename,
            writable=access.writable,
            direct=direct,
            lock=_lock(spec, access, raw=raw),
        )
    except qedasync.ImageLocked as error:
        raise ToolError(_lock_message(error, filename)) from error
    except qedasync.StorageError as error:
        reason = os.strerror(error.errno) if error.errno else str(error.strerror)
        raise ToolError(f"Could not open '{filename}': {reason}") from error
    exact = set(spec) <= {"driver", "filename"}
    allocated = os.stat(filename).st_blocks * 512
    return _Bottom(storage, driver, filename, exact, allocated, None, filename)


def _check_kind(driver: str, filename: str, access: Access) -> None:
    """The refusals of a driver that is not for this kind of file."""
    try:
        mode = os.stat(filename).st_mode
    except OSError:
        return  # for the opening to report
    if stat.S_ISDIR(mode) and access.writable:
        return  # likewise: the host opens a directory only for reading
    if driver == "file" and not stat.S_ISREG(mode):
        if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
            return
        raise ToolError(f"'file' driver requires '{filename}' to be a regular file")
    if driver in ("host_device", "host_cdrom") and not stat.S_ISBLK(mode):
        raise ToolError(
            f"'{driver}' driver requires '{filename}' to be either a character or block device"
        )


def _lock(spec: Spec, access: Access, *, raw: bool) -> qedasync.LockRole | None:
    if access.force_share or spec.get("locking") == "off":
        return None
    if access.writable:
        role = qedasync.LockRole
        return role.RAW_READ_WRITE if raw else role.READ_WRITE
    return qedasync.LockRole.INFO if access.no_backing else qedasync.LockRole.READ_ONLY


def _lock_message(error: qedasync.ImageLocked, filename: str) -> str:
    """QEMU's words, which say what was asked for and not granted."""
    text = str(error.strerror)
    if "has locked it" in text:
        return "Failed to lock byte 100"
    shared = "" if "forbids this use" in text else "shared "
    hint = f"Is another process using the image [{filename}]?"
    return f'Failed to get {shared}"write" lock {hint}'


async def _open_blkdebug(spec: Spec, access: Access, *, raw: bool) -> _Bottom:
    from qedasync.cli.nodes.blkdebug import BlkdebugStorage, rules_of

    _check_known("blkdebug", spec)
    rules = rules_of(spec)
    image = spec.get("image", spec.get("x-image"))
    if image is None:
        raise ToolError('A block device must be specified for "image"')
    if isinstance(image, str):
        if "image" in spec:
            raise ToolError(f"Cannot find device='{image}' nor node-name='{image}'")
        image = parse_name(image)["file"]
    below = await _open_file({"file": image}, access, raw=raw)
    storage = BlkdebugStorage(below.storage, rules)
    plain = below.exact and set(spec) <= {"driver", "image", "config"}
    filename = f"blkdebug:{spec.get('config', '')}:{below.filename}"
    return _Bottom(storage, "blkdebug", filename, plain, None, storage, below.file)


async def _probe(storage: qedasync.Storage) -> str:
    head = bytearray(4)
    await storage.read_into([head], 0, qedasync.Event.HEADER_LOAD)
    return "qed" if head == b"QED\0" else "raw"


# ------------------------------------------------------------------------ disks


def _cache_for_disk(access: Access) -> Literal["writeback", "writethrough", "unsafe"]:
    _, through, flushes = _CACHES[access.cache]
    return "writethrough" if through else "writeback" if flushes else "unsafe"


async def _raw_disk(storage: qedasync.Storage, path: str, access: Access) -> Any:
    mode: Literal["r", "r+"] = "r+" if access.writable else "r"
    return await qedasync.open_raw(path, mode, cache=_cache_for_disk(access), storage=storage)


async def _qed_disk(spec: Spec, bottom: _Bottom, access: Access) -> Any:
    mode: Literal["r", "r+"] = "r+" if access.writable else "r"
    backing = await _backing(spec, access)
    disk: Any = await qedasync.open(
        bottom.file or bottom.filename,
        mode,
        cache=_cache_for_disk(access),
        storage=bottom.storage,
        lock=not access.force_share,
        check="auto" if access.check else "never",
        backing=backing,
    )
    return CopyOnRead(disk) if access.copy_on_read and access.writable else disk


async def _backing(spec: Spec, access: Access) -> Any:
    """The policy for the backing file, or the disk that takes its place."""
    if "backing" in spec:
        child = spec["backing"]
        if child is None or child == "":
            return False
        if not isinstance(child, dict):
            raise ToolError(f"Cannot find device='{child}' nor node-name='{child}'")
        below = Access(
            writable=access.write_backing,
            cache=access.cache,
            force_share=access.force_share,
            backing=access.backing,
        )
        node = await _open(dict(child), None, below, "", plain=False)
        return node.disk
    if access.no_backing:
        return False
    return policy(access.backing)


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
    def allow(request: qedasync.BackingRequest) -> bool:
        return fnmatch.fnmatchcase(request.path, pattern) or fnmatch.fnmatchcase(
            request.name, pattern
        )

    return allow


def _window(storage: qedasync.Storage, spec: Spec) -> qedasync.Storage:
    """The part of a file that a raw node's ``offset`` and ``size`` mean."""
    if "offset" not in spec and "size" not in spec:
        return storage
    from qedasync.cli.nodes.window import Window
    from qedasync.cli.sizes import size_word

    offset = size_word("offset", str(spec.get("offset", "0")))
    if offset > storage.size:
        raise ToolError(f"The size of the containing file ({storage.size}) is less than the offset")
    room = storage.size - offset
    size = size_word("size", str(spec["size"])) if "size" in spec else room - room % 512
    if size % 512:
        raise ToolError("Specified size is not multiple of 512")
    if size > room:
        raise ToolError(
            f"The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the"
            f" actual size of the containing file ({storage.size})"
        )
    return Window(storage, offset, size)


# --------------------------------------------------------------------- its name


def _node(disk: Any, fmt: str, bottom: _Bottom, spec: Spec, name: str) -> Node:
    own = set(spec) - {"driver", "file", "backing"} - (_GENERIC - {"driver"})
    simple = bottom.exact and (not own or fmt in PROTOCOLS) and "backing" not in spec
    if simple:
        filename = bottom.filename
        if name.startswith("file:") and name.removeprefix("file:") == filename:
            filename = filename
    else:
        filename = "json:" + _json({"driver": fmt, **spec})
    return Node(disk, fmt, filename, spec, bottom.allocated, bottom.debug, bottom.file)


def _json(value: object) -> str:
    import json

    return json.dumps(value)


def resolve_file(name: str) -> str:
    """The path of the file that a name would make.

    Raises:
        ToolError: it is no plain file's name.
    """
    spec = parse_name(name)
    child = spec.get("file")
    if not isinstance(child, dict) or child.get("driver", "file") != "file":
        driver = child.get("driver") if isinstance(child, dict) else spec.get("driver")
        raise ToolError(f"Driver '{driver}' does not support image creation")
    return str(child.get("filename", ""))


def errno_of(error: BaseException) -> int:
    """The host's error number that an error stands for."""
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) and number else errno.EIO
