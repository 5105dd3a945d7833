"""NamespaceLifecycle: nothing is made in a namespace that is not there or is going; the first namespaces stay."""

from __future__ import annotations

import asyncio

from longshore.machinery.errors import StatusError, not_found
from longshore.master.apiserver.admission.base import Plugin, refuse
from longshore.master.apiserver.context import AdmissionRequest

IMMORTAL = frozenset(("default", "kube-system", "kube-public"))
_REVIEWS = frozenset(
    ("localsubjectaccessreviews", "selfsubjectaccessreviews", "subjectaccessreviews", "selfsubjectrulesreviews")
)


class NamespaceLifecycle(Plugin):
    """Source: staging/src/k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle."""

    name = "NamespaceLifecycle"
    operations = frozenset(("CREATE", "UPDATE", "DELETE"))
    subresources = None

    def handles(self, operation: str, resource: str, subresource: str = "", group: str = "") -> bool:
        if resource == "namespaces" and group == "":
            return operation == "DELETE"
        return operation == "CREATE"

    async def admit(self, a: AdmissionRequest) -> None:
        attributes = a.attributes
        if attributes.resource == "namespaces" and not attributes.group:
            if a.operation == "DELETE" and attributes.name in IMMORTAL:
                raise refuse(a, "this namespace may not be deleted")
            return
        namespace = attributes.namespace
        if not namespace or attributes.resource in _REVIEWS:
            return
        found = a.api.peek("", "namespaces", "", namespace)
        if found is None:
            # A namespace made a moment ago may not have reached the cache.
            found = await a.api.get_live("", "namespaces", "", namespace)
            if found is None:
                await asyncio.sleep(0)
                raise not_found("", "namespaces", namespace)
        if a.operation == "CREATE" and (
            found["metadata"].get("deletionTimestamp") or found.get("status", {}).get("phase") == "Terminating"
        ):
            error = refuse(a, f"unable to create new content in namespace {namespace} because it is being terminated")
            details = dict(error.details or {})
            details["causes"] = [
                {
                    "reason": "NamespaceTerminating",
                    "message": f"namespace {namespace} is being terminated",
                    "field": "metadata.namespace",
                }
            ]
            raise StatusError(error.code, error.reason, error.message, details)
