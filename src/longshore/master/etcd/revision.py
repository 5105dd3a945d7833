"""Revisions and the log's row numbers.

A transaction has one main revision; its changes are numbered from 0 below it. A row of the log is both in one number,
so that the log's primary key is the order of history.
"""

from __future__ import annotations

SUB_BITS = 20
MAX_CHANGES = 1 << SUB_BITS
"""Changes in one transaction."""


def row_of(revision: int, sub: int = 0) -> int:
    return revision << SUB_BITS | sub


def revision_of(row: int) -> int:
    return row >> SUB_BITS


def last_row_of(revision: int) -> int:
    """The highest row that belongs to this revision or an earlier one."""
    return ((revision + 1) << SUB_BITS) - 1
