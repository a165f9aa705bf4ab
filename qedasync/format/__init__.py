"""The QED format: bytes and integers in, values out. Pure: no I/O, no asyncio, no clock.

Import from the modules: ``header``, ``geometry``, ``table``, ``cluster``.
"""
