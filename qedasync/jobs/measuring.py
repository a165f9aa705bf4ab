"""measure: how large a new image would be."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from qedasync import Disk, parse_size
from qedasync.errors import RequestError
from qedasync.jobs.probing import Format, opened

__all__ = ["Measurement", "measure"]

_MAP_STEP = 1 << 30


@dataclass(frozen=True, slots=True)
class Measurement:
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
    cluster = parse_size(cluster_size)
    if format == "qed" and (cluster < 4096 or cluster & (cluster - 1) or table_size < 1):
        raise RequestError(f"There are no images with clusters of {cluster} bytes")
    if isinstance(source, int):
        return _measured(-(-source // 512) * 512, None, format, cluster, table_size)
    async with opened(source, source_format, backing) as disk:
        used, tables = await _used(disk, cluster, table_size)
        return _measured(disk.size, (used, tables), format, cluster, table_size)


async def _used(disk: Disk, cluster: int, table_size: int) -> tuple[int, int]:
    """Clusters that hold data, and tables that are needed for them."""
    per_table = table_size * cluster // 8 * cluster
    clusters = tables = 0
    last_cluster = last_table = -1
    pos = 0
    while pos < disk.size:
        runs = await disk.block_status(pos, min(_MAP_STEP, disk.size - pos))
        for run in runs:
            if run.zero:
                continue
            first, last = run.start // cluster, (run.end - 1) // cluster
            clusters += last - max(first, last_cluster + 1) + 1
            last_cluster = last
            first, last = run.start // per_table, (run.end - 1) // per_table
            tables += last - max(first, last_table + 1) + 1
            last_table = last
        pos = runs[-1].end
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
