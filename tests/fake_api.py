"""An API server in memory for unit tests of controllers: the REST shape without defaults, validation or rights.

It stands where the real one is too slow to start for each test; journeys use the real one.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import orjson

from longshore.client.config import Config
from longshore.client.resources import BY_PLURAL, Resource
from longshore.client.rest import Client
from longshore.machinery.errors import StatusError

Object = dict[str, Any]


def copy(obj: Any) -> Any:
    return orjson.loads(orjson.dumps(obj))


def merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


class FakeAPI(Client):
    """All objects by (group, plural, namespace, name); every write is a revision and is told to watchers."""

    def __init__(self) -> None:
        self.config = Config("http://fake")
        self.objects: dict[tuple[str, str, str, str], Object] = {}
        self.revision = 0
        self.log: list[tuple[int, tuple[str, str], str, Object]] = []
        self.changed = asyncio.Event()
        self.calls: list[tuple[str, str]] = []
        self.fail: Any = None  # (method, path, body) -> StatusError | None
        self.uids = itertools.count(1)
        self.held: set[tuple[str, str]] = set()  # (group, plural) whose watches are silent

    async def close(self) -> None:
        return None

    # -- helpers for tests

    def all(self, resource: Resource, namespace: str = "") -> list[Object]:
        return [
            copy(obj)
            for (group, plural, where, _), obj in self.objects.items()
            if (group, plural) == (resource.group, resource.plural) and (not namespace or where == namespace)
        ]

    def put(self, resource: Resource, obj: Object, namespace: str = "") -> Object:
        """Store an object as a user would create it, or replace it (status and all)."""
        obj = copy(obj)
        meta = obj.setdefault("metadata", {})
        if resource.namespaced:
            meta.setdefault("namespace", namespace or "default")
        key = (resource.group, resource.plural, meta.get("namespace", ""), meta["name"])
        old = self.objects.get(key)
        meta.setdefault("uid", old["metadata"]["uid"] if old else f"uid-{next(self.uids)}")
        meta.setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        meta.setdefault("generation", 1)
        obj["kind"], obj["apiVersion"] = resource.kind, resource.api_version
        self._store(key, obj, "MODIFIED" if old else "ADDED")
        return copy(obj)

    def drop(self, resource: Resource, name: str, namespace: str = "") -> None:
        key = (resource.group, resource.plural, namespace, name)
        self._store(key, self.objects.pop(key), "DELETED")

    def _store(self, key: tuple[str, str, str, str], obj: Object, event: str) -> None:
        self.revision += 1
        obj["metadata"]["resourceVersion"] = str(self.revision)
        if event != "DELETED":
            self.objects[key] = obj
        self.log.append((self.revision, key[:2], event, copy(obj)))
        self.changed.set()
        self.changed = asyncio.Event()

    def hold(self, resource: Resource) -> None:
        """Watches of a resource tell nothing until `release`: a cache that lags."""
        self.held.add((resource.group, resource.plural))

    def release(self, resource: Resource) -> None:
        self.held.discard((resource.group, resource.plural))
        self.changed.set()
        self.changed = asyncio.Event()

    # -- the client's two doors

    async def call(self, method, path, query=None, body=None, *, content_type="application/json", accept=""):  # type: ignore[no-untyped-def]
        await asyncio.sleep(0)
        self.calls.append((method, path))
        body = copy(body) if body is not None else None
        if self.fail is not None:
            error = self.fail(method, path, body)
            if error is not None:
                raise error
        parts = path.strip("/").split("/")
        group, parts = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
        namespace = ""
        if len(parts) > 2 and parts[0] == "namespaces" and parts[2] not in ("status", "finalize"):
            namespace, parts = parts[1], parts[2:]
        plural, name, sub = (*parts, "", "")[:3]
        resource = BY_PLURAL.get((group, plural)) or Resource(group, "v1", plural)
        if group == "events.k8s.io":
            group = ""
        key = (group, plural, namespace, name)
        if method == "GET" and not name:
            return self._list(resource, group, namespace, query or {})
        if method == "POST" and not sub:
            return self._create(resource, group, namespace, body)
        obj = self.objects.get(key)
        if obj is None:
            raise StatusError(404, "NotFound", f'{resource} "{name}" not found', None)
        if method == "GET":
            return copy(obj)
        if method == "POST" and sub == "binding":
            if obj["spec"].get("nodeName"):
                raise StatusError(409, "Conflict", "already assigned", None)
            new = copy(obj)
            new["spec"]["nodeName"] = body["target"]["name"]
            new.setdefault("status", {}).setdefault("conditions", []).append({"type": "PodScheduled", "status": "True"})
            self._store(key, new, "MODIFIED")
            return {"kind": "Status", "status": "Success"}
        if method == "POST" and sub == "token":
            return {"status": {"token": f"token-of-{name}", "expirationTimestamp": "2099-01-01T00:00:00Z"}}
        if method == "DELETE":
            return self._delete(key, obj, body or {})
        return self._write(key, obj, method, sub, body, content_type)

    def _list(self, resource: Resource, group: str, namespace: str, query: dict[str, str]) -> Object:
        items = [
            copy(obj)
            for (g, plural, where, _), obj in self.objects.items()
            if g == group and plural == resource.plural and (not namespace or where == namespace)
        ]
        wanted = query.get("labelSelector")
        if wanted:
            pairs = [p.split("=", 1) for p in wanted.split(",")]
            items = [o for o in items if all((o["metadata"].get("labels") or {}).get(k) == v for k, v in pairs)]
        for item in items:
            item.pop("kind"), item.pop("apiVersion")
        return {"metadata": {"resourceVersion": str(self.revision)}, "items": items}

    def _create(self, resource: Resource, group: str, namespace: str, obj: Object) -> Object:
        meta = obj.setdefault("metadata", {})
        if "name" not in meta:
            meta["name"] = meta["generateName"] + "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
        if namespace:
            meta["namespace"] = namespace
        key = (group, resource.plural, namespace, meta["name"])
        if key in self.objects:
            raise StatusError(409, "AlreadyExists", f'{resource} "{meta["name"]}" already exists', None)
        meta["uid"] = f"uid-{next(self.uids)}"
        meta["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        meta["generation"] = 1
        obj["kind"], obj["apiVersion"] = resource.kind, resource.api_version
        if resource.plural == "pods":
            obj.setdefault("status", {}).setdefault("phase", "Pending")
        self._store(key, obj, "ADDED")
        return copy(obj)

    def _delete(self, key: tuple[str, str, str, str], obj: Object, options: Object) -> Object:
        meta = obj["metadata"]
        want = options.get("preconditions") or {}
        for field in ("uid", "resourceVersion"):
            if field in want and want[field] != meta.get(field):
                raise StatusError(409, "Conflict", "precondition failed", None)
        finalizers = list(meta.get("finalizers") or [])
        policy = options.get("propagationPolicy")
        if policy == "Foreground" and "foregroundDeletion" not in finalizers:
            finalizers.append("foregroundDeletion")
        if policy == "Orphan" and "orphan" not in finalizers:
            finalizers.append("orphan")
        if key[1] == "namespaces" and obj.get("spec", {}).get("finalizers"):
            finalizers.append("")
        if finalizers:
            new = copy(obj)
            if finalizers != [""]:
                new["metadata"]["finalizers"] = [f for f in finalizers if f]
            new["metadata"].setdefault("deletionTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
            if key[1] == "namespaces":
                new["status"] = {**new.get("status", {}), "phase": "Terminating"}
            self._store(key, new, "MODIFIED")
        else:
            del self.objects[key]
            self._store(key, copy(obj), "DELETED")
        return {"kind": "Status", "status": "Success"}

    def _write(
        self, key: tuple[str, str, str, str], obj: Object, method: str, sub: str, body: Any, content_type: str
    ) -> Object:
        if method == "PATCH" and isinstance(body, dict):
            change = body
            body = merge(obj, body)
            if "strategic" in content_type:
                self._strategic(obj, body, change)
        rv = (body.get("metadata") or {}).get("resourceVersion")
        if rv and rv != obj["metadata"]["resourceVersion"]:
            raise StatusError(409, "Conflict", "the object has been modified", None)
        if (body.get("metadata") or {}).get("uid", obj["metadata"]["uid"]) != obj["metadata"]["uid"]:
            raise StatusError(409, "Conflict", "Precondition failed: UID in precondition", None)
        new = copy(obj)
        if sub == "status":
            new["status"] = body.get("status", {})
            if "annotations" in body["metadata"]:  # as upstream's strategies: spec and labels stay
                new["metadata"]["annotations"] = body["metadata"]["annotations"]
        elif sub == "finalize":
            new["spec"] = body.get("spec", {})
        elif sub == "scale":
            new["spec"]["replicas"] = body["spec"]["replicas"]
            new["metadata"]["generation"] += 1
        else:
            new = {**body, "status": obj["status"]} if "status" in obj else dict(body)
            for field in ("uid", "creationTimestamp", "deletionTimestamp", "generation"):
                if field in obj["metadata"]:
                    new["metadata"][field] = obj["metadata"][field]
            if new.get("spec") != obj.get("spec"):
                new["metadata"]["generation"] = obj["metadata"].get("generation", 1) + 1
        new = copy(new)
        new["kind"], new["apiVersion"] = obj["kind"], obj["apiVersion"]
        new["metadata"]["resourceVersion"] = obj["metadata"]["resourceVersion"]
        if new == obj:
            return copy(obj)
        meta = new["metadata"]
        done = meta.get("deletionTimestamp") and not meta.get("finalizers")
        if done and not (key[1] == "namespaces" and new.get("spec", {}).get("finalizers")) and key[1] != "pods":
            del self.objects[key]
            self._store(key, new, "DELETED")
        else:
            self._store(key, new, "MODIFIED")
        return copy(new)

    @staticmethod
    def _strategic(old: Object, new: Object, change: Object) -> None:
        """Lists with merge keys, as far as controllers patch them: finalizers, owners, conditions."""
        meta, asked = old["metadata"], change.get("metadata") or {}
        gone = asked.get("$deleteFromPrimitiveList/finalizers") or []
        if gone or "finalizers" in asked:
            kept = [f for f in meta.get("finalizers") or [] if f not in gone]
            new["metadata"]["finalizers"] = kept + [f for f in asked.get("finalizers") or [] if f not in kept]
        if "ownerReferences" in asked:
            owners = {o["uid"]: o for o in meta.get("ownerReferences") or []}
            for owner in asked["ownerReferences"]:
                if owner.get("$patch") == "delete":
                    owners.pop(owner["uid"], None)
                else:
                    owners[owner["uid"]] = {**owners.get(owner["uid"], {}), **owner}
            new["metadata"]["ownerReferences"] = list(owners.values())
        conditions = (change.get("status") or {}).get("conditions")
        if conditions is not None:
            known = {c["type"]: c for c in (old.get("status") or {}).get("conditions") or []}
            for condition in conditions:
                known[condition["type"]] = {**known.get(condition["type"], {}), **condition}
            new["status"]["conditions"] = list(known.values())

    async def watch(self, resource, namespace="", *, resource_version="", **_: Any) -> AsyncIterator[Any]:  # type: ignore[no-untyped-def,override]
        position = int(resource_version or 0)
        group = "" if resource.group == "events.k8s.io" else resource.group
        while True:
            waiter = self.changed
            if (group, resource.plural) in self.held:
                await waiter.wait()
                continue
            batch = []
            for revision, which, event, obj in self.log[position:]:
                position = revision
                if which == (group, resource.plural):
                    if not namespace or obj["metadata"].get("namespace") == namespace:
                        batch.append((event, copy(obj)))
            if batch:
                yield batch
            else:
                await waiter.wait()


async def eventually(check: Any, seconds: float = 10.0) -> Any:
    """Wait until check() is true (or gives something), and return that."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                result = check()
            except (KeyError, IndexError, AssertionError, StopIteration):
                result = None
            if result:
                return result
            await asyncio.sleep(0.005)
