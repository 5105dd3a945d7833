"""`longshore status`: every part, its pid, memory and health."""

from __future__ import annotations

import argparse
import asyncio

import orjson

from longshore.cli import control
from longshore.cli.cluster import load
from longshore.cli.main import layout_of


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0 when every part is well, 1 when one is not, 3 when nothing runs."""
    layout = layout_of(arguments)
    found = asyncio.run(control.status(layout))
    if found is None:
        if arguments.output == "json":
            print('{"running":false,"parts":[]}')
        else:
            print("Longshore is not running.")
        return 3
    config = load(layout)
    parts = found["parts"]
    well = all(part["health"] == "ok" for part in parts)
    if arguments.output == "json":
        total = sum(part["memoryBytes"] for part in parts)
        answer = {"running": True, "healthy": well, "server": config.server if config else None, "memoryBytes": total}
        print(orjson.dumps({**answer, "parts": parts}, option=orjson.OPT_INDENT_2).decode())
        return 0 if well else 1
    width = max(len(part["name"]) for part in parts)
    print(f"{'PART':{width}}  {'PID':>7}  {'MEMORY':>8}  RESTARTS  HEALTH")
    for part in parts:
        memory = f"{part['memoryBytes'] / 2**20:.1f}M"
        print(
            f"{part['name']:{width}}  {part['pid'] or '-':>7}  {memory:>8}  {part.get('restarts', 0):>8}  {part['health']}"
        )
    if config:
        print(f"\n{config.server}, registry localhost:{config.registry_port}, docker unix://{layout.docker_socket}")
    return 0 if well else 1
