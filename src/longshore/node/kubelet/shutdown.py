"""Graceful node shutdown: where it is asked for, the node's pods are ended in order before the kubelet goes.

Source: kubernetes pkg/kubelet/nodeshutdown (order, texts). Upstream learns of it from systemd's inhibitor locks; here the
sign is the part's SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from longshore.node.kubelet.resources import is_critical
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


async def end_pods(workers: Mapping[str, Worker], period: float, critical: float, marked: dict[str, str]) -> None:
    """End ordinary pods within period - critical seconds, then critical ones within `critical`.

    marked: uid -> reason of the DisruptionTarget condition; every pod that is ended here is added.
    """
    ordinary = [w for w in workers.values() if not is_critical(w.pod)]
    important = [w for w in workers.values() if is_critical(w.pod)]
    await _end(ordinary, max(0.0, period - critical), marked)
    await _end(important, critical, marked)


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
