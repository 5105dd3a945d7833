"""Addresses and node ports of Services.

An address that is given out is an IPAddress object; a node port is a key under /registry/ranges/servicenodeports. Both
are made only if absent, so that servers beside each other never give the same one twice. What a crash leaves behind is
found at the start, or soon after it where there are several servers. Source: registry/core/service/storage/alloc.go and ipallocator.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from longshore.api.core.service_needs import is_headless, needs_cluster_ip, needs_health_check_port, needs_node_port
from longshore.api.validation.errors import Errors, FieldError
from longshore.machinery.errors import Cause, StatusError, internal_error, invalid
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.local import LocalAPI

Object = dict[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Undo = Callable[[], Awaitable[None]]
log = logging.getLogger("longshore.apiserver.allocation")
PORTS = b"/registry/ranges/servicenodeports/"
PATIENCE = 90.0  # seconds; a request may take 60
T = TypeVar("T")
_NETWORKING = "networking.k8s.io"


def _refuse(name: str, errors: list[FieldError]) -> StatusError:
    return invalid("", "Service", name, [Cause(**e.cause()) for e in errors])


def family_of(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


class ServiceAllocator:
    """The hook of the Service write path: what is allocated before a write is taken back when the write fails."""

    def __init__(self, api: LocalAPI, store: Any, cidrs: list[str], node_ports: tuple[int, int]) -> None:
        self.api = api
        self.store = store
        self.families = [family_of(c) for c in cidrs]
        self.primary = [ipaddress.ip_network(c) for c in cidrs]
        self.first_port, self.last_port = node_ports

    # The write path's calls.

    async def before_create(self, call: Call, service: Object, dry_run: bool) -> Undo | None:
        return await self._allocate(call, service, None, dry_run)

    async def before_update(self, call: Call, new: Object, old: Object, subresource: str, dry_run: bool) -> Undo | None:
        return None if subresource else await self._allocate(call, new, old, dry_run)

    async def after_update(self, call: Call, new: Object, old: Object) -> None:
        kept = new.get("spec") or {}
        before = old.get("spec") or {}
        gone = [a for a in _addresses(before) if a not in _addresses(kept)]
        ports = [p for p in _ports(before) if p not in _ports(kept)]
        await self._release(gone, ports)

    async def after_delete(self, call: Call, service: Object) -> None:
        spec = service.get("spec") or {}
        await self._release(_addresses(spec), _ports(spec))

    async def _release(self, addresses: list[str], ports: list[int]) -> None:
        for address in addresses:
            with contextlib.suppress(StatusError):
                await self.api.delete(_NETWORKING, "ipaddresses", "", address)
        for port in ports:
            await self.store.delete(PORTS + str(port).encode())

    async def _allocate(self, call: Call, service: Object, old: Object | None, dry_run: bool) -> Undo | None:
        spec = service["spec"]
        name = service["metadata"].get("name", "")
        addresses: list[str] = []
        ports: list[int] = []

        async def undo() -> None:
            await self._release(addresses, ports)

        try:
            if needs_cluster_ip(spec):
                self._families(spec, name, old is not None and bool(_addresses(old.get("spec") or {})))
                await self._cluster_ips(service, old, addresses, dry_run)
            if needs_node_port(spec):
                await self._node_ports(service, old, ports, dry_run)
            if needs_health_check_port(spec):
                await self._health_port(service, old, ports, dry_run)
        except BaseException:
            await undo()
            raise
        return undo if addresses or ports else None

    # Families.

    def _families(self, spec: Object, name: str, has_address: bool) -> None:
        """Fill in ipFamilies and ipFamilyPolicy from what is given and what the cluster has.

        has_address: the Service has one already, so that what does not fit it is for validation to say.
        """
        errors = Errors()
        ips = [i for i in spec.get("clusterIPs") or () if i != "None"]
        families = list(spec.get("ipFamilies") or ())
        policy = spec.get("ipFamilyPolicy")
        selectorless = is_headless(spec) and not spec.get("selector")
        for index, address in enumerate(ips):
            if index >= len(families):
                with contextlib.suppress(ValueError):
                    ipaddress.ip_address(address)
                    families.append(family_of(address))
        if policy is None:
            if selectorless:
                policy = "RequireDualStack"
            else:
                policy = "RequireDualStack" if len(families) == 2 or len(ips) == 2 else "SingleStack"
        elif policy == "RequireDualStack" and len(self.families) < 2 and not selectorless:
            errors.invalid("spec.ipFamilyPolicy", policy, "this cluster is not configured for dual-stack services")
        for index, family in enumerate(families):
            if family in ("IPv4", "IPv6") and family not in self.families and not selectorless:
                errors.invalid(f"spec.ipFamilies[{index}]", family, "not configured on this cluster")
        if errors and not has_address:
            raise _refuse(name, errors)
        if not families:
            families = [self.families[0]]
        both = policy in ("PreferDualStack", "RequireDualStack") and (len(self.families) == 2 or selectorless)
        if len(families) == 1 and both:
            families.append("IPv6" if families[0] == "IPv4" else "IPv4")
        spec["ipFamilies"], spec["ipFamilyPolicy"] = families, policy

    # Addresses.

    def ranges(self, family: str) -> list[Network]:
        """The ranges that addresses are taken from: of every ServiceCIDR that is not going."""
        found: list[Network] = []
        for obj in self.api.list(_NETWORKING, "servicecidrs"):
            if obj["metadata"].get("deletionTimestamp"):
                continue
            found += [ipaddress.ip_network(c) for c in obj["spec"].get("cidrs") or () if family_of(c) == family]
        if not found:
            found = [n for n in self.primary if family_of(str(n)) == family]
        return found

    async def _cluster_ips(self, service: Object, old: Object | None, taken: list[str], dry_run: bool) -> None:
        spec = service["spec"]
        if is_headless(spec):
            spec["clusterIP"] = "None"
            return
        before = _addresses((old or {}).get("spec") or {})
        wanted = list(spec.get("clusterIPs") or ())
        out: list[str] = []
        for index, family in enumerate(spec["ipFamilies"]):
            asked = wanted[index] if index < len(wanted) else ""
            if asked and asked in before:
                out.append(asked)
            elif asked:
                if self._usable(asked):
                    await self._take(service, asked, taken, dry_run, wanted)
                out.append(asked)
            else:
                out.append(await self._any(service, family, taken, dry_run))
        out += wanted[len(out) :]
        spec["clusterIPs"] = out
        if out and (old is None or not spec.get("clusterIP")):
            if not spec.get("clusterIP"):
                spec["clusterIP"] = out[0]

    def _usable(self, address: str) -> bool:
        """Whether a text is an address at all (what is not is told by validation)."""
        try:
            return str(ipaddress.ip_address(address)) == address
        except ValueError:
            return False

    async def _take(self, service: Object, address: str, taken: list[str], dry_run: bool, wanted: list[str]) -> None:
        """Allocate one address that was asked for."""
        name = service["metadata"].get("name", "")
        parsed = ipaddress.ip_address(address)
        problem = ""
        if not any(parsed in n and parsed not in _ends(n) for n in self.ranges(family_of(address))):
            problem = "the provided network does not match the current range"
        elif self.api.get(_NETWORKING, "ipaddresses", "", address) is not None:
            problem = "provided IP is already allocated"
        elif not dry_run:
            if await self._reserve(service, address):
                taken.append(address)
            else:
                problem = "provided IP is already allocated"
        if problem:
            errors = Errors()
            errors.invalid("spec.clusterIPs", wanted, f"failed to allocate IP {address}: {problem}")
            raise _refuse(name, errors)

    async def _any(self, service: Object, family: str, taken: list[str], dry_run: bool) -> str:
        """Allocate some address."""
        cache = self.api.scheme.storages[_NETWORKING, "ipaddresses"].cache
        assert cache is not None
        for network in self.ranges(family):
            size = network.num_addresses
            usable = size - (2 if family == "IPv4" else 1)
            # The lowest part of a range is left for addresses that are chosen by hand.
            reserved = min(max(16, size // 16), 256) if size > 32 else 0
            for first, last in ((1 + reserved, usable), (1, min(reserved, usable))):
                if first > last:
                    continue
                start = random.randint(first, last)
                span = last - first + 1
                for step in range(min(span, 65536)):
                    address = str(network[first + (start - first + step) % span])
                    if address in cache.items:
                        continue
                    if dry_run:
                        return address
                    if await self._reserve(service, address):
                        taken.append(address)
                        return address
        raise internal_error("failed to allocate a serviceIP: range is full")

    async def _reserve(self, service: Object, address: str) -> bool:
        metadata = service["metadata"]
        labels = {
            "ipaddress.kubernetes.io/ip-family": family_of(address),
            "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
        }
        parent = {
            "group": "",
            "resource": "services",
            "namespace": metadata.get("namespace", ""),
            "name": metadata.get("name", ""),
        }
        try:
            await self.api.create(
                _NETWORKING,
                "ipaddresses",
                "",
                {"metadata": {"name": address, "labels": labels}, "spec": {"parentRef": parent}},
            )
        except StatusError as error:
            if error.reason == "AlreadyExists":
                return False
            raise
        return True

    # Node ports.

    async def _node_ports(self, service: Object, old: Object | None, taken: list[int], dry_run: bool) -> None:
        before = _ports((old or {}).get("spec") or {})
        name = service["metadata"].get("name", "")
        ours: dict[int, set[str]] = {}
        for index, port in enumerate(service["spec"].get("ports") or ()):
            asked = port.get("nodePort") or 0
            protocol = port.get("protocol", "TCP")
            if asked:
                if asked in before or (asked in ours and protocol not in ours[asked]):
                    ours.setdefault(asked, set()).add(protocol)
                    continue
                await self._take_port(service, asked, f"spec.ports[{index}].nodePort", name, taken, dry_run)
            else:
                shared = next(
                    (n for n, used in ours.items() if protocol not in used and _same_port(service, n, port)), 0
                )
                asked = shared or await self._any_port(service, taken, dry_run)
                port["nodePort"] = asked
            ours.setdefault(asked, set()).add(protocol)

    async def _take_port(
        self, service: Object, port: int, where: str, name: str, taken: list[int], dry_run: bool
    ) -> None:
        errors = Errors()
        if not self.first_port <= port <= self.last_port:
            if 0 < port < 65536:
                text = f"provided port is not in the valid range. The range of valid ports is {self.first_port}-{self.last_port}"
                errors.invalid(where, port, text)
        elif not await self._reserve_port(service, port, dry_run):
            errors.invalid(where, port, "provided port is already allocated")
        elif not dry_run:
            taken.append(port)
        if errors:
            raise _refuse(name, errors)

    async def _any_port(self, service: Object, taken: list[int], dry_run: bool) -> int:
        span = self.last_port - self.first_port + 1
        start = random.randrange(span)
        for step in range(span):
            port = self.first_port + (start + step) % span
            if await self._reserve_port(service, port, dry_run):
                if not dry_run:
                    taken.append(port)
                return port
        raise internal_error("failed to allocate a nodePort: range is full")

    async def _reserve_port(self, service: Object, port: int, dry_run: bool) -> bool:
        key = PORTS + str(port).encode()
        if dry_run:
            return not (await self.store.range(key)).kvs
        metadata = service["metadata"]
        owner = f"{metadata.get('namespace', '')}/{metadata.get('name', '')}".encode()
        return bool((await self.store.create(key, owner)).succeeded)

    async def _health_port(self, service: Object, old: Object | None, taken: list[int], dry_run: bool) -> None:
        spec = service["spec"]
        asked = spec.get("healthCheckNodePort") or 0
        if asked and asked in _ports((old or {}).get("spec") or {}):
            return
        if asked:
            await self._take_port(
                service, asked, "spec.healthCheckNodePort", service["metadata"].get("name", ""), taken, dry_run
            )
        else:
            spec["healthCheckNodePort"] = await self._any_port(service, taken, dry_run)

    # Repair.

    async def repair(self) -> None:
        """Note what Services have, and give back what belongs to none (a crash between allocation and write).

        Not so where other servers allocate from the same store: there see `repair_shared`.
        """
        ports, addresses = self._of_services()
        held = {int(kv.key[len(PORTS) :]) for kv in await self._held()}
        for port in ports.keys() - held:
            await self.store.create(PORTS + str(port).encode(), ports[port].encode())
        for address, service in addresses.items():
            if self.api.get(_NETWORKING, "ipaddresses", "", address) is None:
                with contextlib.suppress(StatusError):
                    await self._reserve(service, address)
        if not self.store.shared:
            lost_ports, lost_addresses = await self._lost()
            await self._release(list(lost_addresses), list(lost_ports))

    async def repair_shared(self, patience: float = PATIENCE) -> None:
        """Give back what belonged to no Service at one look and does not at another one.

        What another server has just allocated belongs to no Service until its request ends, which takes less than the
        `patience` (seconds) between the looks.
        """
        first_ports, first_addresses = await self._lost()
        await asyncio.sleep(patience)
        await self.api.hub.fresh()
        ports, addresses = await self._lost()
        await self._release(_in_both(first_addresses, addresses), _in_both(first_ports, ports))

    def _of_services(self) -> tuple[dict[int, str], dict[str, Object]]:
        """The node ports and addresses of all Services: whose they are."""
        ports: dict[int, str] = {}
        addresses: dict[str, Object] = {}
        for service in self.api.list("", "services"):
            spec, metadata = service.get("spec") or {}, service["metadata"]
            for port in _ports(spec):
                ports[port] = f"{metadata['namespace']}/{metadata['name']}"
            for address in _addresses(spec):
                addresses[address] = service
        return ports, addresses

    async def _held(self) -> list[Any]:
        kvs: list[Any] = (await self.store.range(PORTS, PORTS[:-1] + b"0", keys_only=True)).kvs
        return kvs

    async def _lost(self) -> tuple[dict[int, str], dict[str, str]]:
        """Node ports and addresses that belong to no Service, with the version in which they stand there."""
        ports, addresses = self._of_services()
        held = {int(kv.key[len(PORTS) :]): str(kv.mod_revision) for kv in await self._held()}
        taken = {
            obj["metadata"]["name"]: obj["metadata"]["resourceVersion"]
            for obj in self.api.list(_NETWORKING, "ipaddresses")
            if (obj["metadata"].get("labels") or {}).get("ipaddress.kubernetes.io/managed-by") == "ipallocator.k8s.io"
        }
        return (
            {port: version for port, version in held.items() if port not in ports},
            {name: version for name, version in taken.items() if name not in addresses},
        )


def _in_both(before: dict[T, str], now: dict[T, str]) -> list[T]:
    """What stands in both in the same version."""
    return [name for name, version in now.items() if before.get(name) == version]


def _ends(network: Network) -> tuple[Any, ...]:
    if network.version == 4 and network.num_addresses > 2:
        return network.network_address, network.broadcast_address
    return (network.network_address,)


def _addresses(spec: Object) -> list[str]:
    return [a for a in spec.get("clusterIPs") or () if a and a != "None"]


def _ports(spec: Object) -> list[int]:
    found = [p["nodePort"] for p in spec.get("ports") or () if p.get("nodePort")]
    if spec.get("healthCheckNodePort"):
        found.append(spec["healthCheckNodePort"])
    return list(dict.fromkeys(found))


def _same_port(service: Object, node_port: int, port: Object) -> bool:
    """Whether a node port was given to the same port number of another protocol: the two share it."""
    return any(
        p.get("nodePort") == node_port and p.get("port") == port.get("port") for p in service["spec"].get("ports") or ()
    )
