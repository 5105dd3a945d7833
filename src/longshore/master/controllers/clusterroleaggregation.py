"""ClusterRoles with an aggregationRule hold the rules of the roles that it selects.

Source: kubernetes pkg/controller/clusterroleaggregation, described behaviour.
"""

from __future__ import annotations

from longshore.client.resources import CLUSTER_ROLES
from longshore.client.selectors import matcher
from longshore.client.store import Object
from longshore.master.controllers.base import Controller


class ClusterRoleAggregation(Controller):
    """Keeps the rules of aggregated roles."""

    name = "clusterrole-aggregation-controller"
    component = "clusterrole-aggregation-controller"

    def setup(self) -> None:
        self.roles = self.watch(CLUSTER_ROLES, add=self._any, update=lambda old, new: self._any(new), delete=self._any)

    def _any(self, role: Object) -> None:
        for found in self.roles.store:
            if found.get("aggregationRule"):
                self.enqueue(found)

    async def reconcile(self, key: str) -> float | None:
        role = self.roles.store.get(key)
        if role is None or not role.get("aggregationRule"):
            return None
        rules: list[Object] = []
        for selector in role["aggregationRule"].get("clusterRoleSelectors") or ():
            matches = matcher(selector)
            chosen = [r for r in self.roles.store if matches(r["metadata"].get("labels") or {})]
            for other in sorted(chosen, key=lambda r: r["metadata"]["name"]):
                if other["metadata"]["name"] == key:
                    continue
                rules.extend(rule for rule in other.get("rules") or () if rule not in rules)
        if rules == (role.get("rules") or []):
            return None
        body = {
            "apiVersion": CLUSTER_ROLES.api_version,
            "kind": CLUSTER_ROLES.kind,
            "metadata": {"name": key},
            "rules": rules,
        }
        await self.client.patch(
            CLUSTER_ROLES, key, body, kind="apply", field_manager="clusterrole-aggregation-controller", force=True
        )
        return None
