"""`longshore simulate`: nodes without machines, and what-if questions that are answered on a copy of a cluster."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.cli.main import UserError, complete, layout_of
from longshore.machinery.errors import StatusError

if TYPE_CHECKING:
    from longshore.client.config import Config
    from longshore.simulate.cell import Cell

Answer = Callable[["Cell", argparse.Namespace], Coroutine[Any, Any, tuple[str, str]]]


def configure(parser: argparse.ArgumentParser) -> None:
    modes = parser.add_subparsers(dest="mode", metavar="QUESTION", required=True)

    def mode(name: str, words: str) -> argparse.ArgumentParser:
        made = modes.add_parser(name, help=words, description=words)
        made.add_argument("--kubeconfig", type=Path, help="the cluster (default: $KUBECONFIG, this machine's cluster)")
        return made

    nodes = mode("nodes", "run simulated nodes on a cluster until interrupted")
    nodes.add_argument("--count", type=int, required=True, help="how many")
    nodes.add_argument("--name", default="simulated", help="beginning of their names (default %(default)s)")
    nodes.add_argument("--cpu", default="32", help="of each node (default %(default)s)")
    nodes.add_argument("--memory", default="128Gi", help="of each node (default %(default)s)")
    nodes.add_argument("--pods", type=int, default=110, help="most pods of each node (default %(default)s)")
    nodes.add_argument("--zones", type=int, default=3, help="zones to spread them over (default %(default)s)")
    nodes.add_argument(
        "--taint", action="append", default=[], metavar="KEY=VALUE:EFFECT", help="keeps others' pods off"
    )
    nodes.add_argument("--rules", type=Path, help="a file that says what their pods do (docs/simulate.md)")
    nodes.add_argument("--heartbeat", type=float, default=15.0, help="seconds between lease renewals, 0: none")
    nodes.add_argument("--remove", action="store_true", help="delete the Node objects at the end")

    def question(name: str, words: str) -> argparse.ArgumentParser:
        made = mode(name, words)
        made.add_argument("--from", dest="files", type=Path, action="append", metavar="FILE",
                          help="ask about the objects in a JSON or YAML file instead of a running cluster")  # fmt: skip
        made.add_argument("--scheduler-config", type=Path, help="a KubeSchedulerConfiguration file")
        made.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the answer")
        return made

    fit = question("fit", "how many more of a pod fit")
    fit.add_argument("--pod", type=Path, required=True, metavar="FILE", help="a Pod, or a workload with a pod template")
    fit.add_argument("--count", type=int, default=0, help="stop at so many")
    fit.add_argument("--namespace", "-n", default="default", help="where the file names none (default %(default)s)")
    drain = question("drain", "which pods move where if these nodes go, and which fit nowhere")
    drain.add_argument("nodes", nargs="+", metavar="NODE")
    compact = question("compact", "how few nodes hold the workload (Borg's cell compaction)")
    compact.add_argument("--selector", "-l", default="", help="labels of the nodes that make up the cell")
    compact.add_argument("--pod-selector", default="", help="labels of the pods that make up the workload")
    compact.add_argument("--trials", type=int, default=11, help="random orders of removal (default %(default)s)")
    compact.add_argument("--seed", type=int, help="the same orders each time")
    compact.add_argument("--order", choices=("size", "queue"), default="size",
                         help="the widest pods first, or as the scheduler's queue gives them (default %(default)s)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    from longshore.client.config import ConfigError
    from longshore.machinery.http import ClientError
    from longshore.machinery.quantity import QuantityError
    from longshore.machinery.selectors import SelectorError
    from longshore.master.scheduler.configuration import ConfigurationError
    from longshore.simulate.rules import RulesError
    from longshore.simulate.snapshot import SnapshotError

    known = (
        ConfigError, ConfigurationError, RulesError, SnapshotError, QuantityError, SelectorError, StatusError,
        ClientError, OSError,
    )  # fmt: skip
    work = _nodes(arguments) if arguments.mode == "nodes" else _ask(ANSWERS[arguments.mode], arguments)
    try:
        complete(work)
    except (*known, ExceptionGroup) as error:
        first: Exception = error
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        if not isinstance(first, known):
            raise
        raise UserError(str(first)) from None
    return 0


def _config(arguments: argparse.Namespace) -> Config:
    from longshore.client.config import load

    if arguments.kubeconfig is None and not os.environ.get("KUBECONFIG"):
        own = layout_of(arguments).kubeconfig("admin")
        if own.exists():
            return load(own)
    return load(arguments.kubeconfig)


# -- nodes ---------------------------------------------------------------------------------------------------------------


async def _nodes(arguments: argparse.Namespace) -> None:
    from longshore.client.rest import Client
    from longshore.machinery.quantity import parse
    from longshore.machinery.run import freeze
    from longshore.simulate import nodes, rules

    for amount in (arguments.cpu, arguments.memory):
        parse(amount)
    if not 0 < arguments.count <= nodes.MOST_NODES:
        raise UserError(f"--count must be from 1 to {nodes.MOST_NODES}")
    taints = [_taint(text) for text in arguments.taint]
    parsed = rules.read(arguments.rules) if arguments.rules else None
    client = Client(_config(arguments), user_agent="longshore-simulate")
    ready, started = asyncio.Event(), list[nodes.SimulatedNodes]()
    serving = asyncio.create_task(
        nodes.serve(
            client=client, count=arguments.count, name=arguments.name, cpu=arguments.cpu, memory=arguments.memory,
            pods=arguments.pods, zones=arguments.zones, taints=taints, rules=parsed, heartbeat=arguments.heartbeat,
            remove=arguments.remove, ready=ready, started=started,
        )
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)

    async def tell() -> None:
        await ready.wait()
        freeze()
        print(f"{arguments.count} simulated nodes are Ready", flush=True)

    telling = asyncio.create_task(tell())
    try:
        await serving
    except asyncio.CancelledError:
        pass
    finally:
        telling.cancel()
        await client.close()


def _taint(text: str) -> dict[str, str]:
    pair, _, effect = text.rpartition(":")
    key, _, value = pair.partition("=")
    if not key or effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
        raise UserError(f"--taint {text}: must be KEY=VALUE:EFFECT with NoSchedule, PreferNoSchedule or NoExecute")
    return {"key": key, "value": value, "effect": effect} if value else {"key": key, "effect": effect}


# -- questions -----------------------------------------------------------------------------------------------------------


async def _ask(answer: Answer, arguments: argparse.Namespace) -> None:
    from longshore.client.rest import Client
    from longshore.master.scheduler.configuration import read
    from longshore.simulate import snapshot
    from longshore.simulate.cell import Cell

    if arguments.files:
        state = snapshot.load(arguments.files)
    else:
        client = Client(_config(arguments), user_agent="longshore-simulate")
        try:
            state = await snapshot.take(client)
        finally:
            await client.close()
    configuration = read(arguments.scheduler_config) if arguments.scheduler_config else None
    async with Cell(state, configuration) as cell:
        if not cell.nodes:
            raise UserError("there are no nodes")
        text, picture = await answer(cell, arguments)
    print(text)
    if arguments.picture:
        arguments.picture.write_text(picture)


async def _fit(cell: Cell, arguments: argparse.Namespace) -> tuple[str, str]:
    from longshore.simulate import picture, questions, report, snapshot

    found = await questions.fit(cell, snapshot.pod_of(arguments.pod, arguments.namespace), max(0, arguments.count))
    return report.of_fit(found), picture.of_nodes(cell, f"{found.total} of pod {found.pod} fit", found.placed)


async def _drain(cell: Cell, arguments: argparse.Namespace) -> tuple[str, str]:
    from collections import Counter

    from longshore.simulate import picture, questions, report

    try:
        found = await questions.drain(cell, list(dict.fromkeys(arguments.nodes)))
    except KeyError as error:
        raise UserError(f'nodes "{error.args[0]}" not found') from None
    title = f"{len(found.moved)} pods move, {len(found.stuck)} fit nowhere"
    drawn = picture.of_nodes(cell, title, Counter(to for _, _, to in found.moved), found.nodes)
    return report.of_drain(found), drawn


async def _compact(cell: Cell, arguments: argparse.Namespace) -> tuple[str, str]:
    from longshore.machinery.selectors import parse_labels
    from longshore.simulate import picture, questions, report

    def chooser(text: str) -> Callable[[dict[str, Any]], bool] | None:
        selector = parse_labels(text)
        return None if selector is None else lambda obj: selector.matches(obj["metadata"].get("labels") or {})

    nodes, pods = chooser(arguments.selector), chooser(arguments.pod_selector)

    def say(trial: int, needed: int) -> None:
        print(f"order {trial}: {needed} nodes", file=sys.stderr, flush=True)

    try:
        found = await questions.compact(
            cell, nodes=nodes, pods=pods, trials=arguments.trials, seed=arguments.seed, say=say,
            by_size=arguments.order == "size",
        )  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from None
    return report.of_compaction(found), picture.of_compaction(found)


ANSWERS: dict[str, Answer] = {"fit": _fit, "drain": _drain, "compact": _compact}
