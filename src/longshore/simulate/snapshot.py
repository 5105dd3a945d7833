"""A copy of a cluster's state, in memory: what informers list comes from here, and nothing can be written.

Taken from a live cluster or read from files of JSON or YAML objects (`kubectl get pods,nodes -A -o yaml` makes one).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
import yaml

from longshore.api.kinds import KINDS
from longshore.api.schema import DecodeError
from longshore.client import resources
from longshore.client.config import Config
from longshore.client.resources import NAMESPACES, NODES, PODS, Resource
from longshore.client.rest import Client, is_not_found
from longshore.machinery.errors import StatusError

Object = dict[str, Any]
Batch = list[tuple[str, Object]]
LARGEST_FILE = 2 << 30
#: What the scheduler and the questions look at.
READ: tuple[Resource, ...] = (
    NODES,
    PODS,
    NAMESPACES,
    resources.PERSISTENT_VOLUME_CLAIMS,
    resources.PERSISTENT_VOLUMES,
    resources.STORAGE_CLASSES,
    resources.CSI_NODES,
    resources.RESOURCE_CLAIMS,
    resources.PRIORITY_CLASSES,
    resources.POD_DISRUPTION_BUDGETS,
)


class SnapshotError(Exception):
    """A file of objects cannot be read, or an object in it is not one; says where."""


class Snapshot(Client):
    """A client of a state that stands still. Lists come from it, watches tell nothing, writes are refused (405)."""

    def __init__(self, objects: Mapping[Resource, list[Object]]) -> None:
        self.config = Config("snapshot:")
        self.objects = dict(objects)

    async def close(self) -> None:
        return None

    def of(self, resource: Resource) -> list[Object]:
        return self.objects.get(resource, [])

    async def list(self, resource: Resource, namespace: str = "", **_options: Any) -> Object:
        # Informers add a kind to what they are given.
        items = [dict(o) for o in self.of(resource) if not namespace or o["metadata"].get("namespace") == namespace]
        return {"metadata": {"resourceVersion": "1"}, "items": items}

    async def watch(self, resource: Resource, namespace: str = "", **_options: Any) -> AsyncIterator[Batch]:
        await asyncio.get_running_loop().create_future()
        yield []

    async def call(self, method: str, path: str, *_arguments: Any, **_options: Any) -> Object:
        raise StatusError(405, "MethodNotAllowed", f"{method} {path}: a snapshot is not written to", None)

    async def send(self, method: str, path: str, *_arguments: Any, **_options: Any) -> Any:
        raise StatusError(405, "MethodNotAllowed", f"{method} {path}: a snapshot is not written to", None)


async def take(client: Client) -> Snapshot:
    """The present state of a cluster. Raises StatusError (not allowed to list), OSError."""

    async def read(resource: Resource) -> list[Object]:
        try:
            items: list[Object] = (await client.list(resource, resource_version="0"))["items"]
        except StatusError as error:
            if is_not_found(error):
                return []  # an older server does not know it
            raise
        for item in items:
            item["metadata"].pop("managedFields", None)
        return items

    lists = await asyncio.gather(*(read(resource) for resource in READ))
    return Snapshot(dict(zip(READ, lists, strict=True)))


def load(paths: Iterable[Path]) -> Snapshot:
    """The state that files hold: objects, documents of them, Lists. Kinds that nothing here reads are passed over.

    Raises SnapshotError.
    """
    found: dict[Resource, list[Object]] = {}
    by_kind = {(r.group, r.kind): r for r in READ}
    for path in paths:
        for obj in objects_in(path):
            group = str(obj.get("apiVersion") or "").rpartition("/")[0]
            resource = by_kind.get((group, str(obj.get("kind"))))
            if resource is None:
                continue
            found.setdefault(resource, []).append(_checked(obj, resource, path))
    for namespace in {p["metadata"]["namespace"] for p in found.get(PODS, [])}:
        known = found.setdefault(NAMESPACES, [])
        if all(n["metadata"]["name"] != namespace for n in known):
            known.append({"metadata": {"name": namespace, "labels": {"kubernetes.io/metadata.name": namespace}}})
    return Snapshot(found)


def objects_in(path: Path) -> Iterable[Object]:
    """The objects of a file of JSON or YAML, those of Lists one by one. Raises SnapshotError."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise SnapshotError(f"{path}: larger than {LARGEST_FILE} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise SnapshotError(f"{path}: {error.strerror}") from error
    documents: list[Any]
    try:
        documents = [orjson.loads(data)]
    except orjson.JSONDecodeError:
        try:
            documents = list(yaml.load_all(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        except yaml.YAMLError as error:
            raise SnapshotError(f"{path}: neither JSON nor YAML: {error}") from error
    result: list[Object] = []
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            raise SnapshotError(f"{path}: holds something that is not an object")
        if str(document.get("kind", "")).endswith("List") and isinstance(document.get("items"), list):
            kind = document["kind"].removesuffix("List")
            for item in document["items"]:
                if not isinstance(item, dict):
                    raise SnapshotError(f"{path}: a list holds something that is not an object")
                of_list = {"kind": kind, "apiVersion": document.get("apiVersion", "v1")} if kind else {}
                result.append({**of_list, **item})
        else:
            result.append(document)
    return result


def _checked(obj: Object, resource: Resource, path: Path) -> Object:
    """An object as the API server would hold it: known fields, canonical amounts, defaults."""
    meta = obj.get("metadata")
    if not isinstance(meta, dict) or not isinstance(meta.get("name"), str) or not meta["name"]:
        raise SnapshotError(f"{path}: a {resource.kind} without a name")
    if resource.namespaced and not meta.get("namespace"):
        obj = {**obj, "metadata": {**meta, "namespace": "default"}}
    kind = KINDS[resource.group, resource.plural]
    try:
        decoded: Object = kind.decode(obj, resource.version, None)
        kind.default(decoded, resource.version)
    except DecodeError as error:
        raise SnapshotError(f"{path}: {resource.kind} {meta['name']}: {error}") from error
    decoded["metadata"].setdefault("uid", f"{resource.kind}/{meta.get('namespace', '')}/{meta['name']}")
    decoded.setdefault("spec", {})
    return decoded


def pod_of(path: Path, namespace: str = "default") -> Object:
    """The pod that a file asks for: a Pod, or what a workload (Deployment, Job, CronJob ...) makes pods from.

    Raises SnapshotError.
    """
    for obj in objects_in(path):
        meta = obj.get("metadata") if isinstance(obj.get("metadata"), dict) else {}
        spec = obj.get("spec")
        if not isinstance(spec, dict):
            continue
        template: Any = obj
        if obj.get("kind") != "Pod":
            template = spec.get("template")
            if obj.get("kind") == "CronJob" and isinstance(spec.get("jobTemplate"), dict):
                template = (spec["jobTemplate"].get("spec") or {}).get("template")
        if not isinstance(template, dict) or not isinstance(template.get("spec"), dict):
            continue
        labels = (template.get("metadata") or {}).get("labels") or {}
        assert isinstance(meta, dict)
        made = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": str(meta.get("name") or "pod"),
                "namespace": str(meta.get("namespace") or namespace),
                "labels": labels,
            },
            "spec": {k: v for k, v in template["spec"].items() if k != "nodeName"},
        }
        checked = _checked(made, PODS, path)
        errors = KINDS["", "pods"].validate(checked)
        if errors:
            raise SnapshotError(f"{path}: {errors[0].field}: {errors[0].message()}")
        return checked
    raise SnapshotError(f"{path}: holds no Pod and nothing that makes pods")
