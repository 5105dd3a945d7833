"""`longshore env`: shell words that point the clients at the cluster. Use: eval "$(longshore env)"."""

from __future__ import annotations

import argparse
import shlex

from longshore.cli.main import layout_of


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unset", action="store_true", help="words that undo it")


def run(arguments: argparse.Namespace) -> int:
    layout = layout_of(arguments)
    if arguments.unset:
        print("unset KUBECONFIG DOCKER_HOST CONTAINER_RUNTIME_ENDPOINT")
        return 0
    if layout.kubeconfig().exists():  # a machine that has joined another's cluster has no administrator's
        print(f"export KUBECONFIG={shlex.quote(str(layout.kubeconfig()))}")
    print(f"export DOCKER_HOST=unix://{shlex.quote(str(layout.docker_socket))}")
    return 0
