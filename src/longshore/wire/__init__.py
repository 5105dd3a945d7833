"""Byte formats as pure state machines: bytes in, events out, no I/O.

Door: each module names the specification it reads and writes. Does not belong here: sockets, files, clocks, threads.
"""
