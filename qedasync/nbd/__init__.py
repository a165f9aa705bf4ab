"""NBD: serve disks to the world, and reach one elsewhere.

::

    async with qedasync.open("disk.qed", "r+") as disk:
        async with nbd.serve({"disk": disk}, path="/tmp/disk.sock") as server:
            print(server.uri("disk"))
            await server.wait_closed()

    async with nbd.connect("nbd://host/disk") as disk:
        data = await disk.pread(512, 0)
"""

from qedasync.nbd.client import Client, connect, list_exports
from qedasync.nbd.client_handshake import Listed
from qedasync.nbd.counters import Counters
from qedasync.nbd.export import Export
from qedasync.nbd.foreign import FOREIGN_FORMATS, ForeignImage, backing, foreign
from qedasync.nbd.server import Limits, Server, serve
from qedasync.nbd.tls import allow_names, client_context, server_context
from qedasync.nbd.uri import Address, is_nbd_uri, parse_uri

__all__ = [
    "serve",
    "connect",
    "list_exports",
    "foreign",
    "backing",
    "Server",
    "Client",
    "ForeignImage",
    "FOREIGN_FORMATS",
    "Export",
    "Limits",
    "Counters",
    "Listed",
    "server_context",
    "client_context",
    "allow_names",
    "parse_uri",
    "is_nbd_uri",
    "Address",
]
