"""Benchmarks of images: a workload in fio's words, run on an open image, and its report.

Stands on the package's public names. The command ``qedasync bench`` is a thin user of this::

    from qedasync.bench import Pattern, Run, Workload

    async with qedasync.open("disk.qed") as image:
        result = await Run(image, Workload(rw=Pattern.RANDREAD).fitted(image.size)).run()
    print(result.reads.percentile(99))
"""

from __future__ import annotations

from qedasync.bench.histogram import Histogram
from qedasync.bench.image import make_image
from qedasync.bench.report import Report, format_size
from qedasync.bench.result import Result, Snapshot
from qedasync.bench.runner import Run
from qedasync.bench.stream import Stream, run_stream
from qedasync.bench.verify import VerifyFailed
from qedasync.bench.workload import MAX_IN_FLIGHT, Pattern, Workload

__all__ = [
    "Run",
    "Workload",
    "Pattern",
    "Stream",
    "run_stream",
    "MAX_IN_FLIGHT",
    "Result",
    "Snapshot",
    "Histogram",
    "Report",
    "VerifyFailed",
    "make_image",
    "format_size",
]
