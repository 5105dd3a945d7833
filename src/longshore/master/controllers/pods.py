"""Making and removing pods for a controller: from its template, in slowly growing batches, with the events that tell.

Sources: kubernetes pkg/controller controller_utils (pod control, ActivePods order), pkg/controller/replicaset slow start.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from longshore.client.events import EventRecorder
from longshore.client.objects import condition, copy, is_available, is_ready, owner_reference, phase, seconds
from longshore.client.resources import PODS
from longshore.client.rest import Client, is_namespace_terminating, is_not_found
from longshore.client.store import Object
from longshore.machinery.errors import StatusError

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
BURST = 500


def from_template(template: Object, owner: Object) -> Object:
    """A pod as `owner` makes it: the template's labels, annotations, finalizers and spec, a generated name, the owner."""
    source = template.get("metadata") or {}
    prefix = owner["metadata"]["name"] + "-"
    metadata: Object = {"generateName": prefix if len(prefix) <= 253 else owner["metadata"]["name"]}
    for field in ("labels", "annotations", "finalizers"):
        if source.get(field):
            metadata[field] = copy(source[field])
    metadata["ownerReferences"] = [owner_reference(owner)]
    return {"metadata": metadata, "spec": copy(template.get("spec") or {})}


async def create(client: Client, recorder: EventRecorder, owner: Object, pod: Object) -> Object:
    """Create a pod and tell it on owner. Raises what the API server answers, after telling that too."""
    try:
        made = await client.create(PODS, pod, owner["metadata"]["namespace"])
    except (StatusError, OSError) as error:
        if not is_namespace_terminating(error):
            recorder.event(owner, "Warning", "FailedCreate", f"Error creating: {text(error)}")
        raise
    recorder.event(owner, "Normal", "SuccessfulCreate", f"Created pod: {made['metadata']['name']}")
    return made


async def delete(client: Client, recorder: EventRecorder, owner: Object, pod: Object) -> None:
    """Delete a pod and tell it on owner. That it is gone already raises NotFound, untold."""
    name = pod["metadata"]["name"]
    try:
        await client.delete(PODS, name, pod["metadata"]["namespace"], uid=pod["metadata"]["uid"])
    except (StatusError, OSError) as error:
        if not is_not_found(error):
            recorder.event(owner, "Warning", "FailedDelete", f"Error deleting: {text(error)}")
        raise
    recorder.event(owner, "Normal", "SuccessfulDelete", f"Deleted pod: {name}")


class Pauses:
    """Growing pauses between two removals in one place (a set's pod on a node, or of a number), when what comes
    instead fails as well: 1 s, 2 s, 4 s ... up to `most`; forgotten after twice `most` without one.

    Source: kubernetes pkg/controller/daemon, failedPodsBackoff.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self._until: dict[tuple[str, str], tuple[float, int]] = {}  # -> (not before, how often so far)

    def left(self, key: str, place: str) -> float:
        """Seconds until the next removal may be; 0 means now, and counts as one."""
        until, times = self._until.get((key, place), (0.0, 0))
        at = time.monotonic()
        if at < until:
            return until - at
        if at - until > 2 * self.most:
            times = 0
        self._until[key, place] = (at + min(2.0**times, self.most), times + 1)
        return 0.0

    def forget(self, key: str) -> None:
        """The owner has gone."""
        for item in [item for item in self._until if item[0] == key]:
            del self._until[item]


def text(error: BaseException) -> str:
    """An error's message as upstream would print it."""
    return error.message if isinstance(error, StatusError) else str(error) or type(error).__name__


async def in_batches(count: int, work: Callable[[], Awaitable[Any]]) -> tuple[int, BaseException | None]:
    """Run `work` count times, in batches of 1, 2, 4, ... so that a refusal is met once and not count times.

    Returns how often it succeeded, and the first error of the batch that ended the row.
    """
    done, size = 0, 1
    while done < count:
        size = min(size, count - done)
        results = await asyncio.gather(*(work() for _ in range(size)), return_exceptions=True)
        failed = [r for r in results if isinstance(r, BaseException)]
        done += size - len(failed)
        if failed:
            return done, failed[0]
        size *= 2
    return done, None


def until_available(pods: Iterable[Object], min_ready: int, at: float) -> float | None:
    """Seconds until the next of the pods that are ready has been so for long enough; None when all have."""
    waits = [
        seconds((condition(pod, "Ready") or {}).get("lastTransitionTime")) + min_ready - at
        for pod in pods
        if is_ready(pod) and not is_available(pod, min_ready, at)
    ]
    # A little over, so that the clock of the check is surely past.
    return max(0.0, min(waits)) + 0.1 if waits else None


def deletion_order(pods: Iterable[Object], related: Iterable[Object] = ()) -> list[Object]:
    """Pods in the order in which a controller that has too many lets them go.

    related: the pods of the same application, by which crowded nodes are thinned out first.
    """
    on_node: dict[str, int] = {}
    for other in related:
        if phase(other) not in ("Succeeded", "Failed"):
            node = (other.get("spec") or {}).get("nodeName") or ""
            on_node[node] = on_node.get(node, 0) + 1
    now = time.time()

    def age_bucket(since: float) -> float:
        # Pods of like age are equal: by powers of two, as upstream does, so that the oldest is not always kept.
        age = now - since
        return math.floor(math.log2(age)) if age > 1 else 0

    def order(pod: Object) -> tuple[Any, ...]:
        node = (pod.get("spec") or {}).get("nodeName") or ""
        ready = is_ready(pod)
        statuses = (pod.get("status") or {}).get("containerStatuses") or ()
        ready_since = seconds((condition(pod, "Ready") or {}).get("lastTransitionTime")) if ready else 0.0
        created = seconds(pod["metadata"].get("creationTimestamp"))
        return (
            bool(node),
            {"Pending": 0, "Unknown": 1}.get(phase(pod), 2),
            ready,
            deletion_cost(pod),
            -on_node.get(node, 0),
            age_bucket(ready_since) if ready else 0,
            -max((int(s.get("restartCount") or 0) for s in statuses), default=0),
            age_bucket(created),
            pod["metadata"].get("uid", ""),
        )

    return sorted(pods, key=order)


def deletion_cost(pod: Object) -> int:
    """The pod's own wish to be kept; 0 when there is none or it is no number."""
    value = (pod["metadata"].get("annotations") or {}).get(DELETION_COST)
    try:
        return int(value) if value is not None else 0
    except ValueError:
        return 0
