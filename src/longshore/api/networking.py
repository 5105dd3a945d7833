"""networking.k8s.io: Ingress, IngressClass, NetworkPolicy, IPAddress, ServiceCIDR."""

from __future__ import annotations

import ipaddress
from datetime import datetime
from typing import Any

from longshore.api import printing
from longshore.api.core.container_validation import port_or_name
from longshore.api.core.service_validation import load_balancer
from longshore.api.gotypes import dump
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import (
    cidr,
    dns1123_label,
    dns1123_subdomain,
    domain_prefixed_path,
    parse_cidr,
    parse_ip,
    path_segment,
    port_name,
    port_number,
    wildcard_subdomain,
)
from longshore.api.validation.selectors import label_selector

_NET = "io.k8s.api.networking.v1."
_CLASS_ANNOTATION = "kubernetes.io/ingress.class"
_PATH_TYPES = ("Exact", "ImplementationSpecific", "Prefix")


class Ingress(Strategy):
    """HTTP from outside to services."""

    generation = True

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        if old is None:
            given = (obj["metadata"].get("annotations") or {}).get(_CLASS_ANNOTATION)
            if given is not None and spec.get("ingressClassName") is not None and given != spec["ingressClassName"]:
                errors.invalid(
                    f"annotations.{_CLASS_ANNOTATION}", given, "must match `ingressClassName` when both are specified"
                )
        if not spec.get("rules") and spec.get("defaultBackend") is None:
            errors.invalid("spec", None, "either `defaultBackend` or `rules` must be specified")
        if spec.get("defaultBackend") is not None:
            _backend(errors, spec["defaultBackend"], "spec.defaultBackend")
        for index, rule in enumerate(spec.get("rules") or ()):
            self._rule(errors, rule, f"spec.rules[{index}]")
        for index, tls in enumerate(spec.get("tls") or ()):
            for at, host in enumerate(tls.get("hosts") or ()):
                here = f"spec.tls[{index}].hosts[{at}]"
                for message in wildcard_subdomain(host) if "*" in host else dns1123_subdomain(host):
                    errors.invalid(here, host, message)
            name = tls.get("secretName", "")
            for message in dns1123_subdomain(name) if name else ():
                errors.invalid(f"spec.tls[{index}].secretName", name, message)
        name = spec.get("ingressClassName")
        if name is not None:
            for message in dns1123_subdomain(name):
                errors.invalid("spec.ingressClassName", name, message)

    @staticmethod
    def _rule(errors: Errors, rule: Object, path: str) -> None:
        host = rule.get("host", "")
        if host:
            if parse_ip(host) is not None:
                errors.invalid(f"{path}.host", host, "must be a DNS name, not an IP address")
            for message in (
                wildcard_subdomain(host)
                if "*" in host
                else (() if parse_ip(host) is not None else dns1123_subdomain(host))
            ):
                errors.invalid(f"{path}.host", host, message)
        http = rule.get("http")
        if http is None:
            return
        if not http.get("paths"):
            errors.required(f"{path}.http.paths")
        for index, entry in enumerate(http.get("paths") or ()):
            _path(errors, entry, f"{path}.http.paths[{index}]")

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        ingress = (new["status"].get("loadBalancer") or {}).get("ingress") or []
        load_balancer(errors, ingress, "status.loadBalancer.ingress", modes=False)

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        if _CLASS_ANNOTATION in (obj["metadata"].get("annotations") or {}):
            return [f"annotation \"{_CLASS_ANNOTATION}\" is deprecated, please use 'spec.ingressClassName' instead"]
        return []

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj["spec"]
        name = spec.get("ingressClassName") or "<none>"
        hosts: list[str] = []
        rules = spec.get("rules") or []
        for rule in rules[:3]:
            hosts.append(rule.get("host") or "*")
        listed = ",".join(hosts) + (f" + {len(rules) - 3} more..." if len(rules) > 3 else "") if rules else "*"
        addresses = ",".join(
            i.get("ip") or i.get("hostname", "")
            for i in ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
        )
        return [
            obj["metadata"]["name"],
            name,
            listed,
            addresses,
            "80, 443" if spec.get("tls") else "80",
            age_of(obj, now),
        ]


def _path(errors: Errors, entry: Object, path: str) -> None:
    kind, text = entry.get("pathType"), entry.get("path", "")
    if kind is None:
        errors.required(f"{path}.pathType", "pathType must be specified")
        return
    if kind in ("Exact", "Prefix"):
        if not text.startswith("/"):
            errors.invalid(f"{path}.path", text, "must be an absolute path")
        for part in ("//", "/./", "/../", "%2f", "%2F"):
            if part in text:
                errors.invalid(f"{path}.path", text, f"must not contain '{part}'")
        for part in ("/..", "/."):
            if text.endswith(part):
                errors.invalid(f"{path}.path", text, f"cannot end with '{part}'")
    elif kind == "ImplementationSpecific":
        if text and not text.startswith("/"):
            errors.invalid(f"{path}.path", text, "must be an absolute path")
    else:
        errors.unsupported(f"{path}.pathType", kind, _PATH_TYPES)
    _backend(errors, entry.get("backend") or {}, f"{path}.backend")


def _backend(errors: Errors, backend: Object, path: str) -> None:
    resource, service = backend.get("resource"), backend.get("service")
    if resource is not None and service is not None:
        errors.invalid(path, "", "cannot set both resource and service backends")
    elif resource is not None:
        if resource.get("apiGroup") is not None:
            for message in dns1123_subdomain(resource["apiGroup"]):
                errors.invalid(f"{path}.resource.apiGroup", resource["apiGroup"], message)
        for key in ("kind", "name"):
            text = resource.get(key, "")
            if not text:
                errors.required(f"{path}.resource.{key}")
            for message in path_segment(text):
                errors.invalid(f"{path}.resource.{key}", text, message)
    elif service is not None:
        name, port = service.get("name", ""), service.get("port") or {}
        if not name:
            errors.required(f"{path}.service.name")
        else:
            for message in dns1123_label(name):
                errors.invalid(f"{path}.service.name", name, message)
        if port.get("name") and port.get("number"):
            errors.invalid(path, "", "cannot set both port name & port number")
        elif port.get("name"):
            for message in port_name(port["name"]):
                errors.invalid(f"{path}.service.port.name", port["name"], message)
        elif port.get("number"):
            for message in port_number(port["number"]):
                errors.invalid(f"{path}.service.port.number", port["number"], message)
        else:
            errors.required(path, "port name or number is required")
    else:
        errors.invalid(path, "", "resource or service backend is required")


class IngressClass(Strategy):
    """Who serves an ingress."""

    generation = True

    def default(self, obj: Object) -> None:
        parameters = obj["spec"].get("parameters")
        if parameters is not None and parameters.get("scope") is None:
            parameters["scope"] = "Cluster"

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        controller = spec.get("controller", "")
        if len(controller) > 250:
            errors.too_long("spec.controller", 250)
        if not controller:
            errors.required("spec.controller")
        for part, message in domain_prefixed_path(controller) if controller else ():
            errors.invalid("spec.controller", part, message)
        parameters = spec.get("parameters")
        if parameters is None:
            return
        path = "spec.parameters"
        if parameters.get("apiGroup") is not None:
            for message in dns1123_subdomain(parameters["apiGroup"]):
                errors.invalid(f"{path}.apiGroup", parameters["apiGroup"], message)
        for key in ("kind", "name"):
            text = parameters.get(key, "")
            if not text:
                errors.required(f"{path}.{key}")
            else:
                for message in path_segment(text):
                    errors.invalid(f"{path}.{key}", text, message)
        scope, namespace = parameters.get("scope"), parameters.get("namespace")
        if scope is None:
            errors.required(f"{path}.scope")
        elif scope not in ("Cluster", "Namespace"):
            errors.unsupported(f"{path}.scope", scope, ("Cluster", "Namespace"))
        elif scope == "Namespace":
            if namespace is None:
                errors.required(f"{path}.namespace", "`parameters.scope` is set to 'Namespace'")
            else:
                for message in dns1123_label(namespace):
                    errors.invalid(f"{path}.namespace", namespace, message)
        elif namespace is not None:
            errors.forbidden(f"{path}.namespace", "`parameters.scope` is set to 'Cluster'")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        if new["spec"].get("controller") != old["spec"].get("controller"):
            errors.invalid("spec.controller", new["spec"].get("controller", ""), metadata.IMMUTABLE)
        self.validate(new, errors)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        parameters = obj["spec"].get("parameters")
        shown = "<none>"
        if parameters is not None:
            group = f".{parameters['apiGroup']}" if parameters.get("apiGroup") else ""
            shown = f"{parameters.get('kind', '')}{group}/{parameters.get('name', '')}"
        return [obj["metadata"]["name"], obj["spec"].get("controller", ""), shown, age_of(obj, now)]


class NetworkPolicy(Strategy):
    """Who may talk to pods."""

    generation = True

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        for rules in (spec.get("ingress") or (), spec.get("egress") or ()):
            for rule in rules:
                for port in rule.get("ports") or ():
                    port.setdefault("protocol", "TCP")
        if not spec.get("policyTypes"):
            spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        label_selector(errors, spec.get("podSelector"), "spec.podSelector")
        for kind, peers in (("ingress", "from"), ("egress", "to")):
            for index, rule in enumerate(spec.get(kind) or ()):
                path = f"spec.{kind}[{index}]"
                for at, port in enumerate(rule.get("ports") or ()):
                    self._port(errors, port, f"{path}.ports[{at}]")
                for at, peer in enumerate(rule.get(peers) or ()):
                    self._peer(errors, peer, f"{path}.{peers}[{at}]")
        types = spec.get("policyTypes") or []
        if len(types) > 2:
            errors.invalid("spec.policyTypes", types, "may not specify more than two policyTypes")
            return
        for index, text in enumerate(types):
            if text not in ("Ingress", "Egress"):
                errors.unsupported(f"spec.policyTypes[{index}]", text, ("Ingress", "Egress"))

    @staticmethod
    def _port(errors: Errors, port: Object, path: str) -> None:
        protocol, number, end = port.get("protocol"), port.get("port"), port.get("endPort")
        if protocol is not None and protocol not in ("TCP", "UDP", "SCTP"):
            errors.unsupported(f"{path}.protocol", protocol, ("TCP", "UDP", "SCTP"))
        if number is not None:
            if isinstance(number, int):
                for message in port_number(number):
                    errors.invalid(f"{path}.port", number, message)
                if end is not None:
                    if end < number:
                        errors.invalid(f"{path}.endPort", number, "must be greater than or equal to `port`")
                    for message in port_number(end):
                        errors.invalid(f"{path}.endPort", end, message)
            else:
                if end is not None:
                    errors.invalid(f"{path}.endPort", end, "may not be specified when `port` is non-numeric")
                port_or_name(errors, number, f"{path}.port")
        elif end is not None:
            errors.invalid(f"{path}.endPort", end, "may not be specified when `port` is not specified")

    @staticmethod
    def _peer(errors: Errors, peer: Object, path: str) -> None:
        count = 0
        for key in ("podSelector", "namespaceSelector"):
            if peer.get(key) is not None:
                count += 1
                label_selector(errors, peer[key], f"{path}.{key}")
        block = peer.get("ipBlock")
        if block is not None:
            here = f"{path}.ipBlock"
            problems = cidr(block.get("cidr", ""))
            if not block.get("cidr"):
                errors.required(f"{here}.cidr")
            else:
                for message in problems:
                    errors.invalid(f"{here}.cidr", block["cidr"], message)
            if not problems:
                outer = ipaddress.ip_network(block["cidr"], strict=False)
                for index, text in enumerate(block.get("except") or ()):
                    place = f"{here}.except[{index}]"
                    wrong = cidr(text)
                    for message in wrong:
                        errors.invalid(place, text, message)
                    if not wrong:
                        inner: Any = ipaddress.ip_network(text, strict=False)
                        if (
                            inner.version != outer.version
                            or not inner.subnet_of(outer)
                            or inner.prefixlen <= outer.prefixlen
                        ):
                            errors.invalid(place, text, "must be a strict subset of `cidr`")
            if count:
                errors.forbidden(path, "may not specify both ipBlock and another peer")
            count += 1
        if not count:
            errors.required(path, "must specify a peer")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], printing.selector(obj["spec"].get("podSelector")), age_of(obj, now)]


class IPAddress(Strategy):
    """An address of a service range in use."""

    def name_check(self, name: str) -> list[str]:
        address = parse_ip(name)
        if address is None:
            return ["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]
        return [] if str(address) == name else [f'must be in canonical form ("{address}")']

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        parent = obj["spec"].get("parentRef")
        if parent is None:
            errors.required("spec.parentRef")
            return
        for key, check in (
            ("group", dns1123_subdomain),
            ("resource", path_segment),
            ("namespace", path_segment),
            ("name", path_segment),
        ):
            text = parent.get(key, "")
            if not text:
                if key in ("resource", "name"):
                    errors.required(f"spec.parentRef.{key}")
                continue
            for message in check(text):
                errors.invalid(f"spec.parentRef.{key}", text, message)

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)
        if new["spec"].get("parentRef") != old["spec"].get("parentRef"):
            errors.invalid(
                "spec.parentRef", dump(_NET + "ParentReference", new["spec"].get("parentRef")), metadata.IMMUTABLE
            )

    def row(self, obj: Object, now: datetime) -> list[Any]:
        parent = obj["spec"].get("parentRef")
        shown = "<none>"
        if parent is not None:
            parts = [
                parent.get("resource", "") + (f".{parent['group']}" if parent.get("group") else ""),
                parent.get("namespace", ""),
                parent.get("name", ""),
            ]
            shown = "/".join(p for p in parts if p)
        return [obj["metadata"]["name"], shown]

    def selectable(self, obj: Object) -> dict[str, str]:
        parent = obj["spec"].get("parentRef") or {}
        return {f"spec.parentRef.{key}": parent.get(key, "") for key in ("group", "resource", "namespace", "name")}


class ServiceCIDR(Strategy):
    """A range of service addresses."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        ranges = obj["spec"].get("cidrs") or []
        if not ranges:
            errors.required("spec.cidrs", "at least one CIDR required")
            return
        if len(ranges) > 2:
            errors.invalid("spec.cidrs", ranges, "may only hold up to 2 values")
        families = []
        for index, text in enumerate(ranges):
            problems = cidr(text)
            for message in problems:
                errors.invalid(f"spec.cidrs[{index}]", text, message)
            parsed = parse_cidr(text)
            if parsed is not None:
                families.append(parsed.version)
                canonical = str(parsed.network)
                if canonical != text:
                    errors.invalid(f"spec.cidrs[{index}]", text, f'must be in canonical form ("{canonical}")')
        if len(ranges) == 2 and len(families) == 2 and len(set(families)) != 2:
            errors.invalid(
                "spec.cidrs",
                ranges,
                "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
            )

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        now, was = new["spec"].get("cidrs") or [], old["spec"].get("cidrs") or []
        if len(now) != len(was) and (len(was), len(now)) != (1, 2):
            errors.invalid("spec.cidrs", new["spec"].get("cidrs"), metadata.IMMUTABLE)
            return
        for index, text in enumerate(was):
            if now[index] != text:
                errors.invalid(f"spec.cidrs[{index}]", now[index], metadata.IMMUTABLE)
        if len(now) > len(was):
            self.validate(new, errors)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], ",".join(obj["spec"].get("cidrs") or ()), age_of(obj, now)]


STRATEGIES = {
    "IPAddress": IPAddress,
    "Ingress": Ingress,
    "IngressClass": IngressClass,
    "NetworkPolicy": NetworkPolicy,
    "ServiceCIDR": ServiceCIDR,
}
