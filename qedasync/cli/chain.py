"""The files below an image, by the names that they record."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from qedasync.cli.common import beside, is_path
from qedasync.cli.nodes import Access, Node, open_node

__all__ = ["chain_of", "is_in_chain", "is_same"]

_MAX_CHAIN = 64


async def chain_of(node: Node) -> AsyncIterator[tuple[str, str]]:
    """(an image's path, the path of its backing file), from the top down.

    The images are open already; only their headers are read again.
    """
    image = node.file
    below = getattr(node.disk, "backing_file", None)
    for _ in range(_MAX_CHAIN):
        if below is None or not is_path(below):
            return
        path = beside(image, below)
        yield image, path
        image, below = path, await _name_below(path)


async def _name_below(path: str) -> str | None:
    """The name of a file's backing file, if it is an image that has one."""
    found = await open_node(path, None, Access(force_share=True, no_backing=True, check=False))
    try:
        name: str | None = getattr(found.disk, "backing_file", None)
        return name
    finally:
        await found.close()


async def is_in_chain(node: Node, name: str) -> bool:
    """Whether a file is below an image."""
    async for _, path in chain_of(node):
        if is_same(path, name.removeprefix("file:")):
            return True
    return False


def is_same(path: str, other: str) -> bool:
    """Whether both lead to the same file."""
    return os.path.realpath(path) == os.path.realpath(other)
