"""`longshore etcd`: reads etcd's own flag names."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Serve, restore or move a store; its exit code."""
    from longshore.master.etcd.command import main as run

    return run(argv)
