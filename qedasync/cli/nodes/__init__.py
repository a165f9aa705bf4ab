"""Names of images on the command line, and the stacks of files behind them."""

from qedasync.cli.nodes.layer import LoopNeeded
from qedasync.cli.nodes.opening import Access, Node, access_from, open_node, resolve_file
from qedasync.cli.nodes.policy import admit, errno_of, explain, policy

__all__ = [
    "Access",
    "LoopNeeded",
    "Node",
    "access_from",
    "admit",
    "errno_of",
    "explain",
    "open_node",
    "policy",
    "resolve_file",
]
