"""The batch group: Job and CronJob."""

from __future__ import annotations

import re
from datetime import datetime
from itertools import pairwise
from typing import Any

from longshore.api import printing, times
from longshore.api.core import pod_validation, pod_warnings
from longshore.api.core.podspec import default_template
from longshore.api.gotypes import dump
from longshore.api.strategy import Object, Strategy, age, age_of, human_duration
from longshore.api.validation import cron, metadata
from longshore.api.validation.errors import Errors, Raw
from longshore.api.validation.names import dns1123_label, dns1123_subdomain, domain_prefixed_path, qualified_name
from longshore.api.validation.quantities import not_negative
from longshore.api.validation.selectors import label_selector
from longshore.machinery.selectors import SelectorError, from_object

UID, OLD_UID = "batch.kubernetes.io/controller-uid", "controller-uid"
NAME, OLD_NAME = "batch.kubernetes.io/job-name", "job-name"
MAX_INT32 = 2**31 - 1
_BATCH = "io.k8s.api.batch.v1."
_ACTIONS = ("Count", "FailIndex", "FailJob", "Ignore")


def default_job_spec(spec: Object) -> None:
    """A job's spec, in a Job (a CronJob's template is not defaulted as a job)."""
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = spec["parallelism"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", MAX_INT32 if spec.get("backoffLimitPerIndex") is not None else 6)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("suspend", False)
    spec.setdefault("manualSelector", False)
    spec.setdefault(
        "podReplacementPolicy", "Failed" if spec.get("podFailurePolicy") is not None else "TerminatingOrFailed"
    )
    _default_failure_policy(spec)


def _default_failure_policy(spec: Object) -> None:
    for rule in (spec.get("podFailurePolicy") or {}).get("rules") or ():
        for pattern in rule.get("onPodConditions") or ():
            if not pattern.get("status"):
                pattern["status"] = "True"


class Job(Strategy):
    """Pods that run to their end."""

    generation = True

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        default_template(spec["template"])
        default_job_spec(spec)
        labels = spec["template"]["metadata"].get("labels")
        if labels and not obj["metadata"].get("labels"):
            obj["metadata"]["labels"] = dict(labels)

    def prepare_create(self, obj: Object) -> None:
        spec, meta = obj["spec"], obj["metadata"]
        labelled = bool(meta.get("labels"))
        if not spec.get("manualSelector"):
            labels = spec["template"]["metadata"].setdefault("labels", {})
            uid, name = meta["uid"], meta.get("name", "")
            if OLD_UID not in labels and UID not in labels:
                labels[OLD_UID] = uid
            if OLD_NAME not in labels and NAME not in labels:
                labels[OLD_NAME] = name
            labels.setdefault(UID, uid)
            labels.setdefault(NAME, name)
            selector = spec.get("selector")
            if selector is None:
                selector = spec["selector"] = {}
            matching = selector.setdefault("matchLabels", {})
            matching.setdefault(UID, uid)
        if not labelled and spec["template"]["metadata"].get("labels"):
            # What upstream's defaults do when they next read the stored object.
            meta["labels"] = dict(spec["template"]["metadata"]["labels"])

    def prepare_update(self, new: Object, old: Object) -> None:
        return

    def validate_meta(self, obj: Object, errors: Errors, namespaced: bool) -> None:
        meta = obj["metadata"]
        labels = meta.get("labels") or {}
        if labels.get(UID, "") == meta.get("uid"):
            # The template's labels, which the server itself has put here.
            obj = {**obj, "metadata": {k: v for k, v in meta.items() if k != "labels"}}
        super().validate_meta(obj, errors, namespaced)

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec, meta = obj["spec"], obj["metadata"]
        if not spec.get("manualSelector") and spec.get("selector") is not None:
            labels = spec["template"]["metadata"].get("labels") or {}
            for key, want in ((UID, meta.get("uid", "")), (NAME, meta.get("name", ""))):
                if key not in labels:
                    errors.required(f"spec.template.metadata.labels[{key}]", f"must be '{want}'")
                elif labels[key] != want:
                    errors.invalid(f"spec.template.metadata.labels[{key}]", labels, f"must be '{want}'")
            try:
                wanted = from_object(spec["selector"])
                if not wanted.matches({UID: meta.get("uid", ""), NAME: meta.get("name", "")}):
                    errors.invalid("spec.selector", spec["selector"], "`selector` not auto-generated")
            except SelectorError:
                pass
        job_spec(errors, spec, "spec")
        if spec.get("completionMode") == "Indexed" and (spec.get("completions") or 0) > 0:
            host = f"{meta.get('name', '')}-{spec['completions'] - 1}"
            if dns1123_label(host):
                errors.invalid(
                    "metadata.name",
                    meta.get("name", ""),
                    f"will not able to create pod with invalid DNS label: {host}",
                )

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors)
        spec, before = new["spec"], old["spec"]
        job_spec(errors, spec, "spec")
        if spec.get("completions") != before.get("completions"):
            if (
                before.get("completions") is not None
                and before.get("completionMode") == "Indexed"
                and spec.get("completions") is not None
            ):
                if spec.get("parallelism") != spec["completions"]:
                    errors.invalid(
                        "spec.completions", spec["completions"], "can only be modified in tandem with spec.parallelism"
                    )
            else:
                errors.invalid("spec.completions", spec.get("completions"), metadata.IMMUTABLE)
        if spec.get("selector") != before.get("selector"):
            errors.invalid("spec.selector", spec.get("selector"), metadata.IMMUTABLE)
        template = spec["template"]
        if template != before["template"]:
            if not _at_rest(old):
                errors.invalid(
                    "spec.template", dump("io.k8s.api.core.v1.PodTemplateSpec", template), metadata.IMMUTABLE
                )
            elif _schedulable(template, before["template"])["spec"] != before["template"]["spec"]:
                # Where the pods go and what their containers get may change; nothing else of their spec.
                errors.invalid(
                    "spec.template.spec", dump("io.k8s.api.core.v1.PodSpec", template["spec"]), metadata.IMMUTABLE
                )
        for key in ("completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"):
            if spec.get(key) != before.get(key):
                shown = spec.get(key)
                if isinstance(shown, dict):
                    shown = dump(_BATCH + key[0].upper() + key[1:], shown)
                errors.invalid(f"spec.{key}", shown, metadata.IMMUTABLE)

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        status = new["status"]
        for key in ("active", "succeeded", "failed", "ready", "terminating"):
            not_negative(errors, status.get(key), f"status.{key}")
        start, end = status.get("startTime"), status.get("completionTime")
        finished = {c.get("type") for c in status.get("conditions") or () if c.get("status") == "True"}
        if end is not None and "Complete" not in finished:
            errors.invalid(
                "status.completionTime", end, "cannot set completionTime when there is no Complete=True condition"
            )
        if start is not None and end is not None and end < start:
            errors.invalid("status.completionTime", end, "completionTime cannot be set before startTime")
        if "Complete" in finished and "Failed" in finished:
            errors.invalid("status.conditions", Raw("[]"), "cannot set Complete=True and Failed=True conditions")
        if status.get("active") and ("Complete" in finished or "Failed" in finished):
            errors.invalid("status.active", status["active"], "active>0 is invalid for finished job")

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        spec = obj["spec"]
        if old is not None and old["metadata"].get("generation") == obj["metadata"].get("generation"):
            return []
        return (pod_warnings.name_warnings(obj) if old is None else []) + _many(spec, "spec")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj["spec"], obj.get("status") or {}
        succeeded = status.get("succeeded", 0)
        if spec.get("completions") is not None:
            done = f"{succeeded}/{spec['completions']}"
        elif spec.get("parallelism", 0) > 1:
            done = f"{succeeded}/1 of {spec['parallelism']}"
        else:
            done = f"{succeeded}/1"
        duration = ""
        if status.get("startTime"):
            end = times.parse(status["completionTime"]) if status.get("completionTime") else now
            duration = human_duration((end - times.parse(status["startTime"])).total_seconds())
        names, images = printing.containers(spec["template"]["spec"])
        return [
            obj["metadata"]["name"],
            _job_state(obj),
            done,
            duration,
            age_of(obj, now),
            names,
            images,
            printing.selector(spec.get("selector")),
        ]

    def selectable(self, obj: Object) -> dict[str, str]:
        return {"status.successful": str((obj.get("status") or {}).get("succeeded", 0))}


def _many(spec: Object, path: str) -> list[str]:
    """Warnings about a job's spec: more indexes than can be kept track of, and what its pods bring."""
    found = []
    completions, parallelism = spec.get("completions") or 0, spec.get("parallelism") or 0
    if spec.get("completionMode") == "Indexed" and completions > 100000 and parallelism > 10000:
        found.append(
            f"{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        )
    template = spec["template"]
    return found + pod_warnings.pod_warnings(template["spec"], template["metadata"], f"{path}.template.spec")


def _job_state(obj: Object) -> str:
    true = {c.get("type") for c in (obj.get("status") or {}).get("conditions") or () if c.get("status") == "True"}
    if "Complete" in true:
        return "Complete"
    if "Failed" in true:
        return "Failed"
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    if "Suspended" in true:
        return "Suspended"
    if "FailureTarget" in true:
        return "FailureTarget"
    return "SuccessCriteriaMet" if "SuccessCriteriaMet" in true else "Running"


def _at_rest(job: Object) -> bool:
    """Whether a job is suspended and has no pods: then where they will go and what they get may change."""
    status = job.get("status") or {}
    stopped = any(c.get("type") == "Suspended" and c.get("status") == "True" for c in status.get("conditions") or ())
    idle = status.get("startTime") is None or stopped
    return bool(job["spec"].get("suspend")) and idle and not status.get("active")


def _schedulable(template: Object, before: Object) -> Object:
    """The template with what decides where its pods go, and their containers' resources, put back."""
    spec = {**template["spec"]}
    old = before["spec"]
    for key in ("affinity", "nodeSelector", "tolerations", "schedulingGates"):
        if key in old:
            spec[key] = old[key]
        else:
            spec.pop(key, None)
    for key in ("containers", "initContainers"):
        listed, was = spec.get(key) or [], old.get(key) or []
        if key in spec and len(listed) == len(was):
            spec[key] = [
                {**new, "resources": one["resources"]} if new.get("name") == one.get("name") else new
                for new, one in zip(listed, was, strict=True)
            ]
    meta = {**template["metadata"]}
    for key in ("annotations", "labels"):
        if key in before["metadata"]:
            meta[key] = before["metadata"][key]
        else:
            meta.pop(key, None)
    return {**template, "metadata": meta, "spec": spec}


def job_spec(errors: Errors, spec: Object, path: str) -> None:
    """A Job's spec with its selector."""
    plain_job_spec(errors, spec, path)
    selector = spec.get("selector")
    if selector is None:
        errors.required(f"{path}.selector")
    else:
        label_selector(errors, selector, f"{path}.selector")
    try:
        matches = from_object(selector).matches(spec["template"]["metadata"].get("labels") or {})
    except SelectorError:
        return
    if selector is not None and not matches:
        errors.invalid(
            f"{path}.template.metadata.labels",
            spec["template"]["metadata"].get("labels"),
            "`selector` does not match template `labels`",
        )


def plain_job_spec(errors: Errors, spec: Object, path: str) -> None:
    """A Job's spec but for the selector."""
    for key in (
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ):
        not_negative(errors, spec.get(key), f"{path}.{key}")
    manager = spec.get("managedBy")
    if manager is not None:
        if not manager:
            errors.required(f"{path}.managedBy")
        for part, message in domain_prefixed_path(manager) if manager else ():
            errors.invalid(f"{path}.managedBy", part, message)
        if len(manager) > 63:
            errors.too_long(f"{path}.managedBy", 63)
    per_index, most = spec.get("backoffLimitPerIndex"), spec.get("maxFailedIndexes")
    completions, parallelism, mode = spec.get("completions"), spec.get("parallelism"), spec.get("completionMode")
    if most is not None and per_index is None:
        errors.required(f"{path}.backoffLimitPerIndex", "when maxFailedIndexes is specified")
    if mode is not None:
        if mode not in ("NonIndexed", "Indexed"):
            errors.unsupported(f"{path}.completionMode", mode, ("NonIndexed", "Indexed"))
        if mode == "Indexed":
            if completions is None:
                errors.required(f"{path}.completions", "when completion mode is Indexed")
            if (parallelism or 0) > 100000:
                errors.invalid(
                    f"{path}.parallelism",
                    parallelism,
                    "must be less than or equal to 100000 when completion mode is Indexed",
                )
            if completions is not None and most is not None and most > completions:
                errors.invalid(f"{path}.maxFailedIndexes", most, "must be less than or equal to completions")
            if most is not None and most > 100000:
                errors.invalid(f"{path}.maxFailedIndexes", most, "must be less than or equal to 100000")
            if (completions or 0) > 100000 and per_index is not None:
                _many_indexes(errors, parallelism, most, path)
    if mode in (None, "NonIndexed"):
        for key in ("backoffLimitPerIndex", "maxFailedIndexes"):
            if spec.get(key) is not None:
                errors.invalid(f"{path}.{key}", spec[key], "requires indexed completion mode")
    if spec.get("podFailurePolicy") is not None:
        _failure_policy(errors, spec, f"{path}.podFailurePolicy")
    if spec.get("successPolicy") is not None:
        if mode != "Indexed":
            errors.invalid(
                f"{path}.successPolicy",
                dump(_BATCH + "SuccessPolicy", spec["successPolicy"]),
                "requires indexed completion mode",
            )
        else:
            _success_policy(errors, spec, f"{path}.successPolicy")
    replacement = spec.get("podReplacementPolicy")
    if replacement is not None:
        if spec.get("podFailurePolicy") is not None:
            if replacement != "Failed":
                errors.unsupported(f"{path}.podReplacementPolicy", replacement, ("Failed",))
        elif replacement not in ("Failed", "TerminatingOrFailed"):
            errors.unsupported(f"{path}.podReplacementPolicy", replacement, ("Failed", "TerminatingOrFailed"))
    pod_validation.validate_template(spec["template"], errors, f"{path}.template")
    restart = spec["template"]["spec"].get("restartPolicy", "")
    here = f"{path}.template.spec.restartPolicy"
    if restart in ("", "Always"):
        errors.required(here, 'valid values: "OnFailure", "Never"')
    elif restart not in ("OnFailure", "Never"):
        errors.unsupported(here, restart, ("OnFailure", "Never"))
    elif spec.get("podFailurePolicy") is not None and restart != "Never":
        errors.invalid(here, restart, 'only "Never" is supported when podFailurePolicy is specified')


def _many_indexes(errors: Errors, parallelism: int | None, most: int | None, path: str) -> None:
    limit = (
        "must be less than or equal to 10000 when completions are above 100000 and used with backoff limit per index"
    )
    if most is None:
        errors.required(f"{path}.maxFailedIndexes", "must be specified when completions is above 100000")
    if parallelism is not None and parallelism > 10000:
        errors.invalid(f"{path}.parallelism", parallelism, limit)
    if most is not None and most > 10000:
        errors.invalid(f"{path}.maxFailedIndexes", most, limit)


def _failure_policy(errors: Errors, spec: Object, path: str) -> None:
    rules = spec["podFailurePolicy"].get("rules") or []
    if len(rules) > 20:
        errors.too_many(f"{path}.rules", len(rules), 20)
    names = {c.get("name") for k in ("containers", "initContainers") for c in spec["template"]["spec"].get(k) or ()}
    for index, rule in enumerate(rules):
        here = f"{path}.rules[{index}]"
        action = rule.get("action", "")
        if not action:
            errors.required(f"{here}.action", 'valid values: ["Count" "FailIndex" "FailJob" "Ignore"]')
        elif action == "FailIndex" and spec.get("backoffLimitPerIndex") is None:
            errors.invalid(f"{here}.action", action, "requires the backoffLimitPerIndex to be set")
        elif action not in _ACTIONS:
            errors.unsupported(f"{here}.action", action, _ACTIONS)
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if codes is not None:
            _exit_codes(errors, codes, f"{here}.onExitCodes", names)
        if conditions:
            _pod_conditions(errors, conditions, f"{here}.onPodConditions")
        if codes is not None and conditions:
            errors.invalid(here, Raw(""), "specifying both OnExitCodes and OnPodConditions is not supported")
            errors[-1].value = Raw("specifying both OnExitCodes and OnPodConditions is not supported")
            errors[-1].detail = ""
        if codes is None and not conditions:
            errors.invalid(here, Raw("specifying one of OnExitCodes and OnPodConditions is required"))


def _exit_codes(errors: Errors, codes: Object, path: str, names: set[Any]) -> None:
    operator, values = codes.get("operator", ""), codes.get("values") or []
    if not operator:
        errors.required(f"{path}.operator", 'valid values: ["In" "NotIn"]')
    elif operator not in ("In", "NotIn"):
        errors.unsupported(f"{path}.operator", operator, ("In", "NotIn"))
    name = codes.get("containerName")
    if name is not None and name not in names:
        errors.invalid(
            f"{path}.containerName", name, "must be one of the container or initContainer names in the pod template"
        )
    if not values:
        errors.invalid(f"{path}.values", values or None, "at least one value is required")
    elif len(values) > 255:
        errors.too_many(f"{path}.values", len(values), 255)
    ordered = all(a <= b for a, b in pairwise(values))
    for index, value in enumerate(values):
        if operator == "In" and value == 0:
            errors.invalid(f"{path}.values[{index}]", value, "must not be 0 for the In operator")
        if value in values[:index]:
            errors.duplicate(f"{path}.values[{index}]", value)
    if not ordered:
        errors.invalid(f"{path}.values", values, "must be ordered")


def _pod_conditions(errors: Errors, patterns: list[Object], path: str) -> None:
    if len(patterns) > 20:
        errors.too_many(path, len(patterns), 20)
    for index, pattern in enumerate(patterns):
        here = f"{path}[{index}]"
        kind, status = pattern.get("type", ""), pattern.get("status", "")
        for message in qualified_name(kind):
            errors.invalid(f"{here}.type", kind, message)
        if not status:
            errors.required(f"{here}.status", 'valid values: ["False" "True" "Unknown"]')
        elif status not in ("False", "True", "Unknown"):
            errors.unsupported(f"{here}.status", status, ("False", "True", "Unknown"))


def _success_policy(errors: Errors, spec: Object, path: str) -> None:
    rules = spec["successPolicy"].get("rules") or []
    if not rules:
        errors.required(f"{path}.rules", "at least one rules must be specified when the successPolicy is specified")
    if len(rules) > 20:
        errors.too_many(f"{path}.rules", len(rules), 20)
    completions = spec.get("completions") or 0
    for index, rule in enumerate(rules):
        here = f"{path}.rules[{index}]"
        indexes, count = rule.get("succeededIndexes"), rule.get("succeededCount")
        if indexes is None and count is None:
            errors.required(here, "at least one of succeededCount or succeededIndexes must be specified")
        total = 0
        if indexes is not None:
            if len(indexes) > 64 * 1024:
                errors.too_long(f"{here}.succeededIndexes", 64 * 1024)
            try:
                total = count_indexes(indexes, completions)
            except ValueError as error:
                errors.invalid(f"{here}.succeededIndexes", indexes, f"error parsing succeededIndexes: {error}")
        if count is not None:
            not_negative(errors, count, f"{here}.succeededCount")
            if count > completions:
                errors.invalid(
                    f"{here}.succeededCount",
                    count,
                    f"must be less than or equal to {completions} (the number of specified completions)",
                )
            if indexes is not None and count > total:
                errors.invalid(
                    f"{here}.succeededCount",
                    count,
                    f"must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)",
                )


def count_indexes(text: str, completions: int) -> int:
    """How many indexes "1,3-5" names; ValueError with upstream's complaint."""
    if not text:
        return 0
    total, last = 0, -1
    for part in text.split(","):
        ends = part.split("-")
        if len(ends) > 2:
            raise ValueError(
                f"the fragment \"{part}\" violates the requirement that an index interval can have at most two parts separated by '-'"
            )
        numbers = []
        for end in ends:
            if not re.fullmatch(r"[+-]?\d+", end):
                raise ValueError(f'cannot convert string to integer for index: "{end}"')
            if int(end) >= completions:
                raise ValueError(f'too large index: "{end}"')
            numbers.append(int(end))
        if last >= numbers[0]:
            raise ValueError(f"non-increasing order, previous: {last}, current: {numbers[0]}")
        last = numbers[0]
        if len(numbers) == 2:
            if numbers[1] <= numbers[0]:
                raise ValueError(f"non-increasing order, previous: {numbers[0]}, current: {numbers[1]}")
            total += numbers[1] - numbers[0] + 1
            last = numbers[1]
        else:
            total += 1
    return total


class CronJob(Strategy):
    """Jobs by the clock."""

    generation = True

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        default_template(spec["jobTemplate"]["spec"]["template"])
        _default_failure_policy(spec["jobTemplate"]["spec"])
        spec.setdefault("concurrencyPolicy", "Allow")
        spec.setdefault("suspend", False)
        spec.setdefault("successfulJobsHistoryLimit", 3)
        spec.setdefault("failedJobsHistoryLimit", 1)

    def validate_meta(self, obj: Object, errors: Errors, namespaced: bool) -> None:
        super().validate_meta(obj, errors, namespaced)
        name = obj["metadata"].get("name", "")
        if len(name) > 52:
            errors.invalid("metadata.name", name, "must be no more than 52 characters")

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        schedule = spec.get("schedule", "")
        if not schedule:
            errors.required("spec.schedule")
        else:
            try:
                cron.parse(schedule)
            except ValueError as error:
                errors.invalid("spec.schedule", schedule, str(error))
            if "TZ" in schedule and spec.get("timeZone"):
                errors.invalid(
                    "spec.schedule", schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule"
                )
            elif "TZ" in schedule and (old is None or old["spec"].get("schedule") != schedule):
                errors.invalid(
                    "spec.schedule", schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
                )
        not_negative(errors, spec.get("startingDeadlineSeconds"), "spec.startingDeadlineSeconds")
        zone = spec.get("timeZone")
        if zone is not None:
            cron.time_zone(errors, zone)
        policy = spec.get("concurrencyPolicy", "")
        if not policy:
            errors.required("spec.concurrencyPolicy")
        elif policy not in ("Allow", "Forbid", "Replace"):
            errors.unsupported("spec.concurrencyPolicy", policy, ("Allow", "Forbid", "Replace"))
        template = spec["jobTemplate"]
        path = "spec.jobTemplate"
        plain_job_spec(errors, template["spec"], f"{path}.spec")
        if template["spec"].get("manualSelector"):
            errors.unsupported(f"{path}.spec.manualSelector", True, ("nil", "false"))
        if template["spec"].get("selector") is not None:
            errors.invalid(f"{path}.spec.selector", template["spec"]["selector"], "`selector` will be auto-generated")
        not_negative(errors, spec.get("successfulJobsHistoryLimit"), "spec.successfulJobsHistoryLimit")
        not_negative(errors, spec.get("failedJobsHistoryLimit"), "spec.failedJobsHistoryLimit")

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        found = pod_warnings.name_warnings(obj) if old is None else []
        if old is None or old["metadata"].get("generation") != obj["metadata"].get("generation"):
            found += _many(obj["spec"]["jobTemplate"]["spec"], "spec.jobTemplate.spec")
        if old is not None and "TZ" in obj["spec"].get("schedule", ""):
            found.append(
                "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead,"
                " see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
            )
        return found

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj["spec"], obj.get("status") or {}
        names, images = printing.containers(spec["jobTemplate"]["spec"]["template"]["spec"])
        last = age(status["lastScheduleTime"], now) if status.get("lastScheduleTime") else "<none>"
        return [
            obj["metadata"]["name"],
            spec.get("schedule", ""),
            spec.get("timeZone", "<none>"),
            "True" if spec.get("suspend") else "False",
            len(status.get("active") or ()),
            last,
            age_of(obj, now),
            names,
            images,
            printing.selector(spec["jobTemplate"]["spec"].get("selector")),
        ]


STRATEGIES = {"CronJob": CronJob, "Job": Job}
__all__ = ["STRATEGIES", "count_indexes", "dns1123_label", "dns1123_subdomain"]
