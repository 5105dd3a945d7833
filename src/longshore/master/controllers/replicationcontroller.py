"""ReplicationControllers: ReplicaSets of the first years, with a plain map for a selector.

Source: kubernetes pkg/controller/replication (which adapts the ReplicaSet controller the same way).
"""

from __future__ import annotations

from longshore.client.resources import REPLICATION_CONTROLLERS
from longshore.client.selectors import Predicate, map_matcher
from longshore.client.store import Object
from longshore.master.controllers.replicaset import ReplicaSetController


class ReplicationControllerController(ReplicaSetController):
    """Keeps each ReplicationController's pods at spec.replicas."""

    name = "replicationcontroller-controller"
    account = "replication-controller"
    component = "replication-controller"
    resource = REPLICATION_CONTROLLERS
    counts_terminating = False

    def selector(self, obj: Object) -> Predicate:
        return map_matcher(obj["spec"].get("selector"))
