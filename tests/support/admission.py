"""A stand-in for the server's own objects, and what makes requests of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from longshore.api.kinds import KINDS
from longshore.machinery.errors import StatusError
from longshore.master.apiserver.context import AdmissionRequest, Attributes, Decision, UserInfo

Object = dict[str, Any]
ADMIN = UserInfo("admin", groups=("system:masters", "system:authenticated"))


class Objects:
    """context.API over a dict, for what plugins read and write of it."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str, str, str], Object] = {}
        self.changes = 0
        self.conflicts = 0
        self.allowed = False
        self.asked: list[Attributes] = []

    def put(self, group: str, resource: str, obj: Object) -> None:
        meta = obj["metadata"]
        self.held[group, resource, meta.get("namespace", ""), meta["name"]] = obj
        self.changes += 1

    def get(self, group: str, resource: str, namespace: str, name: str) -> Object | None:
        return copy.deepcopy(self.held.get((group, resource, namespace, name)))

    peek = get

    def list(
        self, group: str, resource: str, namespace: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        return [
            copy.deepcopy(o)
            for (g, r, n, _), o in self.held.items()
            if (g, r) == (group, resource)
            and (not namespace or n == namespace)
            and (labels or {}).items() <= (o["metadata"].get("labels") or {}).items()
        ]

    def generation(self, group: str, resource: str) -> int:
        return self.changes

    async def get_live(self, group: str, resource: str, namespace: str, name: str) -> Object | None:
        return self.get(group, resource, namespace, name)

    async def update(self, group: str, resource: str, namespace: str, obj: Object, subresource: str = "") -> Object:
        if self.conflicts:
            self.conflicts -= 1
            raise StatusError(409, "Conflict", "conflict")
        self.put(group, resource, obj)
        return obj

    async def authorize(self, a: Attributes) -> Decision:
        self.asked.append(a)
        return Decision("allow" if self.allowed else "deny")

    def resource(self, group: str, plural: str) -> Any:
        return KINDS.get((group, plural))

    def request(
        self,
        resource: str,
        obj: Object | None,
        *,
        operation: Any = "CREATE",
        old: Object | None = None,
        group: str = "",
        version: str = "v1",
        subresource: str = "",
        namespace: str = "a",
        user: UserInfo = ADMIN,
        dry_run: bool = False,
        name: str = "",
    ) -> AdmissionRequest:
        """One write, its object decoded and defaulted as the server does it."""
        known = KINDS[group, resource]
        if obj is not None and not subresource:
            obj = known.decode(copy.deepcopy(obj), version)
            known.default(obj, version)
            obj |= {"apiVersion": f"{group}/{version}" if group else version, "kind": known.kind}
        held = (obj or old or {}).get("metadata", {}).get("name", "")
        attributes = Attributes(
            user, operation.lower(), group, version, resource, subresource, namespace if known.namespaced else "",
            name or (held if operation != "CREATE" else ""),
        )  # fmt: skip
        return AdmissionRequest(
            attributes, operation, obj, old, {}, dry_run, self, (group, version, known.kind)  # type: ignore[arg-type]
        )  # fmt: skip


def pod(**spec: Any) -> Object:
    """A pod of one container."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "a"},
        "spec": {"containers": [{"name": "c", "image": "i"}], **spec},
    }


async def refusal(plugin: Any, a: AdmissionRequest) -> str:
    """The message with which a plugin refuses, "" when it does not."""
    try:
        await plugin.admit(a)
        await plugin.validate(a)
    except StatusError as error:
        return error.message
    return ""
