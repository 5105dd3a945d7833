"""Finished Jobs go after their spec.ttlSecondsAfterFinished.

Source: kubernetes pkg/controller/ttlafterfinished, described behaviour.
"""

from __future__ import annotations

import time

from longshore.client.objects import is_deleting, seconds
from longshore.client.resources import JOBS
from longshore.client.rest import is_not_found
from longshore.client.store import Object, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller


def time_left(job: Object, at: float) -> float | None:
    """Seconds until the Job is to go; None when it has no end, or no limit."""
    limit = job["spec"].get("ttlSecondsAfterFinished")
    if limit is None or is_deleting(job):
        return None
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["type"] in ("Complete", "Failed") and condition.get("status") == "True":
            return seconds(condition.get("lastTransitionTime")) + int(limit) - at
    return None


class TTLAfterFinished(Controller):
    """Deletes Jobs whose time is over."""

    name = "ttl-after-finished-controller"
    component = "ttl-after-finished-controller"

    def setup(self) -> None:
        self.jobs = self.watch(JOBS, add=self._job, update=lambda old, new: self._job(new))

    def _job(self, job: Object) -> None:
        if time_left(job, time.time()) is not None:
            self.enqueue(job)

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        job = self.jobs.store.named(namespace, name)
        left = time_left(job, time.time()) if job is not None else None
        if job is None or left is None:
            return None
        if left > 0:
            return left
        try:
            fresh = await self.client.get(JOBS, name, namespace)
            left = time_left(fresh, time.time())
            if left is None or left > 0:
                return left
            await self.client.delete(
                JOBS,
                name,
                namespace,
                propagation="Foreground",
                uid=fresh["metadata"]["uid"],
                resource_version=fresh["metadata"]["resourceVersion"],
            )
        except StatusError as error:
            if not is_not_found(error):
                raise
        return None
