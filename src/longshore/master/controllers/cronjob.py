"""CronJobs: a Job at each time of a schedule.

Source: kubernetes pkg/controller/cronjob (v2), described behaviour.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from longshore.client.objects import controller_of, copy, is_deleting, owner_reference, seconds, timestamp
from longshore.client.resources import CRON_JOBS, JOBS
from longshore.client.rest import is_already_exists, is_namespace_terminating, is_not_found
from longshore.client.store import Object, by_controller, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller
from longshore.master.controllers.cronschedule import Schedule, ScheduleError, zone_of
from longshore.master.controllers.pods import text

SCHEDULED_AT = "batch.kubernetes.io/cronjob-scheduled-timestamp"
TOO_MANY = 100
SLACK_SECONDS = 0.1  # a timer that fires early would find nothing due


def finished(job: Object) -> str:
    """ "Complete", "Failed", or "" while the Job runs."""
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["type"] in ("Complete", "Failed") and condition.get("status") == "True":
            return str(condition["type"])
    return ""


def last_due(schedule: Schedule, since: float, until: float) -> tuple[float | None, int]:
    """(the latest due time in (since, until], how many there were, counted up to 101)."""
    moment = datetime.fromtimestamp(since, UTC)
    end = datetime.fromtimestamp(until, UTC)
    found, count = None, 0
    due = schedule.after(moment)
    while due is not None and due <= end:
        found, count = due, count + 1
        if count > TOO_MANY:
            # Skip ahead: between two close looks the schedule has been due so often that only the last matters.
            step = (due - moment).total_seconds() / count
            jump = end.timestamp() - max(step * 4, 120.0)
            if jump > due.timestamp():
                due = schedule.after(datetime.fromtimestamp(jump, UTC))
                continue
        due = schedule.after(due)
    return (found.timestamp() if found is not None else None), count


class CronJobController(Controller):
    """Starts each CronJob's Jobs and clears away old ones."""

    name = "cronjob-controller"
    component = "cronjob-controller"

    def setup(self) -> None:
        self.crons = self.watch(CRON_JOBS, add=self.enqueue, update=self.enqueue_update)
        self.jobs = self.watch(
            JOBS,
            add=self._job,
            update=lambda old, new: self._job(new),
            delete=self._job,
            indexers={"controller": by_controller},
        )

    def _job(self, job: Object) -> None:
        ref = controller_of(job)
        if ref is not None and ref["kind"] == "CronJob":
            self.queue.add(f"{job['metadata']['namespace']}/{ref['name']}")

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        stored = self.crons.store.named(namespace, name)
        if stored is None:
            return None
        cron = copy(stored)
        status = cron.setdefault("status", {})
        jobs = self.jobs.store.index("controller", cron["metadata"]["uid"])
        await self._clean_up(cron, jobs)
        self._look_at_jobs(cron, status, jobs)
        wait = None
        if not is_deleting(cron):
            wait = await self._start(cron, status, jobs)
        if not status.get("active"):
            status.pop("active", None)
        if status != (stored.get("status") or {}):
            await self.client.update(CRON_JOBS, cron, subresource="status")
        return wait

    def _look_at_jobs(self, cron: Object, status: Object, jobs: list[Object]) -> None:
        active: list[Object] = list(status.get("active") or [])
        known = {ref["uid"] for ref in active}
        there = {job["metadata"]["uid"] for job in jobs}
        for job in jobs:
            uid, how = job["metadata"]["uid"], finished(job)
            if uid not in known and not how:
                message = f"Saw a job that the controller did not create or forgot: {job['metadata']['name']}"
                self.event(cron, "Warning", "UnexpectedJob", message)
            elif uid in known and how:
                active = [ref for ref in active if ref["uid"] != uid]
                message = f"Saw completed job: {job['metadata']['name']}, condition: {how}"
                self.event(cron, "Normal", "SawCompletedJob", message)
            if how == "Complete":
                ended = (job.get("status") or {}).get("completionTime")
                if ended and seconds(ended) > seconds(status.get("lastSuccessfulTime")):
                    status["lastSuccessfulTime"] = ended
        for ref in list(active):
            if ref["uid"] not in there and self.jobs.store.named(cron["metadata"]["namespace"], ref["name"]) is None:
                message = f"Active job went missing: {ref['name']}"
                self.event(cron, "Normal", "MissingJob", message)
                active = [r for r in active if r["uid"] != ref["uid"]]
        status["active"] = active

    async def _start(self, cron: Object, status: Object, jobs: list[Object]) -> float | None:
        """Start what is due; seconds until the next time."""
        spec = cron["spec"]
        try:
            zone = zone_of(spec["timeZone"]) if spec.get("timeZone") else UTC
        except ScheduleError as error:
            message = f'invalid timeZone: "{spec["timeZone"]}": {error}'
            self.event(cron, "Warning", "UnknownTimeZone", message)
            return None
        if spec.get("suspend"):
            return None
        try:
            schedule = Schedule(spec["schedule"], zone)
        except ScheduleError as error:
            self.event(cron, "Warning", "UnparseableSchedule", f"unparseable schedule: {spec['schedule']!r} : {error}")
            return None
        at = time.time()
        since = seconds(status.get("lastScheduleTime")) or seconds(cron["metadata"].get("creationTimestamp"))
        deadline = spec.get("startingDeadlineSeconds")
        if deadline is not None:
            since = max(since, at - int(deadline))
        due, missed = last_due(schedule, since, at)
        following = schedule.after(datetime.fromtimestamp(at, UTC))
        wait = following.timestamp() - at + SLACK_SECONDS if following is not None else None
        if due is None:
            return wait
        if missed > TOO_MANY:
            message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew"
            self.event(cron, "Warning", "TooManyMissedTimes", message)
        if deadline is not None and due + int(deadline) < at:
            shown = datetime.fromtimestamp(due, UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
            self.event(cron, "Warning", "MissSchedule", f"Missed scheduled time to start a job: {shown}")
            return wait
        policy = spec.get("concurrencyPolicy", "Allow")
        running = status.get("active") or []
        if policy == "Forbid" and running:
            message = "Not starting job because prior execution is running and concurrency policy is Forbid"
            self.event(cron, "Normal", "JobAlreadyActive", message)
            return wait
        if policy == "Replace":
            for ref in list(running):
                await self._delete(cron, ref["name"])
            status["active"] = []
        await self._create(cron, status, due)
        return wait

    async def _create(self, cron: Object, status: Object, due: float) -> None:
        template = cron["spec"]["jobTemplate"]
        source = template.get("metadata") or {}
        name = f"{cron['metadata']['name']}-{int(due) // 60}"
        metadata: Object = {
            "name": name,
            "namespace": cron["metadata"]["namespace"],
            "annotations": {**(source.get("annotations") or {}), SCHEDULED_AT: self._stamp(cron, due)},
            "ownerReferences": [owner_reference(cron)],
        }
        if source.get("labels"):
            metadata["labels"] = dict(source["labels"])
        try:
            job = await self.client.create(JOBS, {"metadata": metadata, "spec": copy(template["spec"])})
        except StatusError as error:
            if is_namespace_terminating(error):
                return
            if not is_already_exists(error):
                self.event(cron, "Warning", "FailedCreate", f"Error creating job: {text(error)}")
                raise
            job = await self.client.get(JOBS, name, cron["metadata"]["namespace"])
            ref = controller_of(job)
            if ref is None or ref["uid"] != cron["metadata"]["uid"]:
                return  # somebody else's Job of this name: whoever made it knows why
        else:
            self.event(cron, "Normal", "SuccessfulCreate", f"Created job {name}")
        if not finished(job):
            ref = {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": name,
                "namespace": cron["metadata"]["namespace"],
                "uid": job["metadata"]["uid"],
                "resourceVersion": job["metadata"]["resourceVersion"],
            }
            status["active"] = [*(r for r in status.get("active") or () if r["uid"] != ref["uid"]), ref]
        status["lastScheduleTime"] = timestamp(due)

    @staticmethod
    def _stamp(cron: Object, due: float) -> str:
        zone = cron["spec"].get("timeZone")
        if not zone:
            return timestamp(due)
        return datetime.fromtimestamp(due, zone_of(zone)).isoformat()

    async def _delete(self, cron: Object, name: str) -> None:
        try:
            await self.client.delete(JOBS, name, cron["metadata"]["namespace"], propagation="Background")
        except StatusError as error:
            if is_not_found(error):
                return
            self.event(cron, "Warning", "FailedDelete", f"Deleted job: {text(error)}")
            raise
        self.event(cron, "Normal", "SuccessfulDelete", f"Deleted job {name}")

    async def _clean_up(self, cron: Object, jobs: list[Object]) -> None:
        """Old finished Jobs go, past the history limits."""
        for field, how, default in (
            ("successfulJobsHistoryLimit", "Complete", 3),
            ("failedJobsHistoryLimit", "Failed", 1),
        ):
            limit = cron["spec"].get(field)
            ended = [j for j in jobs if finished(j) == how and not is_deleting(j)]
            ended.sort(key=lambda j: (seconds((j.get("status") or {}).get("startTime")), j["metadata"]["name"]))
            for job in ended[: max(0, len(ended) - (default if limit is None else int(limit)))]:
                await self._delete(cron, job["metadata"]["name"])
