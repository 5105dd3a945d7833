"""One profile: its plugins by extension point, and the choice of a node with them.

What plugins of scope "static" and "node" answer is kept a pod class, and brought up to date only for rows that changed
since (Borg: equivalence classes and score caching). Everything else is asked each time, for the rows still in play.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

import numpy as np

from longshore.master.scheduler.framework import Code, CycleState, Handle, Plugin, Scores, Status, overrides
from longshore.master.scheduler.nodes import Array, Mask, NodeRow
from longshore.master.scheduler.podinfo import PodClass, PodInfo


@dataclass(slots=True)
class Diagnosis:
    """Why no node fits: a status a node, or one for all from pre_filter."""

    statuses: dict[str, Status] = field(default_factory=dict)
    pre_filter: str = ""
    plugins: frozenset[str] = frozenset()
    nodes: int = 0
    counts: dict[str, int] | None = None  # nodes by reason; None: to be counted from statuses

    def message(self, post_filter: str = "") -> str:
        """The condition's message: how many nodes, the reasons with their numbers, what preemption says."""
        if self.nodes == 0:
            return "no nodes available to schedule pods"
        text = f"0/{self.nodes} nodes are available:"
        if self.pre_filter:
            text += f" {self.pre_filter}."
        else:
            counts = self.counts
            if counts is None:
                counts = Counter(reason for status in self.statuses.values() for reason in status.reasons)
            parts = sorted(f"{count} {reason}" for reason, count in counts.items())
            if parts:
                text += f" {', '.join(parts)}."
        return f"{text} {post_filter}" if post_filter else text


CLASSES_KEPT = 128
FEW_ROWS = 3  # one after the other in plain Python they cost less than in columns

NOT_CHOSEN = Status(Code.UNRESOLVABLE, ("node(s) didn't satisfy plugin(s) [NodeAffinity]",), "NodeAffinity")


def _first_refusal(filters: list[Plugin], state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
    for plugin in filters:
        status = plugin.filter(state, pod, node)
        if status is not None:
            return Status(status.code, status.reasons, plugin.name)
    return None


class Kept:
    """A column kept for a pod class, true up to a generation of the table."""

    __slots__ = ("column", "generation")

    def __init__(self) -> None:
        self.column: Array = None
        self.generation = -1


class Refusals:
    """Why nodes refuse the pods of a class, by name; and how many nodes give a reason, and owe it to a plugin."""

    __slots__ = ("_names", "by_name", "plugins", "reasons")

    def __init__(self) -> None:
        self.by_name: dict[str, Status] = {}
        self.reasons: Counter[str] = Counter()
        self.plugins: Counter[str] = Counter()
        self._names: dict[int, str] = {}  # of rows, when they were looked at

    def set(self, index: int, name: str, status: Status | None) -> None:
        """What a row's node says now (None: nothing against the pod, or there is no node any more)."""
        before = self.by_name.pop(self._names.pop(index, ""), None)
        if before is not None:
            self._count(before, -1)
        if status is not None:
            self._names[index] = name
            self.by_name[name] = status
            self._count(status, 1)

    def _count(self, status: Status, sign: int) -> None:
        for counter, keys in ((self.reasons, status.reasons), (self.plugins, (status.plugin,))):
            for key in keys:
                counter[key] += sign
                if not counter[key]:
                    del counter[key]


class Profile:
    """plugins: in order, with the weight of each one's score."""

    def __init__(
        self, name: str, handle: Handle, plugins: list[tuple[Plugin, int]], points: dict[str, list[str]] | None = None
    ) -> None:
        self.name = name
        self.handle = handle
        self.table = handle.table
        self.plugins = [p for p, _ in plugins]
        self._points = points or {}
        self.pre_enqueue = self._at("preEnqueue", "pre_enqueue")
        self.pre_filters = self._at("preFilter", "pre_filter")
        self.filters = self._at("filter", "filter", "filter_rows")
        self.post_filters = self._at("postFilter", "post_filter")
        self.pre_scores = self._at("preScore", "pre_score")
        scorers = self._at("score", "score", "score_rows")
        self.scores = [(p, max(1, w)) for p, w in plugins if p in scorers]
        self.reserves = self._at("reserve", "reserve", "unreserve")
        self.permits = self._at("permit", "permit")
        self.pre_binds = self._at("preBind", "pre_bind")
        self.binds = self._at("bind", "bind")
        self.post_binds = self._at("postBind", "post_bind")
        self.by_name = {p.name: p for p in self.plugins}
        self._scoped = {
            scope: [p for p in self.filters if p.filter_scope == scope] for scope in ("static", "node", "cluster")
        }
        # Some plugins know only columns.
        self._filters_one = frozenset(p.name for p in self.filters if overrides(p, "filter"))
        self._scores_one = frozenset(p.name for p, _ in self.scores if overrides(p, "score"))
        self._plain = frozenset(p.name for p, _ in self.scores if not overrides(p, "normalize"))
        self._recent: OrderedDict[PodClass, None] = OrderedDict()
        self._diagnosed: tuple[tuple[int, int], PodClass | None, Diagnosis | None] = ((-1, -1), None, None)

    def _at(self, point: str, *methods: str) -> list[Plugin]:
        names = self._points.get(point)
        if names is not None:
            found = {p.name: p for p in self.plugins}
            return [found[n] for n in names if n in found]
        return [p for p in self.plugins if overrides(p, *methods)]

    # -- filtering -------------------------------------------------------------------------------------------------------

    def _kept(self, cls: PodClass, what: str) -> Kept:
        key = (id(self), what)
        found = cls.cache.get(key)
        if found is None:
            found = cls.cache[key] = Kept()
            # Columns are as long as the cluster: only the classes that were asked about last keep theirs.
            self._recent[cls] = None
            self._recent.move_to_end(cls)
            if len(self._recent) > CLASSES_KEPT:
                self._recent.popitem(last=False)[0].cache.clear()
        return found

    def _refresh(self, kept: Kept, *, static: bool, dtype: str) -> Array:
        """The rows that must be computed anew (all for a fresh or outgrown column)."""
        table = self.table
        newest = table.static_generation if static else table.generation
        if kept.column is None or len(kept.column) != table.size:
            kept.column = np.zeros(table.size, dtype=dtype)
            rows = table.all_rows()
        elif kept.generation >= newest:
            rows = None
        elif static:
            rows = np.nonzero((table.static_changed > kept.generation) & table.valid)[0]
        else:
            rows = table.changed_since(kept.generation)
        kept.generation = table.generation
        return rows if rows is not None and len(rows) else None

    def _scope_mask(self, state: CycleState, pod: PodInfo, scope: str) -> Mask:
        kept = self._kept(pod.cls, scope)
        rows = self._refresh(kept, static=scope == "static", dtype="bool")
        if rows is not None:
            plugins = [p for p in self._scoped[scope] if p.name not in state.skipped_filters]
            if len(rows) <= FEW_ROWS and all(p.name in self._filters_one for p in plugins):
                for index in rows.tolist():
                    node = self.table.rows[index]
                    kept.column[index] = node is not None and _first_refusal(plugins, state, pod, node) is None
                return kept.column
            fits: Mask = np.ones(len(rows), dtype=np.bool_)
            for plugin in plugins:
                fits &= plugin.filter_rows(state, pod, rows)
            kept.column[rows] = fits
        return kept.column

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Diagnosis | None:
        """Run the pre-filters; a Diagnosis when one refuses the pod for all nodes."""
        for plugin in self.pre_filters:
            status = plugin.pre_filter(state, pod)
            if status is None:
                continue
            if status.code is Code.SKIP:
                state.skipped_filters.add(plugin.name)
                continue
            if status.code is Code.ERROR:
                raise RuntimeError(f"running PreFilter plugin {plugin.name!r}: {status.message}")
            nodes = {row.name: status for row in self.table.by_name.values() if row.node is not None}
            return Diagnosis(nodes, status.message, frozenset({plugin.name}), len(nodes))
        return None

    def feasible(self, state: CycleState, pod: PodInfo) -> Array:
        """The rows on which the pod may run."""
        table = self.table
        fits = table.valid & self._scope_mask(state, pod, "static")
        fits &= self._scope_mask(state, pod, "node")
        if state.only is not None:
            inside: Mask = np.zeros(table.size, dtype=np.bool_)
            for name in state.only:
                row = table.by_name.get(name)
                if row is not None:
                    inside[row.index] = True
            fits &= inside
        rows = np.nonzero(fits)[0]
        for plugin in self._scoped["cluster"]:
            if len(rows) and plugin.name not in state.skipped_filters:
                rows = rows[plugin.filter_rows(state, pod, rows)]
        return rows

    def fits(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        """Whether the pod may run on one node now; None, or the first refusal."""
        return _first_refusal([p for p in self.filters if p.name not in state.skipped_filters], state, pod, node)

    def only_room(self, state: CycleState) -> bool:
        """Whether what is on a node matters to this pod only by the room that it takes (or the ports)."""
        if any(p.name not in state.skipped_filters for p in self._scoped["cluster"]):
            return False
        return all(p.name in ("NodePorts", "NodeResourcesFit") for p in self._scoped["node"])

    def diagnose(self, state: CycleState, pod: PodInfo) -> Diagnosis:
        """Why no node fits. Equal pods share the answer, as far as nothing changes."""
        refusals = self._refusals(state, pod)
        cluster = [p for p in self._scoped["cluster"] if p.name not in state.skipped_filters]
        if not cluster and state.only is None:
            return Diagnosis(
                refusals.by_name, "", frozenset(refusals.plugins), int(self.table.valid.sum()), dict(refusals.reasons)
            )
        at, cls, known = self._diagnosed
        now = (self.table.generation, self.handle.changes)
        if known is not None and cls is pod.cls and at == now and not any(p.individual for p in cluster):
            return known
        statuses: dict[str, Status] = {}
        for row in self.table.by_name.values():
            if row.node is None:
                continue
            if state.only is not None and row.name not in state.only:
                statuses[row.name] = NOT_CHOSEN
                continue
            status = refusals.by_name.get(row.name) or _first_refusal(cluster, state, pod, row)
            if status is not None:
                statuses[row.name] = status
        plugins = frozenset(s.plugin for s in statuses.values())
        nodes = sum(1 for row in self.table.by_name.values() if row.node is not None)
        diagnosis = Diagnosis(statuses, "", plugins, nodes)
        self._diagnosed = (now, pod.cls, diagnosis)
        return diagnosis

    def _refusals(self, state: CycleState, pod: PodInfo) -> Refusals:
        """What the filters that look at one node only say; kept a class, renewed for rows that changed."""
        table, kept = self.table, self._kept(pod.cls, "refusals")
        if kept.column is None:
            kept.column = Refusals()
        found: Refusals = kept.column
        own = [p for p in self.filters if p.filter_scope != "cluster" and p.name not in state.skipped_filters]
        for index in np.nonzero(table.changed > kept.generation)[0].tolist():
            row = table.rows[index] if table.valid[index] else None
            found.set(index, row.name if row else "", _first_refusal(own, state, pod, row) if row else None)
        kept.generation = table.generation
        return found

    # -- scoring ---------------------------------------------------------------------------------------------------------

    def choose(self, state: CycleState, pod: PodInfo, rows: Array) -> int:
        """The best of the rows; among equals any."""
        if len(rows) == 1:
            return int(rows[0])
        for plugin in self.pre_scores:
            status = plugin.pre_score(state, pod, rows)
            if status is not None and status.code is Code.SKIP:
                state.skipped_scores.add(plugin.name)
        total = self.total(state, pod, rows)
        best = rows[total == total.max()]
        return int(best[random.randrange(len(best))])

    def choose_with(self, state: CycleState, pod: PodInfo, left: list[NodeRow], extra: dict[str, float]) -> NodeRow:
        """choose among some rows, with scores of extenders added."""
        rows = np.array([row.index for row in left], dtype=np.int64)
        for plugin in self.pre_scores:
            status = plugin.pre_score(state, pod, rows)
            if status is not None and status.code is Code.SKIP:
                state.skipped_scores.add(plugin.name)
        total = self.total(state, pod, rows) + np.array([extra.get(row.name, 0.0) for row in left])
        best = [row for row, score in zip(left, total.tolist(), strict=True) if score == total.max()]
        return random.choice(best)

    def total(self, state: CycleState, pod: PodInfo, rows: Array) -> Scores:
        """The weighted sums of all scores on the rows."""
        total: Scores = np.zeros(len(rows), dtype=np.float64)
        active = [(p, w) for p, w in self.scores if p.name not in state.skipped_scores]
        for static in (True, False):
            scope = "static" if static else "node"
            plain = [(p, w) for p, w in active if p.score_scope == scope and p.name in self._plain]
            if plain:
                total += self._sum(state, pod, plain, static)[rows]
        for plugin, weight in active:
            if plugin.score_scope == "cluster":
                total += weight * plugin.normalize(state, pod, plugin.score_rows(state, pod, rows))
            elif plugin.name not in self._plain:
                column = self._sum(state, pod, [(plugin, 1)], plugin.score_scope == "static")
                total += weight * plugin.normalize(state, pod, column[rows].astype(np.float64))
        return total

    def _sum(self, state: CycleState, pod: PodInfo, plugins: list[tuple[Plugin, int]], static: bool) -> Array:
        """The weighted sum of what some plugins say of all rows, as it comes; kept a class."""
        kept = self._kept(pod.cls, "score " + " ".join(p.name for p, _ in plugins))
        stale = self._refresh(kept, static=static, dtype="float32")  # half the room
        if stale is None:
            return kept.column
        if len(stale) <= FEW_ROWS and all(p.name in self._scores_one for p, _ in plugins):
            for index in stale.tolist():
                node = self.table.rows[index]
                kept.column[index] = sum(w * p.score(state, pod, node) for p, w in plugins) if node is not None else 0.0
        else:
            kept.column[stale] = sum(w * p.score_rows(state, pod, stale) for p, w in plugins)
        return kept.column
