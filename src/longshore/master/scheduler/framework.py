"""The scheduling framework: extension points as methods of a Plugin, and the statuses that they answer with.

A plugin overrides the points that it wants. The smallest filter is one method:

    class EvenNodes(Plugin):
        name = "EvenNodes"

        def filter(self, state, pod, node):
            if int(node.name[-1]) % 2:
                return Status.unschedulable("node(s) were odd")

`filter` and `score` look at one node; `filter_rows` and `score_rows` answer for many nodes at once, and what they
answer is kept for equal pods as their scope allows. Source: kubernetes.io "Scheduling Framework".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from longshore.client.informer import Informer, InformerFactory
from longshore.client.resources import Resource
from longshore.client.rest import Client
from longshore.client.store import Object
from longshore.master.scheduler.nodes import Array, Mask, NodeRow, NodeTable, Rows
from longshore.master.scheduler.podinfo import PodInfo

if TYPE_CHECKING:
    from longshore.master.scheduler.counters import Counters
    from longshore.master.scheduler.extended import BackedResources
    from longshore.master.scheduler.extender import Extender

MAX_NODE_SCORE = 100
Scores = Array  # float64, one a row


class Code(IntEnum):
    """What a plugin says of a pod (and a node)."""

    SUCCESS = 0
    ERROR = 1
    UNSCHEDULABLE = 2
    UNRESOLVABLE = 3  # UnschedulableAndUnresolvable: evicting others would not help
    WAIT = 4
    SKIP = 5


@dataclass(frozen=True, slots=True)
class Status:
    """A plugin's answer other than success (which is None). reasons: as they appear in the pod's condition."""

    code: Code
    reasons: tuple[str, ...] = ()
    plugin: str = ""

    @classmethod
    def unschedulable(cls, *reasons: str) -> Status:
        return cls(Code.UNSCHEDULABLE, reasons)

    @classmethod
    def unresolvable(cls, *reasons: str) -> Status:
        return cls(Code.UNRESOLVABLE, reasons)

    @classmethod
    def skip(cls) -> Status:
        return SKIP

    @classmethod
    def error(cls, *reasons: str) -> Status:
        return cls(Code.ERROR, reasons)

    @property
    def message(self) -> str:
        return ", ".join(self.reasons)


SKIP = Status(Code.SKIP)  # the one answer of most plugins for most pods


class Action(Enum):
    """What happened to an object, as far as scheduling cares."""

    ADD = "add"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(slots=True)
class ClusterEvent:
    """A change that may let pods schedule. kind: "Node", "Pod" (assigned), "PersistentVolumeClaim"..."""

    kind: str
    action: Action
    old: Object | None = None
    new: Object | None = None


@dataclass(slots=True)
class CycleState:
    """What one scheduling attempt of one pod carries from point to point. Plugins keep theirs in `data`."""

    data: dict[str, Any] = field(default_factory=dict)
    skipped_filters: set[str] = field(default_factory=set)
    skipped_scores: set[str] = field(default_factory=set)
    only: set[str] | None = None  # names of the nodes that pre_filter leaves over


@dataclass(slots=True)
class Handle:
    """What the framework offers to plugins."""

    client: Client
    informers: InformerFactory
    table: NodeTable
    counters: Counters
    watch: Callable[[Resource], Informer]  # an informer whose changes become cluster events
    changes: int = 0  # how many there were of what `watch` was asked for
    # whether a pod would fit on a node with other pods there, without some that are
    fits_with: Callable[[PodInfo, NodeRow, Sequence[PodInfo], Sequence[PodInfo]], bool] = (
        lambda pod, node, add, remove: True
    )
    backed: BackedResources | None = None  # the extended resources that devices stand behind
    # whether room is all that a pod lacks on a node that refused it for its resources
    only_room: Callable[[CycleState, PodInfo], bool] = lambda state, pod: False
    event: Callable[..., None] = lambda *args, **kwargs: None
    nominated: Callable[[str], list[PodInfo]] = lambda node: []
    # what a plugin knows to have changed, for the pods that wait
    tell: Callable[[ClusterEvent], None] = lambda event: None
    # the extenders of the configuration that want a say in preemption for a pod
    preempters: Callable[[PodInfo], Sequence[Extender]] = lambda pod: ()


class Plugin:
    """One plugin of one profile. args: its pluginConfig arguments.

    filter_scope, score_scope: what the answer depends on besides the pod: "static" the node object alone, "node"
    also the pods on that node, "cluster" anything (never kept).
    """

    name: ClassVar[str]
    filter_scope: ClassVar[Literal["static", "node", "cluster"]] = "cluster"
    score_scope: ClassVar[Literal["static", "node", "cluster"]] = "cluster"
    individual: ClassVar[bool] = False  # whether the filter may answer equal pods differently
    wants: ClassVar[frozenset[str]] = frozenset()  # kinds of cluster events that may help a pod that this refused

    def __init__(self, handle: Handle, args: Object) -> None:
        self.handle = handle
        self.args = args

    # -- before the queue

    def pre_enqueue(self, pod: PodInfo) -> Status | None:
        """Whether the pod may enter the active queue."""
        return None

    def queue_hint(self, pod: PodInfo, event: ClusterEvent) -> bool:
        """Whether the event may make a pod schedulable that this plugin refused (for kinds in `wants`)."""
        return True

    # -- choosing

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Status | None:
        """Once a pod: refuse it, skip this plugin's filter (Status.skip), or narrow state.only."""
        return None

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        """Whether the pod may run on the node: None, or why not."""
        return None

    def filter_rows(self, state: CycleState, pod: PodInfo, rows: Rows) -> Mask:
        """filter for many nodes: True where the pod may run."""
        table = self.handle.table
        return np.fromiter(
            (
                self.filter(state, pod, row) is None if (row := table.rows[i]) is not None else False
                for i in rows.tolist()
            ),
            dtype=np.bool_,
            count=len(rows),
        )

    async def post_filter(
        self, state: CycleState, pod: PodInfo, refused: dict[str, Status]
    ) -> tuple[str, Status | None]:
        """No node fits: (node to nominate, or "", and None for success or why nothing helps)."""
        return "", Status.unschedulable()

    def pre_score(self, state: CycleState, pod: PodInfo, rows: Rows) -> Status | None:
        """Once a pod, with the rows that fit: Status.skip leaves this plugin's score out."""
        return None

    def score(self, state: CycleState, pod: PodInfo, node: NodeRow) -> float:
        """How good the node is; 0 to 100 after normalize."""
        return 0.0

    def score_rows(self, state: CycleState, pod: PodInfo, rows: Rows) -> Scores:
        """score for many nodes."""
        table = self.handle.table
        return np.fromiter(
            (self.score(state, pod, row) if (row := table.rows[i]) is not None else 0.0 for i in rows.tolist()),
            dtype=np.float64,
            count=len(rows),
        )

    def normalize(self, state: CycleState, pod: PodInfo, scores: Scores) -> Scores:
        """Bring the scores of the nodes that fit into 0 to 100."""
        return scores

    # -- after the choice

    def reserve(self, state: CycleState, pod: PodInfo, node: str) -> Status | None:
        """The pod is assumed on the node: claim what it needs in memory."""
        return None

    def unreserve(self, state: CycleState, pod: PodInfo, node: str) -> None:
        """Undo reserve; called for every plugin when anything after it fails. Must not fail."""

    async def permit(self, state: CycleState, pod: PodInfo, node: str) -> Status | None:
        """Hold or refuse the binding."""
        return None

    async def pre_bind(self, state: CycleState, pod: PodInfo, node: str) -> Status | None:
        """Do what must be done before the pod is bound."""
        return None

    async def bind(self, state: CycleState, pod: PodInfo, node: str) -> Status | None:
        """Bind the pod. Status.skip leaves it to the next binder."""
        return Status.skip()

    def post_bind(self, state: CycleState, pod: PodInfo, node: str) -> None:
        """The pod is bound."""


def overrides(plugin: Plugin, *points: str) -> bool:
    """Whether the plugin has a method of its own for one of the points."""
    return any(getattr(type(plugin), point) is not getattr(Plugin, point) for point in points)


def default_normalize(scores: Scores, *, reverse: bool = False) -> Scores:
    """Scale so that the greatest is 100 (plugins/helper DefaultNormalizeScore); whole numbers."""
    most = float(scores.max(initial=0.0))
    if most == 0:
        return np.full_like(scores, float(MAX_NODE_SCORE)) if reverse else scores
    scaled = np.floor(scores * MAX_NODE_SCORE / most)
    return MAX_NODE_SCORE - scaled if reverse else scaled
