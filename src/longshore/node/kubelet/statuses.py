"""The status manager: the latest status of each pod, patched to the API server, and the end of deleted pods.

Source: kubernetes pkg/kubelet/status/status_manager.go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from longshore.client.resources import PODS
from longshore.client.rest import Client, is_not_found
from longshore.machinery.errors import StatusError
from longshore.node.kubelet.resources import is_static
from longshore.node.kubelet.status import OPTIONAL, OWNED

log = logging.getLogger("longshore.kubelet.status")
Pod = dict[str, Any]
_FIELDS = ("phase", "reason", "message", "startTime", "hostIP", "hostIPs", "podIP", "podIPs", "qosClass",
           "initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses", "observedGeneration",
           "resize", "allocatedResources", "resources")  # fmt: skip
_RETRY_FIRST, _RETRY_LAST = 0.1, 10.0


class StatusManager:
    """Sends each pod's newest status; what comes while one is being sent is joined into the next."""

    def __init__(
        self, client: Client, *, api_pod: Callable[[str], Pod | None], finished: Callable[[str], bool]
    ) -> None:
        """api_pod(uid): the API server's newest pod known. finished(uid): nothing of the pod is left on the node."""
        self._client, self._api_pod, self._finished = client, api_pod, finished
        self._statuses: dict[str, dict[str, Any]] = {}
        self._pods: dict[str, Pod] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._dirty: set[str] = set()
        self._sent: dict[str, dict[str, Any]] = {}

    def get(self, uid: str) -> dict[str, Any] | None:
        """The newest status made for a pod by this process."""
        return self._statuses.get(uid)

    def set(self, pod: Pod, status: dict[str, Any]) -> None:
        """A new status; it is sent soon. pod: the API pod (a static pod's mirror)."""
        uid = pod["metadata"]["uid"]
        self._pods[uid] = pod
        if self._statuses.get(uid) == status and uid in self._sent:
            return
        self._statuses[uid] = status
        self._nudge(uid)

    def resend(self, uid: str) -> None:
        """The API server has a fresh object of the pod that shows nothing yet."""
        self._sent.pop(uid, None)
        if uid in self._statuses:
            self._nudge(uid)

    def reconcile(self, uid: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """The API server's status of a pod has changed: what another changed of what is ours is set right again."""
        made = self._statuses.get(uid)
        if made is None or uid in self._dirty:
            return
        ours, before, now = _essence(made), _essence(old), _essence(new)
        if before == ours and now != ours:
            self._sent[uid] = dict(new)
            self._nudge(uid)

    def finish(self, pod: Pod) -> None:
        """Nothing of the pod is left on the node: a deleted one is now removed from the API server."""
        uid = pod["metadata"]["uid"]
        self._pods.setdefault(uid, pod)
        self._nudge(uid)

    def forget(self, uid: str) -> None:
        """The pod has gone from the API server."""
        for table in (self._statuses, self._pods, self._sent):
            table.pop(uid, None)
        self._dirty.discard(uid)

    def _nudge(self, uid: str) -> None:
        self._dirty.add(uid)
        task = self._tasks.get(uid)
        if task is None or task.done():
            self._tasks[uid] = asyncio.create_task(self._send_all(uid), name=f"status {uid}")
            self._tasks[uid].add_done_callback(
                lambda t: self._tasks.pop(uid, None) if self._tasks.get(uid) is t else None
            )

    async def _send_all(self, uid: str) -> None:
        pause = _RETRY_FIRST
        while uid in self._dirty:
            self._dirty.discard(uid)
            try:
                await self._send(uid)
                pause = _RETRY_FIRST
            except (StatusError, OSError, TimeoutError) as error:
                if isinstance(error, StatusError) and (is_not_found(error) or error.code in (403, 422)):
                    log.info("status of pod %s was refused: %s", uid, error)
                    if is_not_found(error):
                        continue
                else:
                    log.debug("status of pod %s: %s", uid, error)
                self._dirty.add(uid)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _RETRY_LAST)

    async def _send(self, uid: str) -> None:
        pod = self._pods.get(uid)
        if pod is None:
            return
        metadata = pod["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        status = self._statuses.get(uid)
        found = self._api_pod(uid)
        if found is None and is_static(pod):
            # No mirror yet; its coming sends this again.
            return
        current = found or pod
        if status is not None:
            base = self._sent.get(uid) or current.get("status") or {}
            change = difference(base, status)
            if change:
                patch = {"metadata": {"uid": current["metadata"]["uid"]}, "status": change}
                try:
                    answer = await self._client.patch(
                        PODS, name, patch, namespace, kind="strategic", subresource="status"
                    )
                except StatusError as error:
                    if error.code == 409:
                        # Another pod has the name now: this one's record is gone.
                        self.forget(uid)
                        return
                    raise
                current = answer
                self._pods[uid] = {**pod, "metadata": {**metadata, **_deletion(answer)}}
            self._sent[uid] = status
        latest = self._api_pod(uid) or current
        if is_static(pod):
            return
        if latest["metadata"].get("deletionTimestamp") and self._finished(uid):
            try:
                await self._client.delete(PODS, name, namespace, grace_seconds=0, uid=uid)
            except StatusError as error:
                if not (is_not_found(error) or error.code == 409):
                    raise
            self.forget(uid)

    async def flush(self, timeout: float) -> None:
        """Wait until all that was set is sent, or the time is over."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=timeout)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _essence(status: Mapping[str, Any]) -> tuple[Any, ...]:
    conditions = {c["type"]: c["status"] for c in status.get("conditions") or () if c["type"] in OWNED}
    return status.get("phase"), tuple(sorted(conditions.items()))


def _deletion(pod: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in pod["metadata"].items() if k in ("deletionTimestamp", "deletionGracePeriodSeconds")}


def difference(base: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
    """The strategic merge patch that makes `status` of `base`, leaving others' conditions alone."""
    change: dict[str, Any] = {}
    for field in _FIELDS:
        new, old = status.get(field), base.get(field)
        if new == old or (not new and not old):
            continue
        if field in ("podIPs", "hostIPs"):
            # Merged by address otherwise: an old address would stay.
            change[field] = [*(new or ()), {"$patch": "replace"}]
        else:
            change[field] = new if new else None
    old_conditions = {c["type"]: c for c in base.get("conditions") or ()}
    ours = [
        c
        for c in status.get("conditions") or ()
        if c["type"] in OWNED or c["type"] in OPTIONAL or c.get("reason") == "TerminationByKubelet"
    ]
    present = {c["type"] for c in ours}
    changed: list[dict[str, Any]] = [
        {"$patch": "delete", "type": kind} for kind in OPTIONAL if kind in old_conditions and kind not in present
    ]
    for condition in ours:
        old = old_conditions.get(condition["type"]) or {}
        entry = dict(condition)
        if {k: v for k, v in old.items() if v is not None} == {k: v for k, v in entry.items() if v is not None}:
            continue
        for field in ("reason", "message"):
            if old.get(field) and not entry.get(field):
                entry[field] = None
        changed.append(entry)
    if changed:
        change["conditions"] = changed
    return change
