"""DynamicResources: a pod runs where its ResourceClaims have, or can be given, their devices.

Source: kubernetes pkg/scheduler/framework/plugins/dynamicresources, described behaviour and reasons.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from longshore.client.objects import is_deleting
from longshore.client.resources import DEVICE_CLASSES, PODS, RESOURCE_CLAIMS, RESOURCE_SLICES
from longshore.client.rest import is_conflict, is_not_found
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.scheduler.allocation import Allocator, NotAllocatable, Taken, choices_of
from longshore.master.scheduler.devices import Inventory, SelectorError
from longshore.master.scheduler.extended import BackedResources, is_special_claim_of, requests_of, special_claim
from longshore.master.scheduler.extender import seconds
from longshore.master.scheduler.framework import ClusterEvent, CycleState, Handle, Plugin, Status
from longshore.master.scheduler.nodes import NodeRow
from longshore.master.scheduler.podinfo import PodInfo
from longshore.master.scheduler.terms import node_term

log = logging.getLogger("longshore.scheduler")

FINALIZER = "resource.kubernetes.io/delete-protection"
MOST_USERS = 256  # entries of status.reservedFor
BINDING_SECONDS = 600.0


def allocation_of(claim: Object) -> Object | None:
    found: Object | None = (claim.get("status") or {}).get("allocation")
    return found


def unready(claim: Object) -> str | None:
    """What of a claim's devices is not ready for the pod to be bound: "", a failure's words, or None when all is."""
    told = {(d["driver"], d["pool"], d["device"]): d for d in (claim.get("status") or {}).get("devices") or ()}
    waiting = None
    for result in ((allocation_of(claim) or {}).get("devices") or {}).get("results") or ():
        wanted = result.get("bindingConditions") or ()
        device = told.get((result["driver"], result["pool"], result["device"])) or {}
        true = {c["type"]: c for c in device.get("conditions") or () if c.get("status") == "True"}
        for kind in result.get("bindingFailureConditions") or ():
            if kind in true:
                words = true[kind].get("message") or true[kind].get("reason") or kind
                return f"device {result['driver']}/{result['pool']}/{result['device']} failed to bind: {words}"
        if any(kind not in true for kind in wanted):
            waiting = ""
    return waiting


def users(claim: Object) -> list[Object]:
    return (claim.get("status") or {}).get("reservedFor") or []


class Wanted:
    """What one pod needs: its claims, those among them without devices, the extended resources that devices stand behind
    (with their classes), and what was found for the chosen node: `given`, claims with their allocations.

    stale: the special claim that an attempt left behind which came to nothing; mappings: which requests of the special
    claim serve which containers."""

    __slots__ = ("claims", "extended", "given", "mappings", "missing", "stale", "written")

    def __init__(self, claims: list[Object], extended: dict[str, str], stale: Object | None) -> None:
        self.claims, self.extended, self.stale = claims, extended, stale
        self.missing = [c for c in claims if allocation_of(c) is None]
        self.given: list[tuple[Object, Object]] = []
        self.mappings: list[Object] = []
        self.written: list[Object] = []  # claims that were reserved for the pod

    def allocation(self, claim: Object) -> Object | None:
        """What was found for a claim."""
        return next((found for given, found in self.given if given is claim), None)


class DynamicResources(Plugin):
    """Allocates devices to claims and reserves claims for pods."""

    name = "DynamicResources"
    individual = True  # equal pods have claims of their own
    wants = frozenset({"ResourceClaim", "ResourceSlice", "DeviceClass", "Pod", "Node"})

    def __init__(self, handle: Handle, args: Object) -> None:
        super().__init__(handle, args)
        self.claims = handle.watch(RESOURCE_CLAIMS)
        self.slices = handle.watch(RESOURCE_SLICES)
        self.classes = handle.watch(DEVICE_CLASSES)
        self.inventory = Inventory(self.slices.store)
        self.slices.on(*(lambda *objects: self.inventory.changed(),) * 3)
        self.backed = handle.backed = handle.backed or BackedResources(self.classes.store, handle.table.touch_all)
        self.classes.on(self.backed.refresh, lambda _, new: self.backed.refresh(new), self.backed.refresh)
        self.seconds = seconds(args.get("bindingTimeout"), BINDING_SECONDS)
        self._waiters: set[asyncio.Event] = set()
        self.claims.on(update=self._seen, delete=lambda claim: self._under_way.pop(claim["metadata"]["uid"], None))
        self._under_way: dict[str, Object] = {}  # claim uid -> allocation that is chosen, and not yet seen as written
        self._tasks: set[asyncio.Task[None]] = set()

    def _seen(self, old: Object, new: Object) -> None:
        if allocation_of(new) is not None:
            self._under_way.pop(new["metadata"]["uid"], None)
        for waiter in self._waiters:
            waiter.set()

    # -- the pod's claims

    @staticmethod
    def _names(pod: PodInfo) -> list[tuple[str, str | None, bool]]:
        """(the pod's name for a claim, the claim's own or None while it is not made, whether it is the pod's alone)."""
        made = {
            s["name"]: s.get("resourceClaimName")
            for s in (pod.pod.get("status") or {}).get("resourceClaimStatuses") or ()
        }
        found: list[tuple[str, str | None, bool]] = []
        for entry in pod.pod["spec"].get("resourceClaims") or ():
            if entry.get("resourceClaimName"):
                found.append((entry["name"], entry["resourceClaimName"], False))
            elif entry["name"] not in made:
                found.append((entry["name"], None, True))
            elif made[entry["name"]]:  # without a name: the pod turned out to need none
                found.append((entry["name"], made[entry["name"]], True))
        return found

    def pre_enqueue(self, pod: PodInfo) -> Status | None:
        for local, name, _ in self._names(pod):
            if name is None:
                return Status.unresolvable(f'pod "{pod.key}": ResourceClaim "{local}" not created yet')
        return None

    def queue_hint(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.kind != "ResourceClaim":
            return True
        claim = event.new or event.old or {}
        if claim["metadata"]["namespace"] == pod.namespace and any(
            name == claim["metadata"]["name"] for _, name, _ in self._names(pod)
        ):
            return True
        freed = event.old is not None and allocation_of(event.old) is not None
        return freed and (event.new is None or allocation_of(event.new) is None)

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Status | None:
        names, extended = self._names(pod), self.backed.of(pod.cls.requests)
        if not names and not extended:
            return Status.skip()
        claims = []
        for local, name, own in names:
            if name is None:
                return Status.unresolvable(f'pod "{pod.key}": ResourceClaim "{local}" not created yet')
            claim = self.claims.store.named(pod.namespace, name)
            if claim is None:
                return Status.unresolvable(f'resourceclaim "{name}" not found')
            if is_deleting(claim):
                return Status.unresolvable(f'resourceclaim "{name}" is being deleted')
            owners = claim["metadata"].get("ownerReferences") or ()
            if own and not any(o["uid"] == pod.uid for o in owners):
                return Status.unresolvable(
                    f"ResourceClaim {pod.namespace}/{name} was not created for pod {pod.key} (pod is not owner)"
                )
            if allocation_of(claim) is not None:
                reserved = users(claim)
                if len(reserved) >= MOST_USERS and not any(r["uid"] == pod.uid for r in reserved):
                    return Status.unresolvable("resourceclaim in use")
            elif claim["metadata"]["uid"] in self._under_way:
                return Status.unschedulable(f"resource claim {name} is in the process of being allocated")
            else:
                try:
                    for request in (claim["spec"].get("devices") or {}).get("requests") or ():
                        choices_of(request, self.classes.store.get)
                except NotAllocatable as error:
                    return Status.unresolvable(f"claim {pod.namespace}/{name}: {error}")
            claims.append(claim)
        made = self.claims.store.list(pod.namespace) if extended else ()
        stale = next((c for c in made if is_special_claim_of(c, pod.uid)), None)
        state.data[self.name] = Wanted(claims, extended, stale)
        state.data["devices taken"] = None
        return None

    def _taken(self, state: CycleState) -> Taken:
        """What all claims hold, counted once an attempt."""
        found: Taken | None = state.data.get("devices taken")
        if found is None:
            found = Taken()
            chosen = dict(self._under_way)
            for claim in self.claims.store:
                allocation = allocation_of(claim)
                if allocation is not None:
                    found.add(allocation)
                    chosen.pop(claim["metadata"]["uid"], None)
            for allocation in chosen.values():
                found.add(allocation)
            state.data["devices taken"] = found
        return found

    # -- choosing

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        wanted: Wanted | None = state.data.get(self.name)
        if wanted is None:
            return None
        if wanted.stale is not None:
            return Status.unschedulable("cannot schedule extended resource claim")
        for claim in wanted.claims:
            selector = (allocation_of(claim) or {}).get("nodeSelector")
            terms = (selector or {}).get("nodeSelectorTerms") or ()
            if selector and not any(node_term(t)(node.labels, node.name) for t in terms):
                return Status.unresolvable("resourceclaim not available on the node")
        found = self._allocate(state, self._needed(wanted, pod, node)[0], node)
        return found if isinstance(found, Status) else None

    def _needed(self, wanted: Wanted, pod: PodInfo, node: NodeRow) -> tuple[list[Object], list[Object]]:
        """The claims that need devices on a node, and the mappings of the special one: it asks for what of the extended
        resources the node does not offer by itself."""
        table = self.handle.table
        lacking = {r: c for r, c in wanted.extended.items() if not table.allocatable[table.column(r), node.index]}
        if not lacking:
            return wanted.missing, []
        requests, mappings = requests_of(pod.pod, lacking)
        return [*wanted.missing, special_claim(pod.pod, requests)], mappings

    def _allocate(self, state: CycleState, claims: list[Object], node: NodeRow) -> list[tuple[Object, Object]] | Status:
        """The claims with an allocation each on a node, or why not."""
        if not claims:
            return []
        try:
            found = Allocator(claims, self.classes.store.get, self.inventory.pools(node), self._taken(state)).allocate(
                node
            )
        except (NotAllocatable, SelectorError) as error:
            return Status.unresolvable(str(error))
        if found is None:
            return Status.unschedulable("cannot allocate all claims")
        return list(zip(claims, found, strict=True))

    def reserve(self, state: CycleState, pod: PodInfo, node: str) -> Status | None:
        wanted: Wanted | None = state.data.get(self.name)
        if wanted is None:
            return None
        state.data["devices taken"] = None  # extenders may have been asked since the filters ran
        row = self.handle.table.by_name[node]
        claims, wanted.mappings = self._needed(wanted, pod, row)
        found = self._allocate(state, claims, row)
        if isinstance(found, Status):
            return found
        wanted.given = found
        for claim, allocation in found:
            self._under_way[self._mark(claim, pod)] = allocation
        return None

    @staticmethod
    def _mark(claim: Object, pod: PodInfo) -> str:
        """What a claim goes by until its allocation is seen. A pod's special claim has no uid yet."""
        return str(claim["metadata"].get("uid") or "extended " + pod.uid)

    def unreserve(self, state: CycleState, pod: PodInfo, node: str) -> None:
        wanted: Wanted | None = state.data.get(self.name)
        if wanted is None:
            return
        for claim, _ in wanted.given:
            self._under_way.pop(self._mark(claim, pod), None)
        for claim in wanted.written:
            work = self._delete(claim) if is_special_claim_of(claim, pod.uid) else self._let_go(claim, pod)
            task = asyncio.get_running_loop().create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        wanted.given, wanted.written = [], []

    async def _let_go(self, claim: Object, pod: PodInfo) -> None:
        """The pod was not bound after all: take it out of the claim's users."""
        meta = claim["metadata"]
        patch = {"metadata": {"uid": meta["uid"]}, "status": {"reservedFor": [{"$patch": "delete", "uid": pod.uid}]}}
        try:
            await self.handle.client.patch(
                RESOURCE_CLAIMS, meta["name"], patch, meta["namespace"], kind="strategic", subresource="status"
            )
        except (StatusError, OSError, TimeoutError) as error:
            log.info("resource claim %s/%s: %s", meta["namespace"], meta["name"], error)

    # -- writing

    async def pre_bind(self, state: CycleState, pod: PodInfo, node: str) -> Status | None:
        wanted: Wanted | None = state.data.get(self.name)
        if wanted is None:
            return None
        for claim in wanted.claims:
            if not any(r["uid"] == pod.uid for r in users(claim)):
                wanted.written.append(await self._write(claim, wanted.allocation(claim), pod))
        if wanted.mappings:
            await self._write_special(wanted, wanted.given[-1][0], pod)
        problem = await self._ready(wanted.written)
        if problem is None:
            return None
        for claim in wanted.written:
            await self._deallocate(claim)
        return Status.unschedulable(problem)

    async def _write_special(self, wanted: Wanted, special: Object, pod: PodInfo) -> None:
        """Make the claim for the pod's extended resources, with its devices, and tell it in the pod's status."""
        made = await self.handle.client.create(RESOURCE_CLAIMS, special)
        wanted.written.append(made)  # from now on it must not outlive a failure
        allocation = wanted.allocation(special)
        # The claim's own uid takes the mark's place, until the informer shows the allocation.
        self._under_way[made["metadata"]["uid"]] = self._under_way.pop(self._mark(special, pod))
        wanted.given = [(made if claim is special else claim, found) for claim, found in wanted.given]
        wanted.written[-1] = written = await self._write(made, allocation, pod)
        told = {"requestMappings": wanted.mappings, "resourceClaimName": written["metadata"]["name"]}
        patch = {"metadata": {"uid": pod.uid}, "status": {"extendedResourceClaimStatus": told}}
        await self.handle.client.patch(PODS, pod.name, patch, pod.namespace, kind="strategic", subresource="status")

    async def _delete(self, claim: Object) -> None:
        """Take back a special claim with its devices."""
        meta = claim["metadata"]
        try:
            newest = await self.handle.client.get(RESOURCE_CLAIMS, meta["name"], meta["namespace"])
            kept = [f for f in newest["metadata"].get("finalizers") or () if f != FINALIZER]
            if kept != (newest["metadata"].get("finalizers") or []):
                newest = {**newest, "metadata": {**newest["metadata"], "finalizers": kept}}
                await self.handle.client.update(RESOURCE_CLAIMS, newest)
            await self.handle.client.delete(RESOURCE_CLAIMS, meta["name"], meta["namespace"], uid=meta["uid"])
        except (StatusError, OSError, TimeoutError) as error:
            if not (isinstance(error, StatusError) and is_not_found(error)):
                log.info("resource claim %s/%s: %s", meta["namespace"], meta["name"], error)

    async def _ready(self, claims: list[Object]) -> str | None:
        """Wait until the drivers have made the claims' devices ready; what went wrong, or None."""
        waiter = asyncio.Event()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    waiter.clear()
                    states = [unready(self._newest(c)) for c in claims]
                    problem = next((s for s in states if s), None)
                    if problem or all(s is None for s in states):
                        return problem
                    await waiter.wait()
        except TimeoutError:
            return "timed out waiting for the devices' binding conditions"
        finally:
            self._waiters.discard(waiter)

    def _newest(self, claim: Object) -> Object:
        """A claim as it is now, or as we wrote it while the cache does not have that yet."""
        found = self.claims.store.named(claim["metadata"]["namespace"], claim["metadata"]["name"])
        return found if found is not None and allocation_of(found) is not None else claim

    async def _deallocate(self, claim: Object) -> None:
        """Give a claim's devices back."""
        claim = self._newest(claim)
        gone = ("allocation", "reservedFor", "devices")
        status = {k: v for k, v in (claim.get("status") or {}).items() if k not in gone}
        try:
            await self.handle.client.update(RESOURCE_CLAIMS, {**claim, "status": status}, subresource="status")
        except StatusError as error:
            if not (is_conflict(error) or is_not_found(error)):
                raise

    async def _write(self, claim: Object, allocation: Object | None, pod: PodInfo) -> Object:
        """Write the allocation and the new user into a claim, again from its present state after a conflict."""
        client, meta = self.handle.client, claim["metadata"]
        while True:
            try:
                status: dict[str, Any] = dict(claim.get("status") or {})
                if allocation is not None and "allocation" not in status:
                    finalizers = claim["metadata"].get("finalizers") or []
                    if FINALIZER not in finalizers:
                        # First the finalizer: an allocated claim must not go before it was deallocated.
                        metadata = {**claim["metadata"], "finalizers": [*finalizers, FINALIZER]}
                        claim = await client.update(RESOURCE_CLAIMS, {**claim, "metadata": metadata})
                        status = dict(claim.get("status") or {})
                    status["allocation"] = allocation
                user = {"resource": "pods", "name": pod.name, "uid": pod.uid}
                status["reservedFor"] = [*(status.get("reservedFor") or ()), user]
                return await client.update(RESOURCE_CLAIMS, {**claim, "status": status}, subresource="status")
            except StatusError as error:
                if not is_conflict(error):
                    raise
                claim = await client.get(RESOURCE_CLAIMS, meta["name"], meta["namespace"])
                if claim["metadata"]["uid"] != meta["uid"]:
                    raise

    async def post_filter(
        self, state: CycleState, pod: PodInfo, refused: dict[str, Status]
    ) -> tuple[str, Status | None]:
        """A claim that nobody else uses and that keeps the pod from every node gives its devices back."""
        wanted: Wanted | None = state.data.get(self.name)
        for claim in wanted.claims if wanted is not None else ():
            others = [r for r in users(claim) if r["uid"] != pod.uid]
            away = any("resourceclaim not available on the node" in s.reasons for s in refused.values())
            if allocation_of(claim) is None or others or not away:
                continue
            await self._deallocate(claim)
            return "", Status.unschedulable("deallocation of ResourceClaim completed")
        if wanted is not None and wanted.stale is not None:
            await self._delete(wanted.stale)
            return "", Status.unschedulable("deletion of ResourceClaim completed")
        return "", Status.unschedulable("no new claims to deallocate")
