"""ValidatingAdmissionPolicies: the status says which generation was looked at, and what was odd about its expressions.

Source: kubernetes pkg/controller/validatingadmissionpolicystatus.
"""

from __future__ import annotations

import orjson

from longshore.client.resources import VALIDATING_ADMISSION_POLICIES
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller

MANAGER = "validatingadmissionpolicy-status"


class PolicyStatus(Controller):
    """Keeps status.observedGeneration and status.typeChecking."""

    name = "validatingadmissionpolicy-status-controller"
    component = "validatingadmissionpolicy-status"

    def setup(self) -> None:
        self.policies = self.watch(
            VALIDATING_ADMISSION_POLICIES, add=self.enqueue, update=lambda old, new: self.enqueue(new)
        )

    async def _check(self, policy: Object) -> list[dict[str, str]]:
        """Only policies need the types of everything: they are loaded when there is one."""
        from longshore.master.controllers.policytypes import TypeChecker

        return await TypeChecker(self._fetch).check(policy)

    async def _fetch(self, path: str) -> Object | None:
        try:
            found: Object = orjson.loads(await self.client.raw("GET", path))
        except StatusError as error:
            if error.code == 404:
                return None
            raise
        return found

    async def reconcile(self, key: str) -> float | None:
        policy: Object | None = self.policies.store.get(key)
        if policy is None:
            return None
        generation = policy["metadata"].get("generation", 0)
        if (policy.get("status") or {}).get("observedGeneration") == generation:
            return None
        warnings = await self._check(policy)
        body = {
            "apiVersion": VALIDATING_ADMISSION_POLICIES.api_version,
            "kind": VALIDATING_ADMISSION_POLICIES.kind,
            "metadata": {"name": key},
            "status": {
                "observedGeneration": generation,
                "typeChecking": {"expressionWarnings": warnings} if warnings else {},
            },
        }
        await self.client.patch(
            VALIDATING_ADMISSION_POLICIES,
            key,
            body,
            kind="apply",
            subresource="status",
            field_manager=MANAGER,
            force=True,
        )
        return None
