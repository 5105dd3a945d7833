"""The `longshore` command: each subcommand is a module with `configure(parser)` and `run(arguments)`.

Modules are imported only when they are asked for, so that a part's process carries nothing of the others.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from longshore import __version__
from longshore.machinery.paths import DATA_DIR, RUN_DIR, Layout

T = TypeVar("T")

#: name -> (module, one line of help); in the order in which help shows them.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("longshore.cli.up", "start a cluster on this machine and wait until its nodes are Ready"),
    "token": ("longshore.cli.token", "bootstrap tokens, with which other machines join"),
    "join": ("longshore.cli.join", "make this machine a node of another machine's cluster"),
    "leave": ("longshore.cli.leave", "take this machine's node out of the cluster that it has joined"),
    "down": ("longshore.cli.down", "stop it; nothing stays but its state (--purge takes that too)"),
    "status": ("longshore.cli.status", "every part: pid, memory, health"),
    "env": ("longshore.cli.env", "how to point kubectl, docker and others at it"),
    "demo": ("longshore.cli.demo", "take the sample application the whole way: build, ship, run, ask"),
    "logs": ("longshore.cli.logs", "query the logs of containers: LogQL, or kind/name"),
    "simulate": ("longshore.cli.simulate", "nodes without machines; what-if questions about a cluster"),
    "engine": ("longshore.cli.parts.engine", "the container engine: Docker API, CRI, builds, registry"),
    "apiserver": ("longshore.cli.parts.apiserver", "the API server on its embedded store"),
    "etcd": ("longshore.cli.parts.etcd", "the embedded store as etcd v3; restore and move stores"),
    "manager": ("longshore.cli.parts.manager", "scheduler and controllers"),
    "node": ("longshore.cli.parts.node", "kubelet, proxy, DNS and log collector of one node"),
    "fluentd": ("longshore.cli.parts.fluentd", "run a Fluentd v1 configuration in the foreground"),
    "registry": ("longshore.cli.parts.registry", "the registry alone"),
    "supervise": ("longshore.cli.supervise", "run the parts in the foreground (what `up` starts)"),
}
#: Parts that read their own flags, with upstream's names.
OWN_FLAGS = frozenset({"apiserver", "etcd"})


def add_layout(parser: argparse.ArgumentParser) -> None:
    """--data-dir and --run-dir: where one cluster has its state and its sockets."""
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="state (default %(default)s)")
    parser.add_argument("--run-dir", type=Path, default=RUN_DIR, help="sockets and pids (default %(default)s)")


def layout_of(arguments: argparse.Namespace) -> Layout:
    return Layout(arguments.data_dir.absolute(), arguments.run_dir.absolute())


def need_root(command: str) -> None:
    """Raises UserError when the caller is not root."""
    if os.geteuid() != 0:
        raise UserError(f"`{command}` needs root: it works on namespaces, mounts and network rules")


def complete(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine on uvloop; its result."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def progress(quiet: bool) -> Callable[[str], None]:
    """What prints a line with the seconds since now; nothing when quiet."""
    started = time.monotonic()

    def say(words: str) -> None:
        if not quiet:
            print(f"{time.monotonic() - started:6.2f}s  {words}", flush=True)

    return say


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in OWN_FLAGS:
        return int(importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:]))
    parser = argparse.ArgumentParser(prog="longshore", description="Docker and Kubernetes in one Python package.")
    parser.add_argument("--version", action="version", version=f"longshore {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = argv[0] if argv and argv[0] in COMMANDS else None
    for name, (module_name, words) in COMMANDS.items():
        sub = commands.add_parser(name, help=words, description=words)
        if name == wanted:
            module = importlib.import_module(module_name)
            add_layout(sub)
            module.configure(sub)
            sub.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        print(f"longshore: {error}", file=sys.stderr)
        return 1


class UserError(Exception):
    """What a person can mend: said in one line, without a traceback."""
