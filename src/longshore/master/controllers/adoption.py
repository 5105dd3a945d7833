"""Ownership: take in orphans that a selector matches, let go of what it no longer matches.

Source: kubernetes pkg/controller controller_ref_manager, described behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable

from longshore.client.objects import controller_of, is_deleting, owner_reference
from longshore.client.resources import Resource
from longshore.client.rest import Client, is_not_found
from longshore.client.selectors import Predicate
from longshore.client.store import Object
from longshore.machinery.errors import StatusError


async def claim(
    client: Client,
    owner: Object,
    owner_resource: Resource,
    resource: Resource,
    candidates: Iterable[Object],
    matches: Predicate,
    *,
    finalizer: str = "",
) -> list[Object]:
    """The candidates that owner controls now, after adopting and releasing.

    candidates: what owner controls already and what nobody does, from the cache. finalizer: put on what is adopted.
    Before the first adoption the owner is read from the server itself: one that was deleted (or deleted and made
    again) must not adopt. Raises StatusError.
    """
    uid = owner["metadata"]["uid"]
    claimed: list[Object] = []
    may_adopt: bool | None = None
    for obj in candidates:
        ref = controller_of(obj)
        labels = obj["metadata"].get("labels") or {}
        if ref is not None:
            if ref["uid"] != uid:
                continue
            if matches(labels):
                claimed.append(obj)
            elif not is_deleting(owner):
                await release(client, owner, resource, obj, finalizer)
            continue
        if is_deleting(owner) or not matches(labels) or is_deleting(obj):
            continue
        if obj["metadata"].get("namespace") != owner["metadata"].get("namespace"):
            continue
        if may_adopt is None:
            may_adopt = await _still_there(client, owner, owner_resource)
        if not may_adopt:
            continue
        metadata: Object = {"ownerReferences": [owner_reference(owner)], "uid": obj["metadata"]["uid"]}
        if finalizer:
            metadata["finalizers"] = [finalizer]
        try:
            await _patch_metadata(client, resource, obj, metadata)
        except StatusError as error:
            if is_not_found(error):
                continue
            raise
        claimed.append(obj)
    return claimed


async def release(client: Client, owner: Object, resource: Resource, obj: Object, finalizer: str = "") -> None:
    """Take owner's reference off obj. That it is gone, or is another by now, is fine."""
    metadata: Object = {
        "ownerReferences": [{"$patch": "delete", "uid": owner["metadata"]["uid"]}],
        "uid": obj["metadata"]["uid"],
    }
    if finalizer:
        metadata["$deleteFromPrimitiveList/finalizers"] = [finalizer]
    try:
        await _patch_metadata(client, resource, obj, metadata)
    except StatusError as error:
        if error.code not in (404, 422):
            raise


async def _patch_metadata(client: Client, resource: Resource, obj: Object, metadata: Object) -> None:
    namespace = obj["metadata"].get("namespace", "")
    await client.patch(resource, obj["metadata"]["name"], {"metadata": metadata}, namespace, kind="strategic")


async def _still_there(client: Client, owner: Object, resource: Resource) -> bool:
    try:
        fresh = await client.get(resource, owner["metadata"]["name"], owner["metadata"].get("namespace", ""))
    except StatusError as error:
        if is_not_found(error):
            return False
        raise
    return fresh["metadata"]["uid"] == owner["metadata"]["uid"] and not is_deleting(fresh)
