"""Graceful node shutdown: where it is asked for, the node's pods are ended in order before the kubelet goes.

Source: kubernetes pkg/kubelet/nodeshutdown (order, texts). Upstream learns of it from systemd's inhibitor locks; here the
sign is the part's SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from longshore.node.kubelet.worker import Worker

log = logging.getLogger("longshore.kubelet.shutdown")
Pod = dict[str, Any]
REASON, MESSAGE = "Terminated", "Pod was terminated in response to imminent node shutdown."
REFUSED = ("NodeShutdown", "Pod was rejected as the node is shutting down.")
PROBLEM = "node is shutting down"
_MARGIN = 2.0


def grace_of(pod: Pod, seconds: int) -> int:
    """The pod's own grace, and no more than the shutdown leaves it."""
    own = pod["spec"].get("terminationGracePeriodSeconds")
    return seconds if own is None else min(int(own), seconds)


async def end_pods(workers: Mapping[str, Worker], periods: Sequence[tuple[int, float]], marked: dict[str, str]) -> None:
    """End all pods, group by group, the lowest priority first.

    periods: (the priority from which on a pod belongs to the group, the group's seconds), the lowest first; a pod below
    them all belongs to the first. marked: uid -> reason of the DisruptionTarget condition; every pod that is ended here
    is added.
    """
    groups: list[list[Worker]] = [[] for _ in periods]
    for worker in list(workers.values()):
        priority = int(worker.pod["spec"].get("priority") or 0)
        place = sum(priority >= start for start, _ in periods)
        groups[max(0, place - 1)].append(worker)
    for group, (_, seconds) in zip(groups, periods, strict=True):
        await _end(group, seconds, marked)


async def _end(workers: Iterable[Worker], seconds: float, marked: dict[str, str]) -> None:
    tasks = []
    for worker in workers:
        if not worker.ending:
            marked[worker.uid] = REASON
        worker.end(grace_of(worker.pod, int(seconds)), ("Failed", REASON, MESSAGE))
        tasks.append(worker.task)
    if not tasks:
        return
    log.info("%d pods are ended within %g s", len(tasks), seconds)
    _, late = await asyncio.wait(tasks, timeout=seconds + _MARGIN)
    if late:
        log.warning("%d pods have not ended in time", len(late))
