"""Dynamic resource allocation on the node: claims of pods are prepared by their drivers, and given to containers as CDI.

A claim is prepared once for all the pods of the node that use it, and given back after the last; what is prepared is
written down first, so that a restart gives back what it finds. Source: k8s.io/kubelet/pkg/apis/dra/v1, kubernetes
pkg/kubelet/cm/dra (rules and texts).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from longshore.client.resources import RESOURCE_CLAIMS
from longshore.client.rest import Client as ApiClient
from longshore.client.rest import is_not_found
from longshore.machinery.errors import StatusError
from longshore.machinery.grpc import Client, RpcError
from longshore.node.kubelet.drahealth import DeviceHealths
from longshore.node.kubelet.plugins import PluginRefused
from longshore.wire.cri import cri
from longshore.wire.protobuf import Schema

log = logging.getLogger("longshore.kubelet.dra")
Pod = dict[str, Any]
DRA = """
service DRAPlugin: NodePrepareResources(NodePrepareResourcesRequest)NodePrepareResourcesResponse,
 NodeUnprepareResources(NodeUnprepareResourcesRequest)NodeUnprepareResourcesResponse
NodePrepareResourcesRequest: 1 claims *Claim
NodePrepareResourcesResponse: 1 claims {string:NodePrepareResourceResponse}
NodePrepareResourceResponse: 1 devices *Device, 2 error string
Device: 1 request_names *string, 2 pool_name string, 3 device_name string, 4 cdi_device_ids *string
NodeUnprepareResourcesRequest: 1 claims *Claim
NodeUnprepareResourcesResponse: 1 claims {string:NodeUnprepareResourceResponse}
NodeUnprepareResourceResponse: 1 error string
Claim: 1 namespace string, 2 uid string, 3 name string
"""
#: what a driver tells at its registration -> the protocol's package; the best first
SERVICES = {"v1.DRAPlugin": "k8s.io.kubelet.pkg.apis.dra.v1", "v1beta1.DRAPlugin": "v1beta1"}
CALL_SECONDS = 45.0
_schemas: dict[str, Schema] = {}


def schema(package: str) -> Schema:
    """The protocol's messages in one of its packages, made at first use."""
    if package not in _schemas:
        _schemas[package] = Schema(package, DRA)
    return _schemas[package]


class ClaimError(Exception):
    """A pod cannot have its claims now; the text is upstream's."""


@dataclass(slots=True)
class _Driver:
    endpoint: Path
    package: str


@dataclass(slots=True)
class _Claim:
    """A claim that this node has prepared or is about to.

    devices: driver -> (requests, CDI names, pool, name) of each device.
    """

    namespace: str
    name: str
    uid: str
    drivers: list[str]
    pods: list[str] = field(default_factory=list)
    prepared: bool = False
    devices: dict[str, list[tuple[list[str], list[str], str, str]]] = field(default_factory=dict)

    def of_request(self, request: str) -> list[tuple[str, str, str, list[str]]]:
        """(driver, pool, device, CDI names) for a request; "" all. A subrequest ("a/b") belongs to its request."""
        found = []
        for driver, devices in self.devices.items():
            for names, ids, pool, device in devices:
                if not request or not names or request in (n.partition("/")[0] for n in names) or request in names:
                    found.append((driver, pool, device, ids))
        return found


def claims_of(pod: Pod) -> list[tuple[str, str]]:
    """(name in the pod, ResourceClaim's name) of the claims that a pod uses. Raises ClaimError."""
    made = {s["name"]: s for s in (pod.get("status") or {}).get("resourceClaimStatuses") or ()}
    found = []
    for entry in pod["spec"].get("resourceClaims") or ():
        name = entry.get("resourceClaimName")
        if not name:
            if entry["name"] not in made:
                raise ClaimError(f'pod claim "{entry["name"]}": ResourceClaim not created yet')
            # None was made where none is needed.
            name = made[entry["name"]].get("resourceClaimName")
        if name:
            found.append((entry["name"], name))
    extended = (pod.get("status") or {}).get("extendedResourceClaimStatus")
    if extended:
        found.append(("", extended["resourceClaimName"]))
    return found


class ClaimManager:
    """The node's drivers, and what they have prepared."""

    def __init__(self, root: Path, client: ApiClient) -> None:
        """root: the kubelet's."""
        self._file, self._client = root / "dra_manager_state", client
        self._drivers: dict[str, list[_Driver]] = {}
        self._claims: dict[tuple[str, str], _Claim] = {}
        self._lock = asyncio.Lock()
        self.health = DeviceHealths(self._health_changed)
        #: told of the pods whose devices are otherwise than before
        self.pods_changed: Callable[[set[str]], None] = lambda _: None
        #: told when a driver has come
        self.arrived: Callable[[], None] = lambda: None
        self._load()

    # -- drivers -----------------------------------------------------------------------------------------------------

    async def register(self, name: str, endpoint: Path, versions: Sequence[str]) -> None:
        """A driver has come. Raises PluginRefused."""
        package = next((package for service, package in SERVICES.items() if service in versions), None)
        if package is None:
            raise PluginRefused(f"unsupported DRA plugin API versions: {list(versions)}; this kubelet speaks {list(SERVICES)}")  # fmt: skip
        # While a driver is renewed two instances may be there; the newest is asked.
        others = [d for d in self._drivers.get(name, ()) if d.endpoint != endpoint]
        self._drivers[name] = [*others, _Driver(endpoint, package)]
        self.health.follow(name, endpoint)
        self.arrived()

    async def deregister(self, name: str, endpoint: Path) -> None:
        """A driver has gone."""
        self.health.leave(name, endpoint)
        left = [d for d in self._drivers.pop(name, ()) if d.endpoint != endpoint]
        if left:
            self._drivers[name] = left

    def _health_changed(self, driver: str, devices: set[tuple[str, str]]) -> None:
        users = {
            uid
            for claim in self._claims.values()
            if any((pool, name) in devices for _, _, pool, name in claim.devices.get(driver, ()))
            for uid in claim.pods
        }
        if users:
            self.pods_changed(users)

    def _driver(self, name: str) -> _Driver:
        if name not in self._drivers:
            raise ClaimError(f"DRA driver {name} is not registered")
        return self._drivers[name][-1]

    async def _ask(self, driver: str, method: str, claims: Iterable[_Claim]) -> Any:
        """What a driver answers for each claim, by the claim's uid. Raises ClaimError."""
        claims = list(claims)
        found = self._driver(driver)
        client = Client(schema(found.package).DRAPlugin, path=found.endpoint)
        asked = [{"namespace": c.namespace, "uid": c.uid, "name": c.name} for c in claims]
        try:
            answer = (await client.call(method, deadline=CALL_SECONDS, claims=asked)).claims
        except RpcError as error:
            raise ClaimError(f"{method}: {error.message}") from error
        finally:
            client.close()
        known = {c.uid: c for c in claims}
        for uid, one in answer.items():
            if uid not in known:
                raise ClaimError(f"{method} returned result for unknown claim UID {uid}")
            if one.error:
                raise ClaimError(f"{method} failed for ResourceClaim {known[uid].name}: {one.error}")
        if len(answer) != len(claims):
            raise ClaimError(f"{method} skipped {len(claims) - len(answer)} ResourceClaims")
        return answer

    # -- pods --------------------------------------------------------------------------------------------------------

    async def prepare(self, pod: Pod) -> None:
        """Have all claims of a pod prepared. Raises ClaimError."""
        if not (pod["spec"].get("resourceClaims") or (pod.get("status") or {}).get("extendedResourceClaimStatus")):
            return
        try:
            async with self._lock:
                await self._prepare(pod)
        except ClaimError as error:
            raise ClaimError(f"prepare dynamic resources: {error}") from error

    async def _prepare(self, pod: Pod) -> None:
        metadata = pod["metadata"]
        namespace, uid = metadata["namespace"], metadata["uid"]
        fresh = []
        for _, name in claims_of(pod):
            obj = await self._claim(namespace, name)
            status = obj.get("status") or {}
            if not any(r.get("uid") == uid for r in status.get("reservedFor") or ()):
                raise ClaimError(f"pod {metadata['name']} ({uid}) is not allowed to use ResourceClaim {name} ({obj['metadata']['uid']})")  # fmt: skip
            if not status.get("allocation"):
                raise ClaimError(f"ResourceClaim {name}: not allocated")
            results = (status["allocation"].get("devices") or {}).get("results") or ()
            drivers = list(dict.fromkeys(str(r["driver"]) for r in results))
            for driver in drivers:
                self._driver(driver)
            fresh.append(_Claim(namespace, name, obj["metadata"]["uid"], drivers))
        wanted = []
        for claim in fresh:
            known = self._claims.setdefault((namespace, claim.name), claim)
            if known.uid != claim.uid:
                raise ClaimError(f"old ResourceClaim with same name {claim.name} and different UID {known.uid} still exists (previous pod force-deleted?!)")  # fmt: skip
            if uid not in known.pods:
                known.pods.append(uid)
            if not known.prepared:
                wanted.append(known)
        # Before a driver is asked: what a crash leaves half done is given back.
        await asyncio.to_thread(self._save)
        for driver in dict.fromkeys(d for claim in wanted for d in claim.drivers):
            mine = [claim for claim in wanted if driver in claim.drivers]
            answer = await self._ask(driver, "NodePrepareResources", mine)
            for claim in mine:
                devices = answer[claim.uid].devices
                claim.devices[driver] = [
                    (list(d.request_names), list(d.cdi_device_ids), d.pool_name, d.device_name) for d in devices
                ]
        for claim in wanted:
            claim.prepared = True
        await asyncio.to_thread(self._save)

    async def _claim(self, namespace: str, name: str) -> dict[str, Any]:
        try:
            return await self._client.get(RESOURCE_CLAIMS, name, namespace)
        except StatusError as error:
            what = f'resourceclaims.resource.k8s.io "{name}" not found' if is_not_found(error) else error.message
            raise ClaimError(f"fetch ResourceClaim {name}: {what}") from error
        except (OSError, TimeoutError) as error:
            raise ClaimError(f"fetch ResourceClaim {name}: {error}") from error

    def _asked(self, pod: Pod, container: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(ResourceClaim, request) of what a container uses; request "": all of it. Raises ClaimError."""
        wanted = (container.get("resources") or {}).get("claims") or ()
        extended = (pod.get("status") or {}).get("extendedResourceClaimStatus") or {}
        mapped = [m for m in extended.get("requestMappings") or () if m.get("containerName") == container["name"]]
        if not wanted and not mapped:
            return []
        names = dict(claims_of(pod))
        asked = [(names[c["name"]], str(c.get("request") or "")) for c in wanted if c["name"] in names]
        return asked + [(str(extended["resourceClaimName"]), str(m["requestName"])) for m in mapped]

    def add_to(self, config: Any, pod: Pod, container: Mapping[str, Any]) -> None:
        """Name the devices of a container's claims in its CRI configuration. Raises ClaimError."""
        namespace = pod["metadata"]["namespace"]
        for name, request in self._asked(pod, container):
            claim = self._claims.get((namespace, name))
            if claim is None:
                raise ClaimError(f"unable to get claim info for ResourceClaim {name} in namespace {namespace}")
            have = {d.name for d in config.CDI_devices}
            ids = dict.fromkeys(i for *_, names in claim.of_request(request) for i in names)
            config.CDI_devices.extend(cri.CDIDevice(name=i) for i in ids if i not in have)

    def of_container(self, pod: Pod, container: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str, str, list[str]]]]]:  # fmt: skip
        """(ResourceClaim, its devices as of_request gives them) of a container."""
        found: dict[str, list[tuple[str, str, str, list[str]]]] = {}
        try:
            asked = self._asked(pod, container)
        except ClaimError:
            return []
        for name, request in asked:
            claim = self._claims.get((pod["metadata"]["namespace"], name))
            if claim is not None:
                devices = found.setdefault(name, [])
                devices += [d for d in claim.of_request(request) if d not in devices]
        return list(found.items())

    def devices_of(self, pod: Pod, container: Mapping[str, Any]) -> Iterator[tuple[str, str, list[tuple[str, str, str, list[str]]]]]:  # fmt: skip
        """(the claim's name in the pod, request, its devices) of each claim that a container names."""
        try:
            names = dict(claims_of(pod))
        except ClaimError:
            return
        for entry in (container.get("resources") or {}).get("claims") or ():
            claim = self._claims.get((pod["metadata"]["namespace"], names.get(entry["name"], "")))
            if claim is not None:
                yield entry["name"], entry.get("request") or "", claim.of_request(entry.get("request") or "")

    async def unprepare(self, uid: str) -> None:
        """A pod has ended: give back the claims that it was the last to use. Raises ClaimError."""
        if not any(uid in claim.pods for claim in self._claims.values()):
            return
        async with self._lock:
            mine = [claim for claim in self._claims.values() if uid in claim.pods]
            last = [claim for claim in mine if claim.pods == [uid]]
            try:
                for driver in dict.fromkeys(d for claim in last for d in claim.drivers):
                    await self._ask(driver, "NodeUnprepareResources", [c for c in last if driver in c.drivers])
            except ClaimError as error:
                raise ClaimError(f"unprepare dynamic resources: {error}") from error
            for claim in mine:
                claim.pods.remove(uid)
            for claim in last:
                del self._claims[claim.namespace, claim.name]
            await asyncio.to_thread(self._save)

    def users(self) -> set[str]:
        """The uids of pods that have claims here, also of those that were deleted while the kubelet was away."""
        return {uid for claim in self._claims.values() for uid in claim.pods}

    # -- what is written down ----------------------------------------------------------------------------------------

    def _load(self) -> None:
        try:
            found = [_Claim(**entry) for entry in orjson.loads(self._file.read_bytes())["claims"]]
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s is unreadable: %s", self._file, error)
            return
        self._claims = {(c.namespace, c.name): c for c in found}

    def _save(self) -> None:
        data = orjson.dumps({"claims": [asdict(c) for c in list(self._claims.values())]})
        temporary = self._file.with_suffix(".new")
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._file)
