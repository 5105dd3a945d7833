"""ControllerRevisions: the templates that a DaemonSet or StatefulSet has had, numbered.

Source: kubernetes pkg/controller/history, described behaviour.
"""

from __future__ import annotations

from typing import Any

from longshore.client.objects import copy, is_deleting, owner_reference, seconds
from longshore.client.resources import CONTROLLER_REVISIONS
from longshore.client.rest import Client, is_already_exists, is_not_found
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.controllers.rollout import template_hash

REVISION_HASH = "controller-revision-hash"
HASH = "controller.kubernetes.io/hash"


def data_of(template: Object) -> Object:
    """What a revision of a template holds: a patch that puts it back."""
    return {"spec": {"template": {**template, "$patch": "replace"}}}


def template_of(revision: Object) -> Object:
    """The template that a revision holds."""
    template = copy(revision["data"]["spec"]["template"])
    template.pop("$patch", None)
    return template  # type: ignore[no-any-return]


def in_order(revisions: list[Object]) -> list[Object]:
    """Oldest first."""
    return sorted(
        revisions,
        key=lambda r: (
            int(r.get("revision", 0)),
            seconds(r["metadata"].get("creationTimestamp")),
            r["metadata"]["name"],
        ),
    )


def new_revision(
    owner: Object, template: Object, number: int, collisions: int, labels: dict[str, str], label: str
) -> Object:
    """A revision of owner's template. label: which label carries the hash."""
    letters = template_hash(data_of(template), collisions)
    metadata: dict[str, Any] = {
        "name": f"{owner['metadata']['name']}-{letters}",
        "namespace": owner["metadata"]["namespace"],
        "labels": {**labels, label: letters},
        "ownerReferences": [owner_reference(owner)],
    }
    if owner["metadata"].get("annotations"):
        metadata["annotations"] = dict(owner["metadata"]["annotations"])
    return {"metadata": metadata, "data": data_of(template), "revision": number}


async def create(client: Client, fresh: Object) -> Object | None:
    """Create a revision; None when another template has its name already (count the collision and try again)."""
    try:
        return await client.create(CONTROLLER_REVISIONS, fresh)
    except StatusError as error:
        if not is_already_exists(error):
            raise
    there = await client.get(CONTROLLER_REVISIONS, fresh["metadata"]["name"], fresh["metadata"]["namespace"])
    return there if there.get("data") == fresh["data"] else None


async def renumber(client: Client, revision: Object, number: int) -> Object:
    """An old revision is the newest again."""
    if int(revision.get("revision", 0)) == number:
        return revision
    return await client.update(CONTROLLER_REVISIONS, {**revision, "revision": number})


async def truncate(client: Client, revisions: list[Object], live: set[str], limit: int | None) -> None:
    """Delete the oldest revisions that no pod has, past limit."""
    if limit is None:
        return
    dead = [r for r in in_order(revisions) if r["metadata"]["name"] not in live and not is_deleting(r)]
    for revision in dead[: max(0, len(dead) - limit)]:
        try:
            await client.delete(CONTROLLER_REVISIONS, revision["metadata"]["name"], revision["metadata"]["namespace"])
        except StatusError as error:
            if not is_not_found(error):
                raise
