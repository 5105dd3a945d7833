"""One reconciliation of one Job: what has ended is counted, what is missing is made, how the Job ends is told.

Source: kubernetes pkg/controller/job (job_controller, indexed_job_utils, backoff_utils), described behaviour.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from longshore.client.objects import copy, is_deleting, is_ready, is_terminal, now, phase, seconds
from longshore.client.resources import JOBS
from longshore.client.rest import is_namespace_terminating
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.controllers import jobrules as rules
from longshore.master.controllers import pods as pod_control

if TYPE_CHECKING:
    from longshore.master.controllers.job import JobController

FIRST_PAUSE, LONGEST_PAUSE = 10.0, 600.0
UNCOUNTED_LIMIT = 500


class Run:
    """One reconciliation of one Job."""

    def __init__(self, controller: JobController, key: str, job: Object, pods: list[Object]) -> None:
        self.c, self.key, self.job, self.pods = controller, key, job, pods
        self.spec = job["spec"]
        self.status: Object = job.get("status") or {}
        self.before = copy(self.status)
        self.indexed = rules.is_indexed(job)
        self.completions = self.spec.get("completions")
        self.parallelism = int(self.spec.get("parallelism", 1))
        self.per_index = self.spec.get("backoffLimitPerIndex")
        self.live = [p for p in pods if not is_terminal(p)]
        self.active = [p for p in self.live if not is_deleting(p)]
        self.terminating = [p for p in self.live if is_deleting(p)]
        self.now = time.time()
        self.conditions: list[Object] = list(self.status.get("conditions") or [])
        limit = int(self.completions or 0) if self.indexed else 2**31
        self.done = rules.parse_indexes(self.status.get("completedIndexes"), limit)
        self.bad = rules.parse_indexes(self.status.get("failedIndexes"), limit)
        self.fail_message: tuple[str, str] | None = None
        self.again: float | None = None

    # conditions

    def _has(self, type: str) -> bool:
        return any(c["type"] == type and c.get("status") == "True" for c in self.conditions)

    def _put(self, type: str, status: str, reason: str, message: str) -> bool:
        known = next((c for c in self.conditions if c["type"] == type), None)
        if known is not None and known.get("status") == status:
            return False
        stamp = now()
        fresh = {"type": type, "status": status, "reason": reason, "message": message}
        fresh.update(lastProbeTime=stamp, lastTransitionTime=stamp)
        self.conditions = [*(c for c in self.conditions if c["type"] != type), fresh]
        return True

    # the steps

    async def go(self, fresh: bool) -> float | None:
        suspended = bool(self.spec.get("suspend"))
        if not self.status.get("startTime") and not suspended:
            self.status["startTime"] = now()
        counted = self._count_released()
        to_release = self._take_in()
        succeeded, failed = self._totals()
        self._judge(succeeded, failed)
        ending = self._has("FailureTarget") or self._has("SuccessCriteriaMet") or is_deleting(self.job)
        active = list(self.active)
        failure: BaseException | None = None
        if fresh and not is_deleting(self.job):
            if ending:
                active = await self._delete(active, counted=True)
            elif suspended:
                active = await self._delete(active, counted=False)
            else:
                active, failure = await self._manage(active, succeeded, failed)
        if not is_deleting(self.job):
            self._suspend(suspended, active)
        self._finish(active, bool(to_release))
        await self._write(active, counted)
        if to_release:
            await asyncio.gather(*(self.c.release(p) for p in to_release))
        if failure is not None and not is_namespace_terminating(failure):
            raise failure
        return self._deadline_wait()

    def _uncounted(self) -> tuple[list[str], list[str]]:
        entry = self.status.get("uncountedTerminatedPods") or {}
        return list(entry.get("succeeded") or ()), list(entry.get("failed") or ())

    def _count_released(self) -> bool:
        """Uncounted pods that have lost the finalizer become numbers."""
        held = {p["metadata"]["uid"] for p in self.pods if rules.FINALIZER in (p["metadata"].get("finalizers") or ())}
        succeeded, failed = self._uncounted()
        kept_s, kept_f = [u for u in succeeded if u in held], [u for u in failed if u in held]
        if not self.indexed:
            self.status["succeeded"] = int(self.status.get("succeeded") or 0) + len(succeeded) - len(kept_s)
        self.status["failed"] = int(self.status.get("failed") or 0) + len(failed) - len(kept_f)
        self.status["uncountedTerminatedPods"] = _only({"succeeded": kept_s, "failed": kept_f})
        return (kept_s, kept_f) != (succeeded, failed)

    def _take_in(self) -> list[Object]:
        """Note pods that have ended and are not yet counted; those whose finalizer may go after the status is written."""
        succeeded, failed = self._uncounted()
        known = {*succeeded, *failed}
        release = []
        ending = self._has("FailureTarget") or self._has("SuccessCriteriaMet") or is_deleting(self.job)
        held = [p for p in self.pods if rules.FINALIZER in (p["metadata"].get("finalizers") or ())]
        kept = self._look_at_indexes(held) if self.indexed and not ending else set()
        for pod in held:
            uid = pod["metadata"]["uid"]
            if uid in known:
                release.append(pod)
                continue
            if len(known) >= UNCOUNTED_LIMIT:
                break
            if phase(pod) == "Succeeded":
                if self.indexed:
                    if 0 <= rules.index_of(pod) < int(self.completions or 0):
                        self.done.add(rules.index_of(pod))
                else:
                    succeeded.append(uid)
                    known.add(uid)
                release.append(pod)
            elif uid not in kept and rules.has_failed(self.job, pod):
                if self._counts_as_failed(pod):
                    failed.append(uid)
                    known.add(uid)
                release.append(pod)
            elif ending and is_deleting(pod):
                # What a Job that has failed takes down with it has failed, too.
                if self._has("FailureTarget"):
                    failed.append(uid)
                    known.add(uid)
                release.append(pod)
        self.status["uncountedTerminatedPods"] = _only({"succeeded": succeeded, "failed": failed})
        if self.indexed:
            self.status["succeeded"] = len(self.done)
            self.status["completedIndexes"] = rules.format_indexes(self.done)
            if self.per_index is not None:
                self.bad -= self.done
                self.status["failedIndexes"] = rules.format_indexes(self.bad)
        return release

    def _counts_as_failed(self, pod: Object) -> bool:
        """Whether the failure policy counts a failed pod. What it says of the whole Job is remembered."""
        verdict = rules.judge(self.job, pod)
        if verdict.action == "FailJob" and self.fail_message is None:
            self.fail_message = ("PodFailurePolicy", verdict.message)
        return verdict.action != "Ignore" and (
            not self.indexed or 0 <= rules.index_of(pod) < int(self.completions or 0)
        )

    def _look_at_indexes(self, held: list[Object]) -> set[str]:
        """Which indexes have failed for good; the uids of pods that are kept until they are replaced, as they alone know how
        often their index has failed."""
        if self.per_index is None:
            return set()
        done = self.done | {rules.index_of(p) for p in held if phase(p) == "Succeeded"}
        active = {rules.index_of(p) for p in self.active}
        last: dict[int, Object] = {}
        for pod in held:
            index = rules.index_of(pod)
            if not 0 <= index < int(self.completions or 0) or not rules.has_failed(self.job, pod):
                continue
            verdict = rules.judge(self.job, pod)
            spent = verdict.action != "Ignore" and rules.count_of(pod, rules.FAILURES) >= int(self.per_index)
            if verdict.action == "FailIndex" or spent:
                self.bad.add(index)
            before = last.get(index)
            if before is None or _later(pod, before):
                last[index] = pod
            if verdict.action == "FailJob" and self.fail_message is None:
                self.fail_message = ("PodFailurePolicy", verdict.message)
        over = done | self.bad | active
        return {pod["metadata"]["uid"] for index, pod in last.items() if index not in over}

    def _totals(self) -> tuple[int, int]:
        succeeded, failed = self._uncounted()
        if self.indexed:
            return len(self.done), int(self.status.get("failed") or 0) + len(failed)
        return (
            int(self.status.get("succeeded") or 0) + len(succeeded),
            int(self.status.get("failed") or 0) + len(failed),
        )

    def _judge(self, succeeded: int, failed: int) -> None:
        """Whether the Job has succeeded or failed: the first condition that says where it goes."""
        if self._has("FailureTarget") or self._has("SuccessCriteriaMet"):
            return
        limit = self.spec.get("backoffLimit")
        limit = 6 if limit is None else int(limit)
        deadline = self.spec.get("activeDeadlineSeconds")
        if self.fail_message is not None:
            self._put("FailureTarget", "True", *self.fail_message)
        elif failed > limit or self._restarts_exceed(limit):
            message = "Job has reached the specified backoff limit"
            self._put("FailureTarget", "True", "BackoffLimitExceeded", message)
        elif deadline is not None and not self.spec.get("suspend") and self.status.get("startTime"):
            if self.now - seconds(self.status["startTime"]) >= int(deadline):
                message = "Job was active longer than specified deadline"
                self._put("FailureTarget", "True", "DeadlineExceeded", message)
        if self._has("FailureTarget"):
            return
        if self.per_index is not None:
            most = self.spec.get("maxFailedIndexes")
            if most is not None and len(self.bad) > int(most):
                message = "Job has exceeded the specified maximal number of failed indexes"
                self._put("FailureTarget", "True", "MaxFailedIndexesExceeded", message)
                return
            if self.bad and len(self.bad) + len(self.done) >= int(self.completions or 0):
                self._put("FailureTarget", "True", "FailedIndexes", "Job has failed indexes")
                return
        if self.indexed and (rule := rules.success_rule(self.job, self.done)) is not None:
            self._put("SuccessCriteriaMet", "True", "SuccessPolicy", f"Matched rules at index {rule}")
            return
        if self.completions is None:
            complete = succeeded > 0 and not self.active
        else:
            complete = succeeded >= int(self.completions)
        if complete:
            message = "Reached expected number of succeeded pods"
            self._put("SuccessCriteriaMet", "True", "CompletionsReached", message)

    def _restarts_exceed(self, limit: int) -> bool:
        if (self.spec["template"].get("spec") or {}).get("restartPolicy") != "OnFailure":
            return False
        restarts = 0
        for pod in self.pods:
            if phase(pod) in ("Running", "Pending"):
                status = pod.get("status") or {}
                for entry in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
                    restarts += int(entry.get("restartCount") or 0)
        return restarts > 0 if limit == 0 else restarts >= limit

    # pods

    async def _delete(self, chosen: list[Object], *, counted: bool) -> list[Object]:
        """Delete pods; those that could not be deleted. counted: False for pods that are no failures of the Job."""
        rest = iter(chosen)
        left: list[Object] = []

        async def one() -> None:
            pod = next(rest)
            try:
                if not counted:
                    await self.c.release(pod)
                await self.c.remove_pod(self.job, pod)
            except (StatusError, OSError):
                left.append(pod)
                raise

        await pod_control.in_batches(len(chosen), one)
        return left

    async def _manage(
        self, active: list[Object], succeeded: int, failed: int
    ) -> tuple[list[Object], BaseException | None]:
        """Bring the number of running pods to what is wanted."""
        if self.completions is None:
            wanted = len(active) if succeeded > 0 else self.parallelism
        else:
            left = int(self.completions) - succeeded - (len(self.bad) if self.per_index is not None else 0)
            wanted = max(0, min(left, self.parallelism))
        if len(active) > wanted:
            doomed = pod_control.deletion_order(active)[: len(active) - wanted]
            if self.indexed:
                doomed = sorted(active, key=rules.index_of, reverse=True)[: len(active) - wanted]
            names = {p["metadata"]["uid"] for p in doomed}
            stuck = await self._delete(doomed, counted=False)
            return [p for p in active if p["metadata"]["uid"] not in names] + stuck, None
        missing = wanted - len(active)
        if rules.only_failed(self.job):
            missing -= len(self.terminating)
        if missing <= 0:
            return active, None
        pause = self._pause(failed)
        if pause > 0:
            self.again = pause
            return active, None
        return await self._create(active, min(missing, pod_control.BURST))

    def _pause(self, failed: int) -> float:
        """Seconds to wait before new pods: longer with each failure in a row, from the last one's end."""
        ends = sorted(rules.finished_at(p) for p in self.pods if phase(p) == "Failed")
        good = max((rules.finished_at(p) for p in self.pods if phase(p) == "Succeeded"), default=0.0)
        streak = [e for e in ends if e > good]
        if not streak or self.per_index is not None:
            return 0.0
        wait = min(FIRST_PAUSE * 2 ** (len(streak) - 1), LONGEST_PAUSE)
        return max(0.0, float(streak[-1] + wait - self.now))

    async def _create(self, active: list[Object], count: int) -> tuple[list[Object], BaseException | None]:
        indexes = iter(self._free_indexes(active, count)) if self.indexed else None
        if indexes is not None:
            count = min(count, len(self._free_indexes(active, count)))
        made: list[Object] = []

        async def one() -> None:
            pod = self._pod(next(indexes) if indexes is not None else None)
            made.append(await self.c.make_pod(self.job, pod))

        _, error = await pod_control.in_batches(count, one)
        return [*active, *made], error

    def _free_indexes(self, active: list[Object], count: int) -> list[int]:
        taken = {rules.index_of(p) for p in active} | self.done | self.bad
        if rules.only_failed(self.job):
            taken |= {rules.index_of(p) for p in self.terminating}
        free = [i for i in range(int(self.completions or 0)) if i not in taken]
        if self.per_index is not None:
            free = [i for i in free if self._index_pause(i) <= 0]
        return free[:count]

    def _index_pause(self, index: int) -> float:
        """Seconds before an index that failed may be tried again; remembers when to look."""
        last = self._last_failed(index)
        if last is None:
            return 0.0
        wait = min(FIRST_PAUSE * 2 ** min(rules.failures_of(last), 10), LONGEST_PAUSE)
        left = float(rules.finished_at(last) + wait - self.now)
        if left > 0:
            self.again = left if self.again is None else min(self.again, left)
        return left

    def _last_failed(self, index: int) -> Object | None:
        """The pod that an index failed with last."""
        found = None
        for pod in self.pods:
            if (
                rules.index_of(pod) == index
                and rules.has_failed(self.job, pod)
                and (found is None or _later(pod, found))
            ):
                found = pod
        return found

    def _pod(self, index: int | None) -> Object:
        pod = pod_control.from_template(self.spec["template"], self.job)
        meta = pod["metadata"]
        meta["finalizers"] = [*meta.get("finalizers", ()), rules.FINALIZER]
        if index is None:
            return pod
        meta["generateName"] = f"{self.job['metadata']['name']}-{index}-"
        meta.setdefault("annotations", {})[rules.INDEX] = str(index)
        meta.setdefault("labels", {})[rules.INDEX] = str(index)
        if self.per_index is not None:
            meta["annotations"] |= rules.failure_counts(self.job, self._last_failed(index))
        pod["spec"]["hostname"] = f"{self.job['metadata']['name']}-{index}"
        source = {"fieldRef": {"fieldPath": f"metadata.labels['{rules.INDEX}']"}}
        for container in [*(pod["spec"].get("initContainers") or ()), *(pod["spec"].get("containers") or ())]:
            if not any(e["name"] == "JOB_COMPLETION_INDEX" for e in container.get("env") or ()):
                container.setdefault("env", []).append({"name": "JOB_COMPLETION_INDEX", "valueFrom": source})
        return pod

    # the end

    def _suspend(self, suspended: bool, active: list[Object]) -> None:
        if self._has("FailureTarget") or self._has("SuccessCriteriaMet"):
            return
        known = next((c for c in self.conditions if c["type"] == "Suspended"), None)
        if suspended and (known is None or known["status"] != "True"):
            self._put("Suspended", "True", "JobSuspended", "Job suspended")
            self.status.pop("startTime", None)
            self.c.event(self.job, "Normal", "Suspended", "Job suspended")
        elif not suspended and known is not None and known["status"] == "True":
            self._put("Suspended", "False", "JobResumed", "Job resumed")
            self.status["startTime"] = now()
            self.c.event(self.job, "Normal", "Resumed", "Job resumed")

    def _finish(self, active: list[Object], pending: bool) -> None:
        """The last condition comes when no pod runs any more and every end is counted."""
        succeeded, failed = self._uncounted()
        if active or self.terminating or pending or succeeded or failed:
            return
        for first, last in (("FailureTarget", "Failed"), ("SuccessCriteriaMet", "Complete")):
            known = next((c for c in self.conditions if c["type"] == first and c.get("status") == "True"), None)
            if known is None or self._has(last):
                continue
            self._put(last, "True", known["reason"], known["message"])
            if last == "Complete":
                self.status["completionTime"] = now()
            return

    async def _write(self, active: list[Object], counted: bool) -> None:
        status = self.status
        numbers = {"active": len(active), "succeeded": status.get("succeeded"), "failed": status.get("failed")}
        for field, value in numbers.items():
            status.pop(field, None)
            if value:
                status[field] = value
        status["ready"] = sum(1 for p in active if is_ready(p))
        status["terminating"] = (
            len(self.terminating)
            + len(self.active)
            - len([p for p in self.active if any(p["metadata"]["uid"] == a["metadata"]["uid"] for a in active)])
        )
        for field in ("completedIndexes", "failedIndexes"):
            if not status.get(field) and not (field == "failedIndexes" and self.per_index is not None):
                status.pop(field, None)
        if self.conditions:
            status["conditions"] = self.conditions
        if status == self.before:
            return
        fresh = await self.c.client.update(JOBS, {**self.job, "status": status}, subresource="status")
        # What was counted is in no pod any more: nothing is made before the cache has this version, or it is made twice.
        self.c.expectations.wrote(self.key, int(fresh["metadata"]["resourceVersion"]))
        was = {c["type"] for c in self.before.get("conditions") or ()}
        for entry in self.conditions:
            if entry["type"] in was:
                continue
            if entry["type"] == "Complete":
                self.c.event(self.job, "Normal", "Completed", "Job completed")
            elif entry["type"] == "Failed":
                self.c.event(self.job, "Warning", entry["reason"], entry["message"])

    def _deadline_wait(self) -> float | None:
        waits = [self.again] if self.again is not None else []
        deadline, started = self.spec.get("activeDeadlineSeconds"), self.status.get("startTime")
        if deadline is not None and started and not self.spec.get("suspend"):
            if not (self._has("FailureTarget") or self._has("SuccessCriteriaMet")):
                waits.append(max(0.1, seconds(started) + int(deadline) - time.time()))
        return min(waits) if waits else None


def _only(lists: dict[str, list[str]]) -> Object:
    return {key: value for key, value in lists.items() if value}


def _later(pod: Object, other: Object) -> bool:
    """Whether a pod of the same index failed after another."""
    return rules.failures_of(pod) >= rules.failures_of(other) and rules.finished_at(pod) >= rules.finished_at(other)
