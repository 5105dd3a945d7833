"""Endpoints."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.core.service import address_warnings
from longshore.api.core.service_validation import special_ip
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_label, dns1123_subdomain, ip, port_number, qualified_name


class Endpoints(Strategy):
    """The addresses behind a service, in the old form."""

    def default(self, obj: Object) -> None:
        for subset in obj.get("subsets") or ():
            for port in subset.get("ports") or ():
                port.setdefault("protocol", "TCP")

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        for index, subset in enumerate(obj.get("subsets") or ()):
            path = f"subsets[{index}]"
            if not subset.get("addresses") and not subset.get("notReadyAddresses"):
                errors.required(path, "must specify `addresses` or `notReadyAddresses`")
            for kind in ("addresses", "notReadyAddresses"):
                for at, address in enumerate(subset.get(kind) or ()):
                    here = f"{path}.{kind}[{at}]"
                    text = address.get("ip", "")
                    for message in ip(text):
                        errors.invalid(f"{here}.ip", text, message)
                    if address.get("hostname"):
                        for message in dns1123_label(address["hostname"]):
                            errors.invalid(f"{here}.hostname", address["hostname"], message)
                    if address.get("nodeName") is not None:
                        for message in dns1123_subdomain(address["nodeName"]):
                            errors.invalid(f"{here}.nodeName", address["nodeName"], message)
                    special_ip(errors, text, f"{here}.ip")
            ports = subset.get("ports") or []
            for at, port in enumerate(ports):
                self._port(errors, port, f"{path}.ports[{at}]", len(ports) > 1)

    @staticmethod
    def _port(errors: Errors, port: Object, path: str, named: bool) -> None:
        name, protocol = port.get("name", ""), port.get("protocol", "")
        if named and not name:
            errors.required(f"{path}.name")
        elif name:
            for message in dns1123_label(name):
                errors.invalid(f"{path}.name", name, message)
        for message in port_number(port.get("port", 0)):
            errors.invalid(f"{path}.port", port.get("port", 0), message)
        if not protocol:
            errors.required(f"{path}.protocol")
        elif protocol not in ("SCTP", "TCP", "UDP"):
            errors.unsupported(f"{path}.protocol", protocol, ("SCTP", "TCP", "UDP"))
        if port.get("appProtocol") is not None:
            for message in qualified_name(port["appProtocol"]):
                errors.invalid(f"{path}.appProtocol", port["appProtocol"], message)

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        if (obj["metadata"].get("labels") or {}).get("endpoints.kubernetes.io/managed-by") == "endpoint-controller":
            return []
        return [
            text
            for index, subset in enumerate(obj.get("subsets") or ())
            for kind in ("addresses", "notReadyAddresses")
            for at, address in enumerate(subset.get(kind) or ())
            for text in address_warnings(f"subsets[{index}].{kind}[{at}].ip", address.get("ip", ""))
        ]

    def row(self, obj: Object, now: datetime) -> list[Any]:
        shown: list[str] = []
        more = 0
        for subset in obj.get("subsets") or ():
            ports = subset.get("ports") or []
            for port in ports or [None]:
                for address in subset.get("addresses") or ():
                    if len(shown) == 3:
                        more += 1
                        continue
                    text = address.get("ip", "")
                    if port is not None:
                        text = f"[{text}]:{port.get('port')}" if ":" in text else f"{text}:{port.get('port')}"
                    shown.append(text)
        return [
            obj["metadata"]["name"],
            ",".join(shown) + (f" + {more} more..." if more else "") or "<none>",
            age_of(obj, now),
        ]
