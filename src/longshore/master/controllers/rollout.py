"""Deployment arithmetic: pure functions over a Deployment and its ReplicaSets. No API, no clock but what is handed in.

Source: kubernetes pkg/controller/deployment/util, described behaviour.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import orjson

from longshore.client.objects import copy, is_deleting, seconds
from longshore.client.store import Object

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAX = "deployment.kubernetes.io/max-replicas"
ROLLBACK = "deprecated.deployment.rollback.to"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
OWN_ANNOTATIONS = frozenset({LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED, MAX, ROLLBACK})

NO_DEADLINE = 2**31 - 1
REVISION_HISTORY_LIMIT_CHARS = 2000
_SAFE = "bcdfghjklmnpqrstvwxz2456789"


def template_hash(template: Any, collisions: int = 0) -> str:
    """Ten letters that stand for a template; another number of collisions gives other letters."""
    text = orjson.dumps(template, option=orjson.OPT_SORT_KEYS) + (b"%d" % collisions if collisions else b"")
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
    letters = []
    for _ in range(10):
        number, index = divmod(number, len(_SAFE))
        letters.append(_SAFE[index])
    return "".join(letters)


def same_template(a: Object, b: Object) -> bool:
    """Whether two pod templates are equal but for their pod-template-hash."""
    return _bare(a) == _bare(b)


def _bare(template: Object) -> Object:
    metadata = {k: v for k, v in (template.get("metadata") or {}).items() if v is not None}
    labels = {k: v for k, v in (metadata.get("labels") or {}).items() if k != HASH_LABEL}
    metadata.pop("labels", None)
    if labels:
        metadata["labels"] = labels
    return {"metadata": metadata, "spec": template.get("spec") or {}}


def replicas(obj: Object) -> int:
    return int(obj["spec"].get("replicas", 1))


def status_number(obj: Object, field: str) -> int:
    return int((obj.get("status") or {}).get(field) or 0)


def wanted(sets: Iterable[Object]) -> int:
    """The sum of spec.replicas."""
    return sum(replicas(s) for s in sets)


def actual(sets: Iterable[Object], field: str) -> int:
    """The sum of a status number."""
    return sum(status_number(s, field) for s in sets)


def percent(value: Any, total: int, *, up: bool) -> int:
    """An int-or-percent of total, rounded up or down. A text that is no percentage counts as 0."""
    if isinstance(value, int):
        return value
    text = str(value or "0")
    try:
        share = int(text.removesuffix("%")) * total
    except ValueError:
        return 0
    return -(-share // 100) if up else share // 100


def is_rolling(d: Object) -> bool:
    return bool((d["spec"].get("strategy") or {}).get("type", "RollingUpdate") == "RollingUpdate")


def fenceposts(d: Object) -> tuple[int, int]:
    """(max surge, max unavailable) in pods; never both 0."""
    if not is_rolling(d):
        return 0, 0
    rolling = (d["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    surge = percent(rolling.get("maxSurge", "25%"), replicas(d), up=True)
    unavailable = percent(rolling.get("maxUnavailable", "25%"), replicas(d), up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, unavailable


def max_surge(d: Object) -> int:
    return fenceposts(d)[0]


def max_unavailable(d: Object) -> int:
    if not is_rolling(d) or replicas(d) == 0:
        return 0
    return min(fenceposts(d)[1], replicas(d))


def min_available(d: Object) -> int:
    return replicas(d) - max_unavailable(d)


def revision(obj: Object) -> int:
    try:
        return int((obj["metadata"].get("annotations") or {}).get(REVISION) or 0)
    except ValueError:
        return 0


def by_age(sets: Iterable[Object]) -> list[Object]:
    """Oldest first, equals by name."""
    return sorted(sets, key=lambda s: (seconds(s["metadata"].get("creationTimestamp")), s["metadata"]["name"]))


def find_new(d: Object, sets: Iterable[Object]) -> Object | None:
    """The set whose template is the Deployment's: the oldest of them."""
    template = d["spec"]["template"]
    return next((s for s in by_age(sets) if same_template(s["spec"]["template"], template)), None)


def active(sets: Iterable[Object]) -> list[Object]:
    return [s for s in sets if replicas(s) > 0]


def new_set_replicas(d: Object, sets: list[Object], new: Object | None) -> int:
    """How many pods the new set may have now."""
    have = replicas(new) if new is not None else 0
    if not is_rolling(d):
        return replicas(d)
    total, limit = wanted(sets), replicas(d) + max_surge(d)
    if total >= limit:
        return have
    return have + min(limit - total, replicas(d) - have)


def replica_annotations(d: Object) -> dict[str, str]:
    """What each set carries so that a later scaling is told from a rollout."""
    most = replicas(d) + max_surge(d) if replicas(d) else 0
    return {DESIRED: str(replicas(d)), MAX: str(most)}


def is_scaling(d: Object, sets: list[Object]) -> bool:
    """Whether spec.replicas changed since the sets were last sized."""
    for s in active(sets):
        desired = (s["metadata"].get("annotations") or {}).get(DESIRED)
        if desired is not None and desired.isdigit() and int(desired) != replicas(d):
            return True
    return False


def annotate_new(d: Object, new: Object, number: int, *, exists: bool) -> bool:
    """Copy the Deployment's annotations to its new set and raise its revision, in place. Whether anything changed."""
    annotations: dict[str, str] = new["metadata"].setdefault("annotations", {})
    changed = False
    for key, value in (d["metadata"].get("annotations") or {}).items():
        if key not in OWN_ANNOTATIONS and annotations.get(key) != value:
            annotations[key] = value
            changed = True
    old = annotations.get(REVISION)
    if not (old or "0").isdigit():
        return changed
    if int(old or 0) < number:
        annotations[REVISION] = str(number)
        changed = True
        if exists and old:
            history = [*filter(None, annotations.get(REVISION_HISTORY, "").split(",")), old]
            while len(",".join(history)) > REVISION_HISTORY_LIMIT_CHARS:
                history.pop(0)
            annotations[REVISION_HISTORY] = ",".join(history)
    if not exists:
        annotations.update(replica_annotations(d))
        changed = True
    return changed


def proportional_sizes(d: Object, sets: list[Object]) -> dict[str, int]:
    """New sizes by name for active sets in the middle of a rollout: each grows or shrinks by its share."""
    total = wanted(sets)
    allowed = replicas(d) + max_surge(d) if replicas(d) > 0 else 0
    to_add = allowed - total
    if to_add > 0:
        ordered = sorted(sets, key=lambda s: (-replicas(s), -seconds(s["metadata"].get("creationTimestamp"))))
    else:
        ordered = sorted(sets, key=lambda s: (-replicas(s), seconds(s["metadata"].get("creationTimestamp"))))
    sizes: dict[str, int] = {}
    added = 0
    for s in ordered:
        size = replicas(s)
        if to_add:
            share = _share(d, s, to_add, added)
            size += share
            added += share
        sizes[s["metadata"]["name"]] = size
    if ordered and to_add:
        first = ordered[0]["metadata"]["name"]
        sizes[first] = max(0, sizes[first] + to_add - added)
    return sizes


def _share(d: Object, s: Object, to_add: int, added: int) -> int:
    if replicas(s) == 0 or to_add == added:
        return 0
    left = to_add - added
    fraction = _fraction(d, s)
    return min(fraction, left) if to_add > 0 else max(fraction, left)


def _fraction(d: Object, s: Object) -> int:
    if replicas(d) == 0:
        return -replicas(s)
    text = (s["metadata"].get("annotations") or {}).get(MAX, "")
    before = int(text) if text.isdigit() and int(text) else status_number(d, "replicas")
    if before == 0:
        return 0
    size = replicas(s) * (replicas(d) + max_surge(d)) / before
    return math.floor(size + 0.5) - replicas(s)


def status(d: Object, sets: list[Object], new: Object | None) -> Object:
    """Status numbers, without conditions; zeros are left out as upstream encodes them."""
    available = actual(sets, "availableReplicas")
    numbers = {
        "replicas": actual(sets, "replicas"),
        "updatedReplicas": status_number(new, "replicas") if new is not None else 0,
        "readyReplicas": actual(sets, "readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": max(0, wanted(sets) - available),
    }
    result: Object = {k: v for k, v in numbers.items() if v}
    result["observedGeneration"] = d["metadata"].get("generation", 0)
    if all("terminatingReplicas" in (s.get("status") or {}) for s in sets):
        result["terminatingReplicas"] = actual(sets, "terminatingReplicas")
    collisions = (d.get("status") or {}).get("collisionCount")
    if collisions is not None:
        result["collisionCount"] = collisions
    return result


def is_complete(d: Object, fresh: Object) -> bool:
    n = replicas(d)
    return bool(
        fresh.get("updatedReplicas", 0) == n
        and fresh.get("replicas", 0) == n
        and fresh.get("availableReplicas", 0) == n
        and fresh.get("observedGeneration", 0) >= d["metadata"].get("generation", 0)
    )


def is_progressing(d: Object, fresh: Object) -> bool:
    """Whether the new numbers are nearer the end than the stored ones."""
    old = d.get("status") or {}

    def outdated(s: Object) -> int:
        return int(s.get("replicas", 0)) - int(s.get("updatedReplicas", 0))

    return bool(
        fresh.get("updatedReplicas", 0) > old.get("updatedReplicas", 0)
        or outdated(fresh) < outdated(old)
        or fresh.get("readyReplicas", 0) > old.get("readyReplicas", 0)
        or fresh.get("availableReplicas", 0) > old.get("availableReplicas", 0)
    )


def deadline(d: Object) -> int | None:
    """spec.progressDeadlineSeconds, or None when there is none."""
    value = d["spec"].get("progressDeadlineSeconds")
    return None if value is None or value == NO_DEADLINE else int(value)


def put_condition(conditions: list[Object], new: Object, stamp: str) -> list[Object]:
    """Conditions with new in its type's place. One of equal status and reason stays as it is."""
    old = next((c for c in conditions if c["type"] == new["type"]), None)
    if old is not None and old["status"] == new["status"] and old["reason"] == new["reason"]:
        return conditions
    same = old is not None and old["status"] == new["status"]
    fresh = {**new, "lastUpdateTime": stamp}
    fresh["lastTransitionTime"] = old["lastTransitionTime"] if old is not None and same else stamp
    return [*(c for c in conditions if c["type"] != new["type"]), fresh]


def expired_history(d: Object, old: list[Object]) -> list[Object]:
    """Old sets past spec.revisionHistoryLimit that have nothing left, the lowest revisions first."""
    limit = d["spec"].get("revisionHistoryLimit")
    if limit is None or limit == NO_DEADLINE:
        return []
    alive = [s for s in old if not is_deleting(s)]
    excess = len(alive) - int(limit)
    if excess <= 0:
        return []
    ordered = sorted(alive, key=lambda s: (revision(s), seconds(s["metadata"].get("creationTimestamp"))))
    return [
        s
        for s in ordered[:excess]
        if not replicas(s)
        and not status_number(s, "replicas")
        and s["metadata"].get("generation", 0) <= status_number(s, "observedGeneration")
    ]


def new_set(d: Object, owner: Object, collisions: int) -> Object:
    """A fresh ReplicaSet for the Deployment's template, without replicas and annotations."""
    template = copy(d["spec"]["template"])
    letters = template_hash(template, collisions)
    labels = template.setdefault("metadata", {}).setdefault("labels", {})
    labels[HASH_LABEL] = letters
    selector = copy(d["spec"]["selector"])
    selector.setdefault("matchLabels", {})[HASH_LABEL] = letters
    spec: Object = {"selector": selector, "template": template}
    if d["spec"].get("minReadySeconds"):
        spec["minReadySeconds"] = d["spec"]["minReadySeconds"]
    metadata = {
        "name": f"{d['metadata']['name']}-{letters}",
        "namespace": d["metadata"]["namespace"],
        "labels": dict(labels),
        "ownerReferences": [owner],
    }
    return {"metadata": metadata, "spec": spec}
