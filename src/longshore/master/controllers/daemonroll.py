"""The arithmetic of a DaemonSet's rolling update: which pods may go now, and on which nodes new ones may come beside them.

Source: kubernetes pkg/controller/daemon/update.go, described behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from longshore.client.store import Object


@dataclass(slots=True)
class Roll:
    """One step of a rolling update: what each node's pods allow. desired: nodes that should run the pod; busy: nodes that are
    without an available pod, or surging; now: what may be replaced at once, as it serves nobody; candidates: the others;
    leaving: old pods on nodes that should not run any more."""

    desired: int
    busy: int = 0
    available: int = 0
    now: list[str] = field(default_factory=list)
    candidates: list[str] = field(default_factory=list)
    doomed: list[Object] = field(default_factory=list)
    replaceable: list[Object] = field(default_factory=list)
    leaving: list[Object] = field(default_factory=list)

    def replace(self, new: list[Object], old: list[Object], is_up: Callable[[Object], bool]) -> None:
        """A node where the old pod must go before the new one comes."""
        if bool(new) == bool(old):
            self.busy += 1  # nothing there, or both: that is put right first
        elif new:
            self.busy += not is_up(new[0])
        elif is_up(old[0]):
            self.replaceable.append(old[0])
        else:
            self.busy += 1
            self.doomed.append(old[0])

    def surge(
        self, name: str, runs: bool, new: list[Object], old: list[Object], is_up: Callable[[Object], bool]
    ) -> None:
        """A node where both may be for a while. runs: whether the node should run the pod."""
        self.available += any(map(is_up, old or new))
        if not old:
            return
        if new:
            if is_up(new[0]):
                self.doomed.append(old[0])
            else:
                self.busy += 1
        elif not runs:
            (self.leaving if is_up(old[0]) else self.doomed).append(old[0])
        else:
            (self.candidates if is_up(old[0]) else self.now).append(name)

    def without_surge(self, allowed: int) -> tuple[list[str], list[Object]]:
        """(nodes to make a pod on, pods to delete). allowed: nodes that may be without an available pod."""
        return [], [*self.doomed, *self.replaceable[: max(0, allowed - self.busy)]]

    def with_surge(self, most: int) -> tuple[list[str], list[Object]]:
        """The same where so many nodes may run two pods. Pods on nodes that should not run them any more stay until as many
        are available elsewhere."""
        spare = max(0, self.available - self.desired)
        create = [*self.now, *self.candidates[: max(0, most - self.busy)]]
        return create, [*self.doomed, *self.leaving[:spare]]
