"""The log store: compressed blocks in segment files, an index in SQLite.

A block holds whole CRI-format records of one stream (one container's log). A block and the collector's checkpoint that
goes with it become visible in one transaction, so that a kill -9 at any moment neither loses nor repeats a line.
"""
