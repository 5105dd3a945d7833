"""ValidatingAdmissionPolicies: the status says which generation was looked at.

Type checking of expressions against the matched kinds is advice for authors; a policy whose expressions do not compile
is refused by the API server already.
Source: kubernetes pkg/controller/validatingadmissionpolicystatus, described behaviour.
"""

from __future__ import annotations

from longshore.client.resources import VALIDATING_ADMISSION_POLICIES
from longshore.client.store import Object
from longshore.master.controllers.base import Controller

MANAGER = "validatingadmissionpolicy-status"


class PolicyStatus(Controller):
    """Keeps status.observedGeneration."""

    name = "validatingadmissionpolicy-status-controller"
    component = "validatingadmissionpolicy-status"

    def setup(self) -> None:
        self.policies = self.watch(
            VALIDATING_ADMISSION_POLICIES, add=self.enqueue, update=lambda old, new: self.enqueue(new)
        )

    async def reconcile(self, key: str) -> float | None:
        policy: Object | None = self.policies.store.get(key)
        if policy is None:
            return None
        generation = policy["metadata"].get("generation", 0)
        if (policy.get("status") or {}).get("observedGeneration") == generation:
            return None
        body = {
            "apiVersion": VALIDATING_ADMISSION_POLICIES.api_version,
            "kind": VALIDATING_ADMISSION_POLICIES.kind,
            "metadata": {"name": key},
            "status": {"observedGeneration": generation, "typeChecking": {}},
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
