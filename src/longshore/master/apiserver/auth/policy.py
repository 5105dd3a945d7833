"""The roles and bindings that every server has, from data/policy.txt, and their reconciliation at start.

The table: `role [NAMESPACE/]NAME [+AGGREGATES-TO] [<AGGREGATED-FROM]`, below it a line a rule: verbs, API groups ("core"
for the nameless one), resources and perhaps resource names, or verbs, the word `url`, paths. `bind [NAMESPACE/]NAME ROLE
SUBJECT...` binds a role of the same scope; subjects are user:, group: and account:NAMESPACE/NAME.
Source of the facts: a fresh upstream 1.36 server. Reconciliation: k8s.io/component-helpers/auth/rbac/reconciliation.
"""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from importlib.resources import files
from typing import Any

from longshore.machinery.errors import StatusError
from longshore.master.apiserver.context import API, Object

from .rbac import GROUP
from .rules import Rule, compact, covers

log = logging.getLogger("longshore.apiserver.auth")
AUTOUPDATE = "rbac.authorization.kubernetes.io/autoupdate"
_AGGREGATE = "rbac.authorization.k8s.io/aggregate-to-"


def _list(text: str) -> list[str]:
    return ["" if t == "core" else t for t in text.split(",")]


def _head(kind: str, place: str) -> Object:
    namespace, slash, name = place.rpartition("/")
    metadata: dict[str, Any] = {
        "name": name,
        "annotations": {AUTOUPDATE: "true"},
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
    }
    if slash:
        metadata["namespace"] = namespace
    return {"apiVersion": f"{GROUP}/v1", "kind": kind if slash else f"Cluster{kind}", "metadata": metadata}


def _subject(text: str) -> Object:
    kind, _, name = text.partition(":")
    if kind == "account":
        namespace, _, name = name.partition("/")
        return {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    return {"apiGroup": GROUP, "kind": kind.capitalize(), "name": name}


@lru_cache(maxsize=1)
def objects() -> tuple[tuple[str, Object], ...]:
    """(plural, object) of every bootstrap role and binding, roles first."""
    out: list[tuple[str, Object]] = []
    for line in (files(__package__) / "data" / "policy.txt").read_text().splitlines():
        words = line.split()
        if not words or words[0] == "#":
            continue
        if line.startswith(" "):
            verbs, groups, *rest = words
            rule: Object = {"verbs": _list(verbs)}
            if groups == "url":
                rule["nonResourceURLs"] = _list(rest[0])
            else:
                rule |= {"apiGroups": _list(groups), "resources": _list(rest[0])}
                if len(rest) > 1:
                    rule["resourceNames"] = _list(rest[1])
            out[-1][1]["rules"].append(rule)
        elif words[0] == "role":
            role = _head("Role", words[1])
            role["rules"] = []
            for mark in words[2:]:
                if mark[0] == "+":
                    role["metadata"]["labels"][_AGGREGATE + mark[1:]] = "true"
                else:
                    selector = {"matchLabels": {_AGGREGATE + mark[1:]: "true"}}
                    role.setdefault("aggregationRule", {"clusterRoleSelectors": []})["clusterRoleSelectors"].append(
                        selector
                    )
            out.append(("roles" if role["kind"] == "Role" else "clusterroles", role))
        else:
            binding = _head("RoleBinding", words[1])
            namespaced = binding["kind"] == "RoleBinding"
            binding["roleRef"] = {"apiGroup": GROUP, "kind": "Role" if namespaced else "ClusterRole", "name": words[2]}
            binding["subjects"] = [_subject(w) for w in words[3:]]
            out.append(("rolebindings" if namespaced else "clusterrolebindings", binding))
    return tuple(out)


def rules_of(cluster_role: str) -> list[Rule]:
    """The rules that a bootstrap cluster role has."""
    for plural, obj in objects():
        if plural == "clusterroles" and obj["metadata"]["name"] == cluster_role:
            return [Rule(r) for r in obj["rules"]]
    raise KeyError(cluster_role)


async def reconcile(api: API) -> None:
    """Makes what is missing, and gives back rules and subjects that were taken away, unless autoupdate is "false"."""
    wanted = objects()
    results = await asyncio.gather(*(_reconcile(api, p, o) for p, o in wanted), return_exceptions=True)
    for (plural, obj), result in zip(wanted, results, strict=True):
        if isinstance(result, StatusError):
            log.warning("%s %s could not be reconciled: %s", plural, obj["metadata"]["name"], result.message)
        elif isinstance(result, BaseException):
            raise result
    objects.cache_clear()  # wanted once a start


async def _reconcile(api: API, plural: str, wanted: Object) -> None:
    meta = wanted["metadata"]
    namespace = meta.get("namespace", "")
    present = api.get(GROUP, plural, namespace, meta["name"])
    if present is None:
        try:
            await api.create(GROUP, plural, namespace, wanted)
        except StatusError as error:
            if error.reason != "AlreadyExists":
                raise
        return
    if (present["metadata"].get("annotations") or {}).get(AUTOUPDATE) == "false":
        return
    changed = _merge_metadata(present, wanted)
    if plural.endswith("roles"):
        changed |= _merge_role(present, wanted)
    else:
        held = present.setdefault("subjects", []) if present.get("subjects") is not None else []
        missing = [s for s in wanted["subjects"] if not any(_same_subject(s, h) for h in held)]
        if missing:
            present["subjects"] = [*held, *missing]
            changed = True
        if present.get("roleRef") != wanted["roleRef"]:
            # a binding's role cannot be changed: it is made anew
            await api.delete(GROUP, plural, namespace, meta["name"])
            await api.create(GROUP, plural, namespace, wanted)
            return
    if changed:
        await api.update(GROUP, plural, namespace, present)


def _merge_metadata(present: Object, wanted: Object) -> bool:
    changed = False
    for field in ("labels", "annotations"):
        held = present["metadata"].setdefault(field, {}) or {}
        for key, value in wanted["metadata"][field].items():
            if key not in held:
                held[key] = value
                changed = True
        present["metadata"][field] = held
    return changed


def _merge_role(present: Object, wanted: Object) -> bool:
    if "aggregationRule" in wanted:
        if present.get("aggregationRule") == wanted["aggregationRule"]:
            return False
        present["aggregationRule"] = wanted["aggregationRule"]
        return True
    missing = covers([Rule(r) for r in present.get("rules") or ()], wanted["rules"])
    if missing:
        present["rules"] = [*(present.get("rules") or ()), *compact(missing)]
    return bool(missing)


def _same_subject(a: Object, b: Object) -> bool:
    return all(a.get(k, "") == b.get(k, "") for k in ("kind", "name", "namespace"))
