"""What changes an image's place in its chain: its backing file's name, and what it holds itself.

:func:`rebase` puts an image on another backing file (or on none), :func:`commit` moves what an
image holds down into its backing file, :func:`change_name` only writes a name. All of them keep one
promise: the image reads the same before, during and after, whoever is killed when; guests read and
write meanwhile. They hold ``Engine.job``, so one of them works on an image at a time.
"""

from qedasync.chain.commit import commit
from qedasync.chain.name import change_name, plan_name
from qedasync.chain.rebase import rebase
from qedasync.chain.walk import Progress

__all__ = ["rebase", "commit", "change_name", "plan_name", "Progress"]
