"""Conversion of custom objects by webhook: asked once for each state of an object, remembered until it changes.

Objects are kept in the storage version; when that changes, what is kept is converted and written anew (`migrate`).
Source: apiextensions-apiserver pkg/apiserver/conversion/webhook_converter.go.
"""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import Iterable
from typing import Any

import orjson

from longshore.machinery.errors import StatusError
from longshore.master.apiserver import rendering
from longshore.master.apiserver.admission.webhooks import MAX_ANSWER, CallFailed, MutatingAdmissionWebhook
from longshore.master.apiserver.cache import CacheEvent, Item

Object = dict[str, Any]
TIMEOUT = 30.0


class Conversions:
    """The converted forms of one resource's objects."""

    def __init__(self, api: Any, resource: Any) -> None:
        self.resource = resource
        self._hook = {"name": resource.group_resource, **resource.crd["spec"]["conversion"]["webhook"]}
        self._caller = MutatingAdmissionWebhook(api)
        self._held: dict[tuple[str, str], tuple[str, Object]] = {}  # (uid, version) -> resourceVersion, object

    async def close(self) -> None:
        await self._caller.close()

    def changed(self, event: CacheEvent) -> None:
        """Forget what has been deleted, once the watches have told of it."""
        if event.type == "DELETED" and self._held:
            uid = event.item.decode()["metadata"].get("uid", "")
            asyncio.get_running_loop().call_later(60, self._forget, uid)

    def _forget(self, uid: str) -> None:
        for version in self.resource.versions:
            self._held.pop((uid, version), None)

    def knows(self, item: Item, version: str) -> bool:
        return (item.decode()["metadata"].get("uid", ""), version) in self._held

    def keep(self, obj: Object, version: str, resource_version: str) -> None:
        """An object is known in a version."""
        self._held[obj["metadata"]["uid"], version] = (resource_version, obj)

    def take(self, obj: Object, version: str) -> Object:
        """A stored object in another version, out of what is known. Where only an older state is: with new metadata."""
        metadata = obj["metadata"]
        held = self._held.get((metadata.get("uid", ""), version))
        if held is None:
            raise self._failed("the object has not been converted yet")
        out: Object = orjson.loads(orjson.dumps(held[1]))
        if held[0] != metadata.get("resourceVersion"):
            out["metadata"] = metadata
        else:
            out["metadata"]["resourceVersion"] = held[0]
        return out

    async def fill(self, version: str, items: Iterable[Item]) -> None:
        """Make these objects known in a version."""
        missing = []
        for item in items:
            obj = item.decode()
            held = self._held.get((obj["metadata"].get("uid", ""), version))
            if held is None or held[0] != str(item.version):
                head = {
                    "kind": self.resource.kind,
                    "apiVersion": self.resource.api_version(self.resource.storage_version),
                }
                missing.append({**head, **obj})
        if missing:
            for obj in await self.convert(missing, self.resource.api_version(version)):
                self.keep(obj, version, obj["metadata"].get("resourceVersion", ""))

    async def trees(self, version: str, items: Iterable[Item]) -> list[Object]:
        """These states of objects in a version, older ones too; what selectors ask of them is noted with each."""
        head = {"kind": self.resource.kind, "apiVersion": self.resource.api_version(self.resource.storage_version)}
        chosen = list(items)
        out: list[Object | None] = []
        missing = []
        for item in chosen:
            obj = item.decode()
            held = self._held.get((obj["metadata"].get("uid", ""), version))
            known = held is not None and held[0] == str(item.version)
            out.append(self.take(obj, version) if known else None)
            if not known:
                missing.append({**head, **obj})
        asked = iter(await self.convert(missing, self.resource.api_version(version)) if missing else ())
        found = [next(asked) if tree is None else tree for tree in out]
        for item, tree in zip(chosen, found, strict=True):
            item.fields = {**(item.fields or {}), version: self.resource.selectable(tree)}
        return found

    async def convert(self, objects: list[Object], api_version: str) -> list[Object]:
        """Ask the webhook. StatusError when it cannot be reached or answers nonsense."""
        uid = str(uuid.uuid4())
        request = {"uid": uid, "desiredAPIVersion": api_version, "objects": objects}
        versions = self._hook.get("conversionReviewVersions") or ["v1"]
        chosen = next((v for v in versions if v in ("v1", "v1beta1")), "v1")
        review = {"kind": "ConversionReview", "apiVersion": f"apiextensions.k8s.io/{chosen}", "request": request}
        try:
            client, url = self._caller._client(self._hook)
            answer = await client.request(
                "POST",
                f"{url}{'&' if '?' in url else '?'}timeout={TIMEOUT:.0f}s",
                headers=[("Content-Type", "application/json"), ("Accept", "application/json")],
                body=orjson.dumps(review),
                timeout=TIMEOUT,
            )
            body = await answer.read(MAX_ANSWER)
            if answer.status != 200:
                raise self._failed(f"the server answered {answer.status}")
            response = orjson.loads(body)["response"]
        except TimeoutError:
            raise self._failed("context deadline exceeded") from None
        except (CallFailed, OSError, ssl.SSLError, KeyError, TypeError, ValueError) as error:
            raise self._failed(str(error)) from None
        if response.get("uid") != uid:
            raise self._failed(f'expected response.uid="{uid}", got "{response.get("uid", "")}"')
        result = response.get("result") or {}
        if result.get("status") != "Success":
            raise self._failed(result.get("message") or "webhook conversion failed with no message")
        out = response.get("convertedObjects") or []
        if len(out) != len(objects):
            raise self._failed(f"webhook returned {len(out)} objects, expected {len(objects)}")
        return [
            self._checked(old, new, api_version, at) for at, (old, new) in enumerate(zip(objects, out, strict=True))
        ]

    def _checked(self, old: Object, new: Object, api_version: str, at: int) -> Object:
        """A converted object with the metadata that a webhook cannot change."""
        where = f"invalid converted object at index {at}: "
        if new.get("apiVersion") != api_version or new.get("kind") != old.get("kind"):
            raise self._failed(where + f"invalid groupVersion or kind (expected {api_version} {old.get('kind')})")
        metadata = new.get("metadata") or {}
        for name in ("name", "namespace", "uid"):
            if metadata.get(name) != old["metadata"].get(name):
                raise self._failed(where + f"metadata.{name} must not be changed")
        kept = {k: v for k, v in old["metadata"].items() if k not in ("labels", "annotations")}
        for name in ("labels", "annotations"):
            if metadata.get(name):
                kept[name] = metadata[name]
        return {**new, "metadata": kept}

    def _failed(self, why: str) -> StatusError:
        kind = f"{self.resource.group}/{self.resource.storage_version}, Kind={self.resource.kind}"
        return StatusError(500, "", f"conversion webhook for {kind} failed: {why}")

    async def migrate(self, old_version: str, cache: Any, store: Any) -> None:
        """Write what was kept in an older storage version in the new one."""
        items = list(cache.select())
        head = {"kind": self.resource.kind, "apiVersion": self.resource.api_version(old_version)}
        objects = [{**head, **item.decode()} for item in items]
        if not objects:
            return
        new = self.resource.api_version(self.resource.storage_version)
        for item, obj in zip(items, await self.convert(objects, new), strict=True):
            await store.update(cache.prefix + item.key.encode(), rendering.encode_stored(obj), item.version)
