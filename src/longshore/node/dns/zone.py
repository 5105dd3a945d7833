"""The cluster's zone: what DNS-based service discovery 1.1.0 says of Services, endpoints and pods.

Source: kubernetes/dns docs/specification.md 1.1.0; where it leaves room, CoreDNS's kubernetes plugin is followed (SRV
weights shared evenly, dashed addresses as host names of endpoints without one, pod records made from the question).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from longshore.wire import dns
from longshore.wire.dns import Record

Object = dict[str, Any]
VERSION = "1.1.0"
SERVICE_NAME = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class Host:
    """One endpoint address behind a headless Service: its host name in the Service's domain, its ports."""

    name: str
    address: str
    named: bool
    ports: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One Service. ports: (name, protocol in lower case, number)."""

    namespace: str
    name: str
    ips: tuple[str, ...]
    external: str
    headless: bool
    ports: tuple[tuple[str, str, int], ...]


@dataclass(slots=True)
class Answer:
    """exists: the name is there (perhaps without records of this type). follow: a CNAME out of the zone to resolve."""

    exists: bool
    records: list[Record] = field(default_factory=list)
    additional: list[Record] = field(default_factory=list)
    follow: str = ""


class Zone:
    """All records under one domain, looked up by name. Fed with API objects; nothing is kept but what answers need.

    domain: "cluster.local."; dns_ips: the addresses of the DNS Service itself; ttl in seconds.
    """

    def __init__(self, domain: str, dns_ips: Iterable[str] = (), ttl: int = 30) -> None:
        self.domain = domain.rstrip(".").lower() + "."
        self.ttl = ttl
        self.serial = 1
        self._dns_ips = tuple(dns_ips)
        self._suffix = tuple(self.domain.rstrip(".").split("."))
        self._services: dict[tuple[str, str], Entry] = {}
        self._slices: dict[tuple[str, str], dict[str, list[Host]]] = {}
        self._slice_of: dict[str, tuple[str, str]] = {}
        self._namespaces: dict[str, int] = {}
        self._known_namespaces: set[str] = set()
        self._pointers: dict[str, set[str]] = {}

    # ------------------------------------------------------------------------------------------------- what changes

    def set_service(self, service: Object) -> None:
        """A Service as it is now."""
        self.remove_service(service)
        meta, spec = service["metadata"], service.get("spec", {})
        ips = tuple(ip for ip in (spec.get("clusterIPs") or [spec.get("clusterIP", "")]) if ip and ip != "None")
        external = spec.get("externalName", "") if spec.get("type") == "ExternalName" else ""
        ports = tuple((p.get("name", ""), p.get("protocol", "TCP").lower(), p["port"]) for p in spec.get("ports") or ())
        entry = Entry(
            meta["namespace"], meta["name"], () if external else ips, external, not ips and not external, ports
        )
        self._services[meta["namespace"], meta["name"]] = entry
        self._namespaces[meta["namespace"]] = self._namespaces.get(meta["namespace"], 0) + 1
        for ip in entry.ips:
            self._pointers.setdefault(ip, set()).add(self._service_name(entry))
        self.serial += 1

    def remove_service(self, service: Object) -> None:
        key = (service["metadata"]["namespace"], service["metadata"]["name"])
        entry = self._services.pop(key, None)
        if entry is None:
            return
        self._namespaces[key[0]] -= 1
        if not self._namespaces[key[0]]:
            del self._namespaces[key[0]]
        for ip in entry.ips:
            self._unpoint(ip, self._service_name(entry))
        self.serial += 1

    def set_slice(self, endpoint_slice: Object) -> None:
        """An EndpointSlice as it is now."""
        self.remove_slice(endpoint_slice)
        meta = endpoint_slice["metadata"]
        service = (meta.get("labels") or {}).get(SERVICE_NAME)
        if not service or endpoint_slice.get("addressType") == "FQDN":
            return
        key = (meta["namespace"], service)
        ports = tuple(
            (p.get("name") or "", (p.get("protocol") or "TCP").lower(), p["port"])
            for p in endpoint_slice.get("ports") or ()
            if p.get("port")
        )
        hosts = []
        for endpoint in endpoint_slice.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready") is False:
                continue
            given = endpoint.get("hostname") or ""
            for address in endpoint.get("addresses") or ():
                name = given or address.replace(".", "-").replace(":", "-")
                hosts.append(Host(name.lower(), address, bool(given), ports))
        self._slices.setdefault(key, {})[meta["name"]] = hosts
        self._slice_of[f"{meta['namespace']}/{meta['name']}"] = key
        for host in hosts:
            self._pointers.setdefault(host.address, set()).add(self._host_name(key, host))
        self.serial += 1

    def remove_slice(self, endpoint_slice: Object) -> None:
        meta = endpoint_slice["metadata"]
        key = self._slice_of.pop(f"{meta['namespace']}/{meta['name']}", None)
        if key is None:
            return
        slices = self._slices[key]
        for host in slices.pop(meta["name"], []):
            self._unpoint(host.address, self._host_name(key, host))
        if not slices:
            del self._slices[key]
        self.serial += 1

    def set_namespace(self, namespace: Object) -> None:
        self._known_namespaces.add(namespace["metadata"]["name"])
        self.serial += 1

    def remove_namespace(self, namespace: Object) -> None:
        self._known_namespaces.discard(namespace["metadata"]["name"])
        self.serial += 1

    def _unpoint(self, address: str, name: str) -> None:
        names = self._pointers.get(address)
        if names:
            names.discard(name)
            if not names:
                del self._pointers[address]

    def _service_name(self, entry: Entry) -> str:
        return f"{entry.name}.{entry.namespace}.svc.{self.domain}"

    def _host_name(self, key: tuple[str, str], host: Host) -> str:
        return f"{host.name}.{key[1]}.{key[0]}.svc.{self.domain}"

    # ---------------------------------------------------------------------------------------------------- questions

    def contains(self, name: str) -> bool:
        """Whether a lower-case name lies in the zone."""
        return name == self.domain or name.endswith("." + self.domain)

    def authority(self) -> Record:
        """The SOA record that goes with an answer without records; its ttl bounds negative caching."""
        data = (f"ns.dns.{self.domain}", f"hostmaster.{self.domain}", self.serial & 0xFFFFFFFF, 7200, 1800, 86400, 5)
        return Record(self.domain, dns.SOA, 5, data)

    def reverse(self, name: str) -> list[str] | None:
        """Names for a reverse name of an address that the cluster knows; None where it does not."""
        address = _reversed(name)
        names = self._pointers.get(address) if address else None
        return sorted(names) if names else None

    def lookup(self, name: str, kind: int, asked: str) -> Answer:
        """The answer for a lower-case name in the zone. asked: the name as the question spelt it."""
        labels = tuple(name.rstrip(".").split("."))[: -len(self._suffix)] if name != self.domain else ()
        if not labels:
            return self._apex(kind, asked)
        if labels == ("dns-version",):
            texts = [Record(asked, dns.TXT, self.ttl, (VERSION.encode(),))] if kind == dns.TXT else []
            return Answer(True, texts)
        if labels[-1:] == ("dns",) and len(labels) <= 2:
            exists = labels in (("dns",), ("ns", "dns"))
            return Answer(exists, self._addresses(asked, self._dns_ips, kind) if len(labels) == 2 and exists else [])
        if labels[-1] == "svc":
            return self._service(labels[:-1], kind, asked)
        if labels[-1] == "pod":
            return self._pod(labels[:-1], kind, asked)
        return Answer(False)

    def _apex(self, kind: int, asked: str) -> Answer:
        if kind == dns.SOA:
            return Answer(True, [self.authority()])
        if kind == dns.NS:
            target = f"ns.dns.{self.domain}"
            both = [*self._addresses(target, self._dns_ips, dns.A), *self._addresses(target, self._dns_ips, dns.AAAA)]
            return Answer(True, [Record(asked, dns.NS, self.ttl, target)], both)
        return Answer(True)

    def _is_namespace(self, name: str) -> bool:
        return name in self._known_namespaces or name in self._namespaces

    def _service(self, labels: tuple[str, ...], kind: int, asked: str) -> Answer:
        """labels: (..., service, namespace)."""
        if not labels:
            return Answer(True)
        if len(labels) == 1:
            return Answer(self._is_namespace(labels[0]))
        entry = self._services.get((labels[-1], labels[-2]))
        if entry is None:
            return Answer(False)
        if len(labels) == 2:
            return self._whole(entry, kind, asked)
        if len(labels) == 3:
            return self._host(entry, labels[0], kind, asked)
        if len(labels) == 4 and labels[0].startswith("_") and labels[1].startswith("_"):
            return self._port(entry, labels[0][1:], labels[1][1:], kind, asked)
        return Answer(False)

    def _hosts(self, entry: Entry) -> list[Host]:
        slices = self._slices.get((entry.namespace, entry.name), {})
        return [host for hosts in slices.values() for host in hosts]

    def _whole(self, entry: Entry, kind: int, asked: str) -> Answer:
        if entry.external:
            try:
                ipaddress.ip_address(entry.external)
            except ValueError:
                target = entry.external.rstrip(".") + "."
                alias = [Record(asked, dns.CNAME, self.ttl, target)]
                follow = target if kind in (dns.A, dns.AAAA) else ""
                return Answer(True, alias if kind in (dns.A, dns.AAAA, dns.CNAME) else [], follow=follow)
            return Answer(True, self._addresses(asked, (entry.external,), kind))
        if entry.headless:
            hosts = self._hosts(entry)
            if not hosts:
                return Answer(False)
            if kind == dns.SRV:
                return self._srv([(h, p) for h in hosts for p in h.ports], entry, asked)
            return Answer(True, self._addresses(asked, dict.fromkeys(h.address for h in hosts), kind))
        if kind == dns.SRV:
            return self._service_srv(entry, entry.ports, asked)
        return Answer(True, self._addresses(asked, entry.ips, kind))

    def _host(self, entry: Entry, name: str, kind: int, asked: str) -> Answer:
        hosts = [h for h in self._hosts(entry) if h.name == name] if not entry.external else []
        if not hosts:
            protocols = {f"_{protocol}" for _, protocol, _ in entry.ports}
            return Answer(name in protocols)
        if kind == dns.SRV:
            return self._srv([(h, p) for h in hosts for p in h.ports], entry, asked)
        return Answer(True, self._addresses(asked, dict.fromkeys(h.address for h in hosts), kind))

    def _port(self, entry: Entry, port: str, protocol: str, kind: int, asked: str) -> Answer:
        if entry.headless:
            found = [(h, p) for h in self._hosts(entry) for p in h.ports if p[0].lower() == port and p[1] == protocol]
            if not found:
                return Answer(False)
            return self._srv(found, entry, asked) if kind == dns.SRV else Answer(True)
        ports = tuple(p for p in entry.ports if p[0].lower() == port and p[1] == protocol)
        if not ports:
            return Answer(False)
        return self._service_srv(entry, ports, asked) if kind == dns.SRV else Answer(True)

    def _service_srv(self, entry: Entry, ports: tuple[tuple[str, str, int], ...], asked: str) -> Answer:
        target = self._service_name(entry)
        weight = max(1, 100 // len(ports)) if ports else 0
        records = [Record(asked, dns.SRV, self.ttl, (0, weight, number, target)) for _, _, number in ports]
        both = [*self._addresses(target, entry.ips, dns.A), *self._addresses(target, entry.ips, dns.AAAA)]
        return Answer(True, records, both if records else [])

    def _srv(self, found: list[tuple[Host, tuple[str, str, int]]], entry: Entry, asked: str) -> Answer:
        key = (entry.namespace, entry.name)
        weight = max(1, 100 // len(found)) if found else 0
        answer = Answer(True)
        for host, (_, _, number) in found:
            target = self._host_name(key, host)
            answer.records.append(Record(asked, dns.SRV, self.ttl, (0, weight, number, target)))
            for kind in (dns.A, dns.AAAA):
                answer.additional += self._addresses(target, (host.address,), kind)
        return answer

    def _pod(self, labels: tuple[str, ...], kind: int, asked: str) -> Answer:
        """`1-2-3-4.namespace.pod`: the address is in the name itself."""
        if not labels:
            return Answer(True)
        if not self._is_namespace(labels[-1]) or len(labels) > 2:
            return Answer(False)
        if len(labels) == 1:
            return Answer(True)
        for separator in (".", ":"):
            try:
                address = ipaddress.ip_address(labels[0].replace("-", separator))
            except ValueError:
                continue
            return Answer(True, self._addresses(asked, (str(address),), kind))
        return Answer(False)

    def _addresses(self, name: str, addresses: Iterable[str], kind: int) -> list[Record]:
        wanted = {dns.A: ".", dns.AAAA: ":"}.get(kind)
        return [Record(name, kind, self.ttl, address) for address in addresses if wanted and wanted in address]


def _reversed(name: str) -> str:
    """The address of a reverse name, "" when it is none."""
    labels = name.rstrip(".").split(".")
    try:
        if labels[-2:] == ["in-addr", "arpa"] and len(labels) == 6:
            return str(ipaddress.IPv4Address(".".join(reversed(labels[:4]))))
        if labels[-2:] == ["ip6", "arpa"] and len(labels) == 34:
            digits = "".join(reversed(labels[:32]))
            return str(ipaddress.IPv6Address(int(digits, 16)))
    except ValueError:
        pass
    return ""
