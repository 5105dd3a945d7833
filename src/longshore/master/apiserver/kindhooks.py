"""What the write path of single kinds does beyond the strategy, because it needs the request: who asks, what was before.

A hook offers before_create, before_update, after_update and after_delete (see allocation.ServiceAllocator).
"""

from __future__ import annotations

from typing import Any

from longshore.master.apiserver.allocation import Undo
from longshore.master.apiserver.call import Call

Object = dict[str, Any]
TEMPLATE_GENERATION = "deprecated.daemonset.template.generation"


class Hook:
    """Does nothing."""

    async def before_create(self, call: Call, obj: Object, dry_run: bool) -> Undo | None:
        return None

    async def before_update(self, call: Call, new: Object, old: Object, subresource: str, dry_run: bool) -> Undo | None:
        return None

    async def after_update(self, call: Call, new: Object, old: Object) -> None:
        """Called when the update is stored."""

    async def after_delete(self, call: Call, obj: Object) -> None:
        """Called when the object is gone."""


class CertificateRequests(Hook):
    """A CertificateSigningRequest carries who made it; nobody else can say that."""

    async def before_create(self, call: Call, obj: Object, dry_run: bool) -> Undo | None:
        spec, user = obj["spec"], call.user
        for name in ("username", "uid", "groups", "extra"):
            spec.pop(name, None)
        spec["username"] = user.name
        if user.uid:
            spec["uid"] = user.uid
        if user.groups:
            spec["groups"] = list(user.groups)
        if user.extra:
            spec["extra"] = {k: list(v) for k, v in user.extra.items()}
        return None


class DaemonSets(Hook):
    """The annotation in which the old templateGeneration lives on: counts changes of the template."""

    async def before_create(self, call: Call, obj: Object, dry_run: bool) -> Undo | None:
        annotations = obj["metadata"].setdefault("annotations", {})
        if not annotations.get(TEMPLATE_GENERATION, "").isdigit() or int(annotations[TEMPLATE_GENERATION]) < 1:
            annotations[TEMPLATE_GENERATION] = "1"
        return None

    async def before_update(self, call: Call, new: Object, old: Object, subresource: str, dry_run: bool) -> Undo | None:
        before = (old["metadata"].get("annotations") or {}).get(TEMPLATE_GENERATION, "1")
        changed = not subresource and new["spec"].get("template") != old["spec"].get("template")
        count = int(before) + 1 if changed and before.isdigit() else before
        new["metadata"].setdefault("annotations", {})[TEMPLATE_GENERATION] = str(count)
        return None
