"""`longshore down`: stop every part and every container, and take away what they made on the machine."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import time

from longshore.cli import cluster, control, hostnet, teardown
from longshore.cli.main import UserError, layout_of, need_root
from longshore.cli.supervisor import recorded_parts
from longshore.machinery.paths import Layout

STOP_SECONDS = 60.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--purge", action="store_true", help="remove the state as well: images, volumes, the store")


def run(arguments: argparse.Namespace) -> int:
    need_root("down")
    layout = layout_of(arguments)
    asyncio.run(down(layout, purge=arguments.purge))
    return 0


async def down(layout: Layout, *, purge: bool = False) -> None:
    """Stop and clean up; repeat it as often as you like."""
    if await control.ask(layout, "POST", "/stop") is not None:
        deadline = time.monotonic() + STOP_SECONDS
        while await control.is_running(layout) or recorded_parts(layout.run):
            if time.monotonic() > deadline:
                raise UserError(f"the parts do not end; their words are in {layout.logs}")
            await asyncio.sleep(0.02)
    config = cluster.load(layout)
    await teardown.take_away(layout, config)
    if config is not None:
        hostnet.tear_down(layout, config)
    shutil.rmtree(layout.run, ignore_errors=True)
    if purge:
        shutil.rmtree(layout.data, ignore_errors=True)
