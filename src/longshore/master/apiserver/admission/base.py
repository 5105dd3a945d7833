"""What the plugins have in common."""

from __future__ import annotations

from typing import Any

from longshore.machinery.errors import StatusError, forbidden
from longshore.master.apiserver.context import AdmissionRequest

Object = dict[str, Any]


class Plugin:
    """A plugin that says nothing; each overrides what it does.

    operations: which operations it may have something to say on; resources: (group, resource) pairs, None for all;
    subresources: which of them, "" being the object itself, None for all.
    """

    name = ""
    operations: frozenset[str] = frozenset(("CREATE", "UPDATE"))
    resources: frozenset[tuple[str, str]] | None = None
    subresources: frozenset[str] | None = frozenset(("",))

    def handles(self, operation: str, resource: str, subresource: str = "", group: str = "") -> bool:
        """Whether there may be something to say."""
        return (
            operation in self.operations
            and (self.resources is None or (group, resource) in self.resources)
            and (self.subresources is None or subresource in self.subresources)
        )

    async def admit(self, a: AdmissionRequest) -> None:
        """Change the object, or refuse it."""

    async def validate(self, a: AdmissionRequest) -> None:
        """Refuse the object."""


def refuse(a: AdmissionRequest, why: str) -> StatusError:
    """403, as upstream's admission.NewForbidden says it."""
    attributes = a.attributes
    name = attributes.name
    if not name and a.object is not None:
        name = a.object.get("metadata", {}).get("name", "") or ""
    return forbidden(attributes.group, attributes.resource, name, why)


def object_name(a: AdmissionRequest) -> str:
    """The name of the object in question, "" while it has none."""
    if a.attributes.name:
        return a.attributes.name
    return str(((a.object or a.old or {}).get("metadata") or {}).get("name", ""))


PODS = frozenset((("", "pods"),))
