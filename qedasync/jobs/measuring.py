"""measure: how large a new image would be."""

from __future__ import annotations

import errno
import os
from typing import Literal, NamedTuple

from qedasync import Disk, parse_size
from qedasync.errors import RequestError
from qedasync.jobs.probing import Format, opened
from qedasync.jobs.runs import runs_from

__all__ = ["Measurement", "measure"]


class Measurement(NamedTuple):
    """Bytes of a new file.

    Attributes:
        required: with the content there is.
        fully_allocated: when everything has been written.
    """

    required: int
    fully_allocated: int


async def measure(
    source: Disk | int | str | os.PathLike[str],
    *,
    source_format: Format | None = None,
    format: Format = "qed",
    cluster_size: int | str = 65536,
    table_size: int = 4,
    backing: Literal["auto", "any"] | bool = "auto",
) -> Measurement:
    """How large a file a conversion would make.

    Args:
        source: a file, an open disk, or just so many guest bytes.
        source_format: ``"qed"`` or ``"raw"``; None looks at the file.
        format, cluster_size, table_size: of the new file.
        backing: policy for the source's backing files.

    Raises:
        RequestError: there is no such geometry. QEDError: the source cannot be read.
    """
    if format not in ("qed", "raw"):
        raise RequestError(f"the format is {format!r}; it must be 'qed' or 'raw'")
    cluster = parse_size(cluster_size)
    if isinstance(source, int):
        size = -(-source // 512) * 512
        _check(size, format, cluster, table_size)
        return _measured(size, None, format, cluster, table_size)
    async with opened(source, source_format, backing) as disk:
        _check(disk.size, format, cluster, table_size)
        used, tables = await _used(disk, cluster, table_size)
        return _measured(disk.size, (used, tables), format, cluster, table_size)


def _check(size: int, format: Format, cluster: int, table_size: int) -> None:
    """Whether there can be such an image."""
    if format == "raw":
        return
    if cluster & (cluster - 1) or not 4096 <= cluster <= 64 << 20:
        raise RequestError(f"There are no images with clusters of {cluster} bytes")
    if table_size & (table_size - 1) or not 1 <= table_size <= 16:
        raise RequestError(f"There are no images with tables of {table_size} clusters")
    if not 0 <= size <= (table_size * cluster // 8) ** 2 * cluster:
        raise RequestError(
            f"An image with clusters of {cluster} bytes and tables of {table_size} cannot have"
            f" {size} bytes",
            size=size,
            errno=errno.EFBIG,
        )


async def _used(disk: Disk, cluster: int, table_size: int) -> tuple[int, int]:
    """Clusters that hold data, and tables that are needed for them."""
    per_table = table_size * cluster // 8 * cluster
    clusters = tables = 0
    last_cluster = last_table = -1
    async for run in runs_from(disk, 0):
        if run.zero:
            continue
        first, last = run.start // cluster, (run.end - 1) // cluster
        clusters += last - max(first, last_cluster + 1) + 1
        last_cluster = last
        first, last = run.start // per_table, (run.end - 1) // per_table
        tables += last - max(first, last_table + 1) + 1
        last_table = last
    return clusters, tables


def _measured(
    size: int, used: tuple[int, int] | None, format: Format, cluster: int, table_size: int
) -> Measurement:
    if format == "raw":
        return Measurement(size, size)
    table = table_size * cluster
    all_clusters = -(-size // cluster)
    all_tables = -(-size // (table // 8 * cluster))
    fixed = cluster + table
    clusters, tables = used if used is not None else (0, 0)
    return Measurement(
        fixed + clusters * cluster + tables * table,
        fixed + all_clusters * cluster + all_tables * table,
    )
