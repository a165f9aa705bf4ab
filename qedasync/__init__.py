"""qedasync: an asyncio block-driver engine for QED disk images.

::

    import qedasync

    await qedasync.create("disk.qed", "10G")
    async with qedasync.open("disk.qed", "r+") as disk:
        await disk.pwrite(b"hello", 4096)
        data = await disk.pread(5, 4096)
        await disk.flush()

The names below are the public ones. They are imported at first use, so that a program that only
prints its version need not wait for asyncio.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qedasync import errors
from qedasync.errors import *  # noqa: F403

if TYPE_CHECKING:
    from qedasync.blocking import BlockingImage, BlockingRaw
    from qedasync.check import CheckResult
    from qedasync.create import create
    from qedasync.disk import Disk, DiskStorage
    from qedasync.engine.extents import Extent, ExtentKind
    from qedasync.engine.stats import Stats
    from qedasync.events import Event
    from qedasync.facts import DiskFacts
    from qedasync.format.header import Features
    from qedasync.format.magic import identify
    from qedasync.image import Image
    from qedasync.image import open_image as open
    from qedasync.jobs.comparing import CompareResult, compare
    from qedasync.jobs.converting import convert
    from qedasync.jobs.copying import CopyResult
    from qedasync.jobs.measuring import Measurement, measure
    from qedasync.jobs.probing import ImageInfo, probe
    from qedasync.policy import BackingRequest
    from qedasync.raw import RawImage, open_raw
    from qedasync.storage.base import Storage, StorageBase, Write
    from qedasync.storage.locks import LockRole
    from qedasync.storage.memory import MemoryStorage
    from qedasync.storage.opener import open_storage
    from qedasync.units import parse_size
    from qedasync.waiting import Opening

__version__ = "0.1.0.dev0"

__all__ = [
    "open",
    "create",
    "convert",
    "compare",
    "measure",
    "probe",
    "identify",
    "Image",
    "Opening",
    "open_raw",
    "RawImage",
    "Disk",
    "CheckResult",
    "CopyResult",
    "CompareResult",
    "Measurement",
    "ImageInfo",
    "DiskFacts",
    "BlockingImage",
    "BlockingRaw",
    "Extent",
    "ExtentKind",
    "Stats",
    "Features",
    "BackingRequest",
    "Storage",
    "StorageBase",
    "Write",
    "MemoryStorage",
    "DiskStorage",
    "open_storage",
    "LockRole",
    "Event",
    "parse_size",
    "errors",
    *(name for name in errors.__all__ if name != "storage_error"),
]

_HOMES = {
    "open": "image.open_image",
    "create": "create.create",
    "Image": "image.Image",
    "Opening": "waiting.Opening",
    "open_raw": "raw.open_raw",
    "RawImage": "raw.RawImage",
    "Disk": "disk.Disk",
    "DiskStorage": "disk.DiskStorage",
    "Write": "storage.base.Write",
    "open_storage": "storage.opener.open_storage",
    "LockRole": "storage.locks.LockRole",
    "Event": "events.Event",
    "convert": "jobs.converting.convert",
    "compare": "jobs.comparing.compare",
    "measure": "jobs.measuring.measure",
    "probe": "jobs.probing.probe",
    "CopyResult": "jobs.copying.CopyResult",
    "CompareResult": "jobs.comparing.CompareResult",
    "Measurement": "jobs.measuring.Measurement",
    "ImageInfo": "jobs.probing.ImageInfo",
    "CheckResult": "check.CheckResult",
    "DiskFacts": "facts.DiskFacts",
    "BlockingImage": "blocking.BlockingImage",
    "BlockingRaw": "blocking.BlockingRaw",
    "Extent": "engine.extents.Extent",
    "ExtentKind": "engine.extents.ExtentKind",
    "Stats": "engine.stats.Stats",
    "Features": "format.header.Features",
    "identify": "format.magic.identify",
    "BackingRequest": "policy.BackingRequest",
    "Storage": "storage.base.Storage",
    "StorageBase": "storage.base.StorageBase",
    "MemoryStorage": "storage.memory.MemoryStorage",
    "parse_size": "units.parse_size",
}


class _Package(ModuleType):
    """This package: finds a public name where it lives, once.

    Importing the module ``qedasync.create`` would put the module where the function of that name
    belongs; it is not let in.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module, _, own_name = _HOMES[name].rpartition(".")
        value = getattr(import_module(f"{__name__}.{module}"), own_name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
