"""Jobs on whole disks: convert, compare, measure, probe; on public names only."""

from qedasync.jobs.comparing import CompareResult, Unreadable, compare
from qedasync.jobs.converting import convert, give_name, new_file, part_beside
from qedasync.jobs.copying import CopyResult, copy
from qedasync.jobs.measuring import Measurement, measure
from qedasync.jobs.probing import ImageInfo, probe

__all__ = [
    "convert",
    "compare",
    "measure",
    "probe",
    "copy",
    "new_file",
    "part_beside",
    "give_name",
    "CopyResult",
    "CompareResult",
    "Measurement",
    "ImageInfo",
    "Unreadable",
]
