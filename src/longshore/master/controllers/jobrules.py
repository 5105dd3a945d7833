"""Job arithmetic: index lists, which pods count as failed, failure and success policies. Pure functions.

Source: kubernetes pkg/controller/job (indexed_job_utils, pod_failure_policy, success_policy), described behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from longshore.client.objects import is_deleting, phase, seconds
from longshore.client.store import Object

INDEX = "batch.kubernetes.io/job-completion-index"
FAILURES = "batch.kubernetes.io/job-index-failure-count"
IGNORED_FAILURES = "batch.kubernetes.io/job-index-ignored-failure-count"
FINALIZER = "batch.kubernetes.io/job-tracking"


def parse_indexes(text: str | None, limit: int = 2**31) -> set[int]:
    """The numbers of "1,3-5", those below limit. Garbage is skipped."""
    found: set[int] = set()
    for part in (text or "").split(","):
        first, dash, last = part.partition("-")
        if first.isdigit() and (not dash or last.isdigit()):
            low, high = int(first), min(int(last or first), limit - 1)
            found.update(range(low, high + 1))
    return {n for n in found if n < limit}


def format_indexes(numbers: Iterable[int]) -> str:
    """ "1,3-5" for {1, 3, 4, 5}."""
    parts: list[str] = []
    run: list[int] = []
    for n in [*sorted(numbers), -1]:
        if run and n == run[-1] + 1:
            run.append(n)
            continue
        if len(run) > 2:
            parts.append(f"{run[0]}-{run[-1]}")
        else:
            parts.extend(map(str, run))  # two in a row are no range yet
        run = [n]
    return ",".join(parts)


def index_of(pod: Object) -> int:
    """The pod's completion index, -1 for none."""
    text = (pod["metadata"].get("annotations") or {}).get(INDEX, "")
    return int(text) if text.isdigit() else -1


def count_of(pod: Object, annotation: str) -> int:
    text = (pod["metadata"].get("annotations") or {}).get(annotation, "")
    return int(text) if text.isdigit() else 0


def is_indexed(job: Object) -> bool:
    return bool(job["spec"].get("completionMode") == "Indexed")


def only_failed(job: Object) -> bool:
    """Whether a pod is replaced only when it has failed in full."""
    return bool(job["spec"].get("podReplacementPolicy") == "Failed" or job["spec"].get("podFailurePolicy"))


def has_failed(job: Object, pod: Object) -> bool:
    """Whether a pod counts as failed: also one that is being deleted, unless only full failures count."""
    if phase(pod) == "Failed":
        return True
    return is_deleting(pod) and phase(pod) != "Succeeded" and not only_failed(job)


def finished_at(pod: Object) -> float:
    """When a pod ended, seconds since the epoch: the last of its containers and sidecars, else when it became unready, else
    when its deletion was asked for, else when it was made."""
    status = pod.get("status") or {}
    sidecars = {c["name"] for c in pod["spec"].get("initContainers") or () if c.get("restartPolicy") == "Always"}
    entries = [*(status.get("containerStatuses") or ())]
    entries += [e for e in status.get("initContainerStatuses") or () if e["name"] in sidecars]
    ends = [((e.get("state") or {}).get("terminated") or {}).get("finishedAt") for e in entries]
    if ends and all(ends):
        return max(map(seconds, ends))
    for condition in status.get("conditions") or ():
        if condition["type"] == "Ready" and condition.get("status") == "False" and condition.get("lastTransitionTime"):
            return seconds(condition["lastTransitionTime"])
    meta = pod["metadata"]
    if meta.get("deletionTimestamp"):
        return seconds(meta["deletionTimestamp"]) - int(meta.get("deletionGracePeriodSeconds") or 0)
    return seconds(meta.get("creationTimestamp"))


def failures_of(pod: Object) -> int:
    """How often a pod's index had failed before it, ignored failures too."""
    return count_of(pod, FAILURES) + count_of(pod, IGNORED_FAILURES)


def failure_counts(job: Object, last: Object | None) -> dict[str, str]:
    """The annotations of the pod that replaces the last failed one of an index (None: the first)."""
    if last is None:
        return {FAILURES: "0"}
    is_ignored = judge(job, last).action == "Ignore"
    ignored = count_of(last, IGNORED_FAILURES) + is_ignored
    counts = {FAILURES: str(count_of(last, FAILURES) + (not is_ignored))}
    return {**counts, IGNORED_FAILURES: str(ignored)} if ignored else counts


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the pod failure policy says of a failed pod. action: Count, Ignore, FailIndex or FailJob."""

    action: str = "Count"
    message: str = ""


def judge(job: Object, pod: Object) -> Verdict:
    """Apply the first rule of the pod failure policy that matches."""
    policy = job["spec"].get("podFailurePolicy")
    if not policy or phase(pod) != "Failed":
        return Verdict()
    for number, rule in enumerate(policy.get("rules") or ()):
        action = rule.get("action", "Count")
        if rule.get("onExitCodes"):
            found = _exit_code(rule["onExitCodes"], pod)
            if found is not None:
                container, code = found
                where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                message = f"Container {container} for pod {where} failed with exit code {code} "
                return Verdict(action, message + f"matching {action} rule at index {number}")
        for condition in (pod.get("status") or {}).get("conditions") or ():
            for pattern in rule.get("onPodConditions") or ():
                if condition["type"] == pattern["type"] and condition.get("status") == pattern.get("status", "True"):
                    where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                    message = f"Pod {where} has condition {condition['type']} "
                    return Verdict(action, message + f"matching {action} rule at index {number}")
    return Verdict()


def _exit_code(rule: Object, pod: Object) -> tuple[str, int] | None:
    status = pod.get("status") or {}
    for entry in [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]:
        code = ((entry.get("state") or {}).get("terminated") or {}).get("exitCode")
        if not code or rule.get("containerName") not in (None, entry["name"]):
            continue
        if (code in rule["values"]) == (rule["operator"] == "In"):
            return entry["name"], code
    return None


def success_rule(job: Object, done: set[int]) -> int | None:
    """The number of the first success rule that the completed indexes meet, or None."""
    completions = int(job["spec"].get("completions") or 0)
    for number, rule in enumerate((job["spec"].get("successPolicy") or {}).get("rules") or () if done else ()):
        wanted = parse_indexes(rule["succeededIndexes"], completions) if rule.get("succeededIndexes") else None
        if wanted is not None and not wanted:
            continue
        have = len(done & wanted) if wanted is not None else len(done)
        if wanted is not None and wanted <= done:
            return number
        if rule.get("succeededCount") is not None and have >= rule["succeededCount"]:
            return number
    return None
