"""Jobs: pods that run to their end, each counted exactly once.

A finalizer holds every pod until it is counted: its uid goes into the status first, then the finalizer goes, then the
number grows. So a crash at any point neither loses nor doubles a pod.
Source: kubernetes pkg/controller/job, described behaviour.
"""

from __future__ import annotations

import asyncio

from longshore.client.objects import (
    controller_of,
    copy,
)
from longshore.client.resources import JOBS, PODS
from longshore.client.selectors import matcher
from longshore.client.store import Object, key_of, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers import jobrules as rules
from longshore.master.controllers.adoption import claim
from longshore.master.controllers.jobrun import Run
from longshore.master.controllers.podowner import PodOwnerController

MANAGER = "kubernetes.io/job-controller"


def is_finished(job: Object) -> bool:
    return any(
        c["type"] in ("Complete", "Failed") and c.get("status") == "True"
        for c in (job.get("status") or {}).get("conditions") or ()
    )


class JobController(PodOwnerController):
    """Runs each Job's pods until enough have succeeded or too many have failed."""

    name = "job-controller"
    resource = JOBS
    component = "job-controller"

    def setup(self) -> None:
        self.watch_pods()

    def pod_added(self, pod: Object) -> None:
        super().pod_added(pod)
        ref = controller_of(pod)
        if ref is not None and ref["kind"] == "Job" and self.owner(pod) is None:
            if rules.FINALIZER in (pod["metadata"].get("finalizers") or ()):
                self.queue.add("orphan:" + key_of(pod))

    # -- reconcile -------------------------------------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        if key.startswith("orphan:"):
            await self._release_orphan(key.removeprefix("orphan:"))
            return None
        namespace, name = split_key(key)
        job = self.owners.store.named(namespace, name)
        if job is None:
            self.expectations.forget(key)
            return None
        if job["spec"].get("managedBy", MANAGER) != MANAGER:
            return None
        if is_finished(job):
            candidates = self.candidates(job)
            await asyncio.gather(*(self.release(p) for p in candidates if controller_of(p) is not None))
            return None
        # Before the pods are taken from the cache: those that it has learned of meanwhile are then among them.
        fresh = await self.caught_up(job, int(job["metadata"]["resourceVersion"]))
        pods = await claim(
            self.client,
            job,
            JOBS,
            PODS,
            self.candidates(job),
            matcher(job["spec"].get("selector")),
            finalizer=rules.FINALIZER,
        )
        return await Run(self, key, copy(job), pods).go(fresh)

    async def release(self, pod: Object) -> None:
        """Take our finalizer off a pod."""
        if rules.FINALIZER not in (pod["metadata"].get("finalizers") or ()):
            return
        meta = {"uid": pod["metadata"]["uid"], "$deleteFromPrimitiveList/finalizers": [rules.FINALIZER]}
        try:
            await self.client.patch(
                PODS, pod["metadata"]["name"], {"metadata": meta}, pod["metadata"]["namespace"], kind="strategic"
            )
        except StatusError as error:
            if error.code not in (404, 409):
                raise

    async def _release_orphan(self, key: str) -> None:
        """A pod whose Job is gone must not wait for being counted."""
        pod = self.pods.store.get(key)
        if pod is not None and self.owner(pod) is None:
            await self.release(pod)
