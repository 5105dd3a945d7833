"""discovery.k8s.io: EndpointSlice."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.core.service import address_warnings
from longshore.api.core.service_validation import special_ip
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_label, dns1123_subdomain, ip, ip_family, label_value, qualified_name

# Their addresses are right already.
_CONTROLLERS = ("endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io")


class EndpointSlice(Strategy):
    """A part of the addresses behind a service."""

    generation = True

    def default(self, obj: Object) -> None:
        for port in obj.get("ports") or ():
            if port.get("name") is None:
                port["name"] = ""
            if port.get("protocol") is None:
                port["protocol"] = "TCP"

    def prepare_create(self, obj: Object) -> None:
        # The version that is asked has no place for it any more, though its type has.
        for endpoint in obj.get("endpoints") or ():
            endpoint.pop("deprecatedTopology", None)

    def prepare_update(self, new: Object, old: Object) -> None:
        self.prepare_create(new)

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        kind = obj.get("addressType", "")
        if not kind:
            errors.required("addressType")
        elif kind not in ("FQDN", "IPv4", "IPv6"):
            errors.unsupported("addressType", kind, ("FQDN", "IPv4", "IPv6"))
        self._ports(errors, obj.get("ports") or [])
        endpoints = obj.get("endpoints") or []
        if len(endpoints) > 1000:
            errors.too_many("endpoints", len(endpoints), 1000)
        else:
            for index, endpoint in enumerate(endpoints):
                self._endpoint(errors, endpoint, kind, f"endpoints[{index}]")

    @staticmethod
    def _endpoint(errors: Errors, endpoint: Object, kind: str, path: str) -> None:
        addresses = endpoint.get("addresses") or []
        if not addresses:
            errors.required(f"{path}.addresses", "must contain at least 1 address")
        elif len(addresses) > 100:
            errors.too_many(f"{path}.addresses", len(addresses), 100)
        for index, text in enumerate(addresses):
            here = f"{path}.addresses[{index}]"
            if kind in ("IPv4", "IPv6"):
                problems = ip(text)
                for message in problems:
                    errors.invalid(here, text, message)
                if not problems:
                    if ip_family(text) != kind:
                        errors.invalid(f"{path}.addresses", text, f"must be an {kind} address")
                    special_ip(errors, text, here)
            elif kind == "FQDN":
                for message in dns1123_subdomain(text):
                    errors.invalid(here, text, message)
        name = endpoint.get("nodeName")
        if name is not None:
            for message in dns1123_subdomain(name):
                errors.invalid(f"{path}.nodeName", name, message)
        hostname = endpoint.get("hostname")
        if hostname is not None:
            for message in dns1123_label(hostname):
                errors.invalid(f"{path}.hostname", hostname, message)
        hints = endpoint.get("hints") or {}
        # Upstream leaves off at the first list that is too long.
        for key, check in (("forZones", label_value), ("forNodes", dns1123_subdomain)):
            listed = hints.get(key) or []
            if len(listed) > 8:
                errors.too_many(f"{path}.hints.{key}", len(listed), 8)
                return
            seen: set[str] = set()
            for index, hint in enumerate(listed):
                name, here = hint.get("name", ""), f"{path}.hints.{key}[{index}].name"
                if name in seen:
                    errors.duplicate(here, name)
                seen.add(name)
                for message in check(name):
                    errors.invalid(here, name, message)

    @staticmethod
    def _ports(errors: Errors, ports: list[Object]) -> None:
        if len(ports) > 20000:
            errors.too_many("ports", len(ports), 20000)
            return
        names: set[str] = set()
        for index, port in enumerate(ports):
            here = f"ports[{index}]"
            name = port.get("name") or ""
            if name:
                for message in dns1123_label(name):
                    errors.invalid(f"{here}.name", name, message)
            if name in names:
                errors.duplicate(f"{here}.name", name)
            names.add(name)
            protocol = port.get("protocol")
            if protocol is None:
                errors.required(f"{here}.protocol")
            elif protocol not in ("SCTP", "TCP", "UDP"):
                errors.unsupported(f"{here}.protocol", protocol, ("SCTP", "TCP", "UDP"))
            application = port.get("appProtocol")
            if application is not None:
                for message in qualified_name(application):
                    errors.invalid(f"{here}.appProtocol", application, message)

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors)
        if new.get("addressType") != old.get("addressType"):
            errors.invalid("addressType", new.get("addressType", ""), metadata.IMMUTABLE)

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        found = []
        if old is None and obj.get("addressType") == "FQDN":
            found.append("spec.addressType: FQDN endpoints are deprecated")
        if (obj["metadata"].get("labels") or {}).get("endpointslice.kubernetes.io/managed-by") in _CONTROLLERS:
            return found
        for index, endpoint in enumerate(obj.get("endpoints") or ()):
            for at, address in enumerate(endpoint.get("addresses") or ()):
                found += address_warnings(f"endpoints[{index}].addresses[{at}]", address)
        return found

    def row(self, obj: Object, now: datetime) -> list[Any]:
        ports = obj.get("ports") or []
        shown: list[str] = []
        for port in ports[:3]:
            if port.get("port") is not None:
                shown.append(str(port["port"]))
            elif port.get("name"):
                shown.append(port["name"])
            else:
                shown.append("")
        text = ",".join(shown) + (f" + {len(ports) - 3} more..." if len(ports) > 3 else "") if ports else "<unset>"
        addresses = [a for e in obj.get("endpoints") or () for a in e.get("addresses") or ()]
        listed = (
            ",".join(addresses[:3]) + (f" + {len(addresses) - 3} more..." if len(addresses) > 3 else "")
            if addresses
            else "<unset>"
        )
        return [obj["metadata"]["name"], obj.get("addressType", ""), text, listed, age_of(obj, now)]


STRATEGIES = {"EndpointSlice": EndpointSlice}
