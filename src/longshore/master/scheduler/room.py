"""Room on one node by arithmetic alone: for pods to which nothing matters on a node but the room that others take."""

from __future__ import annotations

from collections.abc import Sequence

from longshore.master.scheduler.nodes import NodeRow, NodeTable
from longshore.master.scheduler.podinfo import PodInfo


class Room:
    """What a pod lacks on a node on which others are promised room. places: for further pods, the pod's own not counted."""

    __slots__ = ("lacks", "places")

    def __init__(self, table: NodeTable, pod: PodInfo, row: NodeRow, promised: Sequence[PodInfo]) -> None:
        index = row.index
        self.places = int(table.max_pods[index]) - int(table.pod_count[index]) - len(promised)
        self.lacks: list[tuple[str, int]] = []
        for name, value in pod.cls.requests.items():
            column = table.column(name)
            free = int(table.allocatable[column, index]) - int(table.requested[column, index])
            for other in promised:
                free -= other.cls.requests.get(name, 0)
            if value > free:
                self.lacks.append((name, value - free))

    @property
    def enough(self) -> bool:
        """Whether the pod has room as it is."""
        return self.places >= 1 and not self.lacks

    def victims(self, groups: Sequence[Sequence[PodInfo]]) -> tuple[list[PodInfo], int] | None:
        """Who must go of the pods in groups, and how many of them of the first; None when not even all are enough.

        Each group in turn, each pod of it in turn is spared where that leaves room.
        """
        places = self.places + sum(map(len, groups))
        if places < 1:
            return None
        spare: list[tuple[str, int]] = []
        for name, lack in self.lacks:
            left = sum(v.cls.requests.get(name, 0) for group in groups for v in group) - lack
            if left < 0:
                return None
            spare.append((name, left))
        victims: list[PodInfo] = []
        first = 0
        for number, group in enumerate(groups):
            for info in group:
                requests = info.cls.requests
                if places > 1 and all(requests.get(name, 0) <= left for name, left in spare):
                    places -= 1
                    spare = [(name, left - requests.get(name, 0)) for name, left in spare]
                else:
                    victims.append(info)
                    first += number == 0
        return victims, first
