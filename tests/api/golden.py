"""Runs recorded creations and patches through the kinds alone, in the order of the server's steps, without a server.

Where admission plugins of upstream add something to every pod, this does the same, so that updates start from what the
recording started from.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import uuid
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from longshore.api import decoding, times
from longshore.api.kinds import BY_KIND, KINDS, Resource
from longshore.api.validation.errors import invalid_message
from longshore.machinery.patch import mergepatch

GOLDEN = Path(os.environ.get("LONGSHORE_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the recorded exchanges are not here")


def replay() -> ModuleType:
    """The replay script as a module, for its way of comparing."""
    spec = importlib.util.spec_from_file_location("replay_kubernetes", GOLDEN / "replay_kubernetes.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scenarios(theme: str) -> dict[str, list[dict[str, Any]]]:
    """Scenario name -> its steps."""
    out: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with (GOLDEN / "kubernetes" / "exchanges" / f"{theme}.jsonl").open() as lines:
        for line in lines:
            step = json.loads(line)
            out[step["id"].rsplit("/", 1)[0]].append(step)
    return out


def unstable() -> set[str]:
    return set((GOLDEN / "kubernetes" / "unstable.txt").read_text().split())


PATH = re.compile(
    r"/(?:api/(?P<core>[^/]+)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))(?:/namespaces/(?P<ns>[^/]+))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?"
)


def locate(path: str) -> tuple[Resource, str, str, str, str] | None:
    """(resource, version, namespace, name, subresource) of a path."""
    match = PATH.fullmatch(path)
    if match is None:
        return None
    resource = KINDS.get((match["group"] or "", match["plural"]))
    return (
        None
        if resource is None
        else (resource, match["core"] or match["version"], match["ns"] or "", match["name"] or "", match["sub"] or "")
    )


class Refused(Exception):
    def __init__(self, status: dict[str, Any]) -> None:
        self.status = status


def pod_admission(obj: dict[str, Any]) -> None:
    spec = obj["spec"]
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("serviceAccount", spec["serviceAccountName"])
    spec.setdefault("priority", 0)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    tolerations = spec.setdefault("tolerations", [])
    for key in ("not-ready", "unreachable"):
        full = f"node.kubernetes.io/{key}"
        if not any(t.get("key") in (full, None) and t.get("effect", "NoExecute") == "NoExecute" for t in tolerations):
            tolerations.append({"key": full, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
    if spec.get("automountServiceAccountToken") is not False:
        mount = {
            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
            "name": "kube-api-access-abcde",
            "readOnly": True,
        }
        for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
            container["volumeMounts"] = [*container.get("volumeMounts", ()), dict(mount)]
        sources = [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": "kube-root-ca.crt"}},
            {
                "downwardAPI": {
                    "items": [
                        {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}, "path": "namespace"}
                    ]
                }
            },
        ]
        spec["volumes"] = [
            *spec.get("volumes", ()),
            {"name": "kube-api-access-abcde", "projected": {"defaultMode": 420, "sources": sources}},
        ]


class Runner:
    """The objects of a scenario, and creations and merge patches on them."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str, str], dict[str, Any]] = {}
        self.warnings: list[str] = []

    def create(self, path: str, body: bytes, validation: str = "Warn", yaml_body: bool = False) -> dict[str, Any]:
        found = locate(path)
        assert found is not None, path
        resource, version, namespace, _, _ = found
        obj, self.warnings = decoding.read(resource, version, body, yaml_body=yaml_body, validation=validation)
        meta = obj["metadata"]
        if namespace:
            meta["namespace"] = namespace
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + "abcde"
        resource.default(obj, version)
        if resource.kind == "Pod":
            pod_admission(obj)
        obj = resource.to_storage(obj)
        meta = obj["metadata"]
        meta["uid"] = str(uuid.uuid4())
        meta["creationTimestamp"] = times.now()
        resource.prepare_create(obj, version)
        self.allocate(resource, obj)
        self.refuse(resource, obj, resource.validate(obj))
        self.warnings += resource.warnings(obj)
        meta["resourceVersion"] = "1"
        self.objects[(*resource.storage, namespace, meta["name"])] = obj
        return self.show(resource, obj, version)

    def allocate(self, resource: Resource, obj: dict[str, Any]) -> None:
        """What the server's allocators would do for a Service."""
        if resource.kind == "Service" and obj["spec"].get("type") in ("ClusterIP", "NodePort", "LoadBalancer"):
            spec = obj["spec"]
            spec.setdefault("clusterIP", "10.96.5.5")
            spec.setdefault("clusterIPs", [spec["clusterIP"]])
            spec.setdefault("ipFamilies", ["IPv4"])
            spec.setdefault("ipFamilyPolicy", "SingleStack")
            if spec["type"] != "ClusterIP" and spec.get("allocateLoadBalancerNodePorts") is not False:
                for at, port in enumerate(spec.get("ports") or ()):
                    port.setdefault("nodePort", 30000 + at)
        elif resource.kind == "Service":
            for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                obj["spec"].pop(key, None)

    def refuse(self, resource: Resource, obj: dict[str, Any], errors: list[Any]) -> None:
        if errors:
            name = obj["metadata"].get("name", "")
            # events.k8s.io is kept as the core group's kind, and refused as such.
            group = resource.storage[0]
            details = {"causes": [e.cause() for e in errors], "kind": resource.kind}
            if name:
                details["name"] = name
            if group:
                details["group"] = group
            raise Refused(
                {
                    "apiVersion": "v1",
                    "kind": "Status",
                    "metadata": {},
                    "status": "Failure",
                    "reason": "Invalid",
                    "code": 422,
                    "message": invalid_message(resource.kind, group, name, errors),
                    "details": details,
                }
            )

    def patch(self, path: str, patch: Any) -> dict[str, Any]:
        found = locate(path)
        assert found is not None, path
        resource, version, namespace, name, sub = found
        old = self.objects[(*resource.storage, namespace, name)]
        current = resource.convert(copy.deepcopy(old), version)
        patched = mergepatch.apply(current, patch)
        new = resource.decode(patched, version)
        new["apiVersion"], new["kind"] = resource.api_version(version), resource.kind
        resource.default(new, version)
        new = resource.to_storage(new)
        resource.prepare_update(new, copy.deepcopy(old), version, sub)
        self.allocate(resource, new)
        self.refuse(resource, new, resource.validate_update(new, copy.deepcopy(old), sub))
        self.warnings = resource.warnings(new, old)
        self.objects[(*resource.storage, namespace, name)] = new
        return self.show(resource, new, version)

    def show(self, resource: Resource, obj: dict[str, Any], version: str) -> dict[str, Any]:
        out = copy.deepcopy(obj)
        if resource.storage != (resource.group, resource.plural):
            return resource.convert(out, version)
        return resource.convert(out, version)


def run_step(runner: Runner, step: dict[str, Any], bindings: Any, module: ModuleType) -> str:
    """ "" when the answer agrees, else what differs; "skip" for steps that are not the kinds' alone."""
    method, found = step["method"], locate(step["path"])
    content = step["headers"].get("Content-Type", "")
    if found is None or found[4] or "auth" in step or step["status"] in (403, 404, 405, 409, 415):
        return "skip"
    for before in step.get("before", ()):
        if before["method"] == "POST" and before["status"] == 201 and locate(before["path"]):
            runner.create(before["path"], json.dumps(bindings.fill(before["body"])).encode(), "Ignore")
    want = step.get("response")
    if want is None:
        return "skip"
    try:
        if method == "POST":
            query = dict(tuple(p) for p in step.get("query") or ())
            if query.get("fieldValidation", "Warn") not in ("Ignore", "Warn", "Strict"):
                return "skip"
            body = (
                step["body_text"].encode()
                if "body_text" in step
                else json.dumps(bindings.fill(step.get("body"))).encode()
            )
            if "protobuf" in content or "cbor" in content or "body_note" in step:
                return "skip"
            got = runner.create(step["path"], body, query.get("fieldValidation", "Warn"), "yaml" in content)
        elif method == "PATCH" and content == "application/merge-patch+json":
            if "validation/bodies" in step["id"] or "fieldvalidation" in step["id"] or "mandatory" in step["id"]:
                return "skip"
            got = runner.patch(step["path"], bindings.fill(step["body"]))
        elif method == "GET" and found[3]:
            resource, version, namespace, name, _ = found
            kept = runner.objects.get((*resource.storage, namespace, name))
            if kept is None or "apiservice" in step["id"] or "crd" in step["id"]:
                return "skip"
            got = runner.show(resource, kept, version)
        else:
            return "skip"
    except decoding.BodyError as error:
        got = {
            "apiVersion": "v1",
            "kind": "Status",
            "metadata": {},
            "status": "Failure",
            "reason": "BadRequest",
            "code": 400,
            "message": str(error),
        }
    except Refused as refused:
        got = refused.status
    want = copy.deepcopy(want)
    for side in (want, got):
        side.get("metadata", {}).pop("managedFields", None)
        if side.get("kind") == "CertificateSigningRequest":
            for key in ("username", "groups", "extra", "uid"):
                side.get("spec", {}).pop(key, None)
        if side.get("kind") in ("PersistentVolume", "PersistentVolumeClaim", "VolumeAttributesClass"):
            side["metadata"].pop("finalizers", None)
        if side.get("kind") == "Node":
            side.get("spec", {}).pop("taints", None)
    want.get("metadata", {}).pop("resourceVersion", None)
    got.get("metadata", {}).pop("resourceVersion", None)
    try:
        bindings.match(want, got)
    except module.Mismatch as mismatch:
        text = str(mismatch)
        if "Status" in (want.get("kind"), got.get("kind")) and want.get("message") != got.get("message"):
            text = f"\n   want {want.get('message', want)}\n   got  {got.get('message') or json.dumps(got)}"
        return text
    heard = (
        [
            json.loads('"' + h.split('"', 1)[1].rsplit('"', 1)[0] + '"')
            for h in step["response_headers"].get("Warning") or ()
            if "deprecated in v1.33+; use discovery" not in h
        ]
        if isinstance(step["response_headers"].get("Warning"), list)
        else None
    )
    if heard is not None and sorted(heard) != sorted(runner.warnings) and want.get("kind") != "Status":
        return f"warnings: want {heard}, got {runner.warnings}"
    return ""


def score(theme: str, only: str = "") -> tuple[int, int, list[tuple[str, str]]]:
    """(agreeing, counted, [(id, difference)]) of a theme."""
    module = replay()
    skip_ids = unstable()
    good = counted = 0
    wrong: list[tuple[str, str]] = []
    for name, steps in scenarios(theme).items():
        if only not in name:
            continue
        runner, bindings = Runner(), module.Bindings()
        for step in steps:
            try:
                verdict = run_step(runner, step, bindings, module)
            except Exception as error:
                verdict = f"{type(error).__name__}: {error}"
                if os.environ.get("GOLDEN_RAISE"):
                    raise
            if verdict == "skip" or step["id"] in skip_ids:
                continue
            counted += 1
            if verdict:
                wrong.append((step["id"], verdict))
            else:
                good += 1
    return good, counted, wrong


if __name__ == "__main__":
    import sys

    for theme in sys.argv[1].split(","):
        good, counted, wrong = score(theme, sys.argv[2] if len(sys.argv) > 2 else "")
        for step_id, why in wrong:
            print(step_id, why[:1500])
        print(theme, good, "of", counted)

assert BY_KIND
