"""`longshore fluentd`: a Fluentd v1 configuration, run in the foreground by as many workers as it asks for."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from longshore.cli.main import UserError
from longshore.machinery import process
from longshore.machinery.run import run_part

log = logging.getLogger("longshore.fluentd")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", type=Path, required=True, help="the configuration file")
    parser.add_argument("--dry-run", action="store_true", help="read and check it only")


def run(arguments: argparse.Namespace) -> int:
    from longshore.node.logs.fluentd import config, pipeline
    from longshore.node.logs.fluentd.system import WORKER_ID, own_number, system_of

    folder = arguments.data_dir.absolute() / "fluentd"
    try:
        root = config.load(arguments.config)
        workers = system_of(root).workers
        for worker in range(workers) if WORKER_ID not in os.environ else (own_number(),):
            pipeline.Context(folder, None, "", worker=worker).build(root)
    except (config.ConfigError, OSError) as error:
        raise UserError(f"config error: {error}") from error
    if arguments.dry_run:
        return 0
    if workers > 1 and WORKER_ID not in os.environ:
        command = [sys.executable, "-m", "longshore", "fluentd", "--data-dir", str(arguments.data_dir.absolute())]
        command += ["-c", str(arguments.config.absolute())]
        return run_part(lambda: _supervise(command, workers, WORKER_ID))
    return run_part(lambda: pipeline.run(root, folder))


async def _supervise(command: list[str], workers: int, variable: str) -> None:
    """Keep the workers until cancelled; one that dies is started again."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(workers):
            tasks.create_task(_worker(command, {**os.environ, variable: str(number)}, number))


async def _worker(command: list[str], env: dict[str, str], number: int) -> None:
    while True:
        child = process.spawn(command, env=env)
        try:
            code = await child.wait()
        finally:
            child.send_signal(signal.SIGTERM)
            if child.returncode is None:
                try:
                    async with asyncio.timeout(10):
                        await child.wait()
                except TimeoutError:
                    child.kill()
                    await child.wait()
        log.warning("worker %d ended with %d and is started again", number, code)
        await asyncio.sleep(1)
