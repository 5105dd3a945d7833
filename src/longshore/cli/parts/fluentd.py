"""`longshore fluentd`: a Fluentd v1 configuration, run in the foreground."""

from __future__ import annotations

import argparse
from pathlib import Path

from longshore.cli.main import UserError
from longshore.machinery.run import run_part


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", type=Path, required=True, help="the configuration file")
    parser.add_argument("--dry-run", action="store_true", help="read and check it only")


def run(arguments: argparse.Namespace) -> int:
    from longshore.node.logs.fluentd import config, pipeline

    folder = arguments.data_dir.absolute() / "fluentd"
    try:
        root = config.load(arguments.config)
        pipeline.Context(folder, None, "").build(root)
    except (config.ConfigError, OSError) as error:
        raise UserError(f"config error: {error}") from error
    if arguments.dry_run:
        return 0
    return run_part(lambda: pipeline.run(root, folder))
