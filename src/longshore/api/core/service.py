"""Service and Endpoints."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api import printing
from longshore.api.core.service_needs import ACCESSIBLE, needs_cluster_ip, needs_health_check_port, needs_node_port
from longshore.api.core.service_validation import load_balancer, validate_service
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import (
    dns1123_label,
    parse_cidr,
    parse_ip,
)


class Service(Strategy):
    """A name and an address for a set of pods."""

    def name_check(self, name: str) -> list[str]:
        return dns1123_label(name)

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        affinity = spec.setdefault("sessionAffinity", "None")
        if affinity == "None":
            spec.pop("sessionAffinityConfig", None)
        elif affinity == "ClientIP":
            config = spec.get("sessionAffinityConfig") or {}
            client = config.get("clientIP") or {}
            if client.get("timeoutSeconds") is None:
                client["timeoutSeconds"] = 10800
            config["clientIP"] = client
            spec["sessionAffinityConfig"] = config
        kind = spec.setdefault("type", "ClusterIP")
        for port in spec.get("ports") or ():
            port.setdefault("protocol", "TCP")
            if port.get("targetPort") in (None, 0, ""):
                port["targetPort"] = port.get("port", 0)
        if kind in ACCESSIBLE and not spec.get("externalTrafficPolicy"):
            spec["externalTrafficPolicy"] = "Cluster"
        if needs_cluster_ip(spec):
            spec.setdefault("internalTrafficPolicy", "Cluster")
        if kind == "LoadBalancer":
            spec.setdefault("allocateLoadBalancerNodePorts", True)
            for entry in ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ():
                if entry.get("ip"):
                    entry.setdefault("ipMode", "VIP")

    def prepare_create(self, obj: Object) -> None:
        spec = obj["spec"]
        obj["status"] = {"loadBalancer": {}}
        if spec.get("clusterIP") and not spec.get("clusterIPs"):
            spec["clusterIPs"] = [spec["clusterIP"]]

    def prepare_update(self, new: Object, old: Object) -> None:
        spec, before = new["spec"], old["spec"]
        _patch_allocated(spec, before)
        _normalize(spec, before)
        _drop_by_type(spec, before)

    def prepare_status(self, new: Object, old: Object) -> None:
        # A load balancer's addresses only stay with a service of that type.
        if new["spec"].get("type") != "LoadBalancer" and old["spec"].get("type") == "LoadBalancer":
            new["status"]["loadBalancer"] = {}

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        validate_service(obj, errors)

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        spec, before = new["spec"], old["spec"]
        if "ExternalName" not in (spec.get("type"), before.get("type")):
            was, now = before.get("clusterIPs") or [], spec.get("clusterIPs") or []
            if was and now and was[0] != now[0]:
                errors.invalid("spec.clusterIPs[0]", now, "may not change once set")
            elif was and not now:
                errors.invalid("spec.clusterIPs[0]", now, "primary clusterIP can not be unset")
            elif len(was) > 1 and len(now) > 1 and was[1] != now[1]:
                errors.invalid("spec.clusterIPs[1]", now, "may not change once set")
            elif len(was) > 1 and len(now) == 1 and spec.get("ipFamilyPolicy") != "SingleStack":
                errors.invalid(
                    "spec.ipFamilyPolicy",
                    spec.get("ipFamilyPolicy"),
                    "must be set to 'SingleStack' when releasing the secondary clusterIP",
                )
        if (
            before.get("type") == "LoadBalancer"
            and spec.get("type") == "LoadBalancer"
            and before.get("loadBalancerClass") != spec.get("loadBalancerClass")
        ):
            errors.invalid("spec.loadBalancerClass", spec.get("loadBalancerClass"), "may not change once set")
        validate_service(new, errors)

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        kind = new["spec"].get("type")
        ingress = (new["status"].get("loadBalancer") or {}).get("ingress") or []
        if (
            ingress
            and kind != "LoadBalancer"
            and ingress != ((old["status"].get("loadBalancer") or {}).get("ingress") or [])
        ):
            errors.forbidden("status.loadBalancer.ingress", 'may only be used when `spec.type` is "LoadBalancer"')
        else:
            load_balancer(errors, ingress, "status.loadBalancer.ingress")

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        spec = obj["spec"]
        found = []
        if "service.kubernetes.io/topology-aware-hints" in (obj["metadata"].get("annotations") or {}):
            found.append(
                "annotation service.kubernetes.io/topology-aware-hints is deprecated,"
                " please use service.kubernetes.io/topology-mode instead"
            )
        headless = spec.get("clusterIPs") == ["None"] or spec.get("clusterIP") == "None"
        if not headless and spec.get("type") != "ExternalName":
            for index, address in enumerate(spec.get("clusterIPs") or ()):
                found.extend(address_warnings(f"spec.clusterIPs[{index}]", address))
        outside = spec.get("externalIPs") or []
        if headless:
            if spec.get("loadBalancerIP"):
                found.append("spec.loadBalancerIP is ignored for headless services")
            if outside:
                found.append("spec.externalIPs is ignored for headless services")
            if spec.get("sessionAffinity") != "None":
                found.append("spec.SessionAffinity is ignored for headless services")
        for index, address in enumerate(outside):
            found.extend(address_warnings(f"spec.externalIPs[{index}]", address))
        if outside and not headless and spec.get("type") != "ExternalName":
            found.append("spec.externalIPs is deprecated and may no longer be implemented in some clusters")
        if spec.get("loadBalancerIP"):
            found.extend(address_warnings("spec.loadBalancerIP", spec["loadBalancerIP"]))
        for index, text in enumerate(spec.get("loadBalancerSourceRanges") or ()):
            found.extend(range_warnings(f"spec.loadBalancerSourceRanges[{index}]", text))
        if spec.get("type") == "ExternalName" and spec.get("externalIPs"):
            found.append('spec.externalIPs is ignored when spec.type is "ExternalName"')
        if spec.get("type") != "ExternalName" and spec.get("externalName"):
            found.append('spec.externalName is ignored when spec.type is not "ExternalName"')
        if spec.get("trafficDistribution") == "PreferClose":
            found.append('spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"')
        return found

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj["spec"]
        ips = spec.get("clusterIPs") or []
        external = _external(obj)
        ports = []
        for port in spec.get("ports") or ():
            text = f"{port.get('port')}/{port.get('protocol', 'TCP')}"
            if port.get("nodePort"):
                text = f"{port['port']}:{port['nodePort']}/{port.get('protocol', 'TCP')}"
            ports.append(text)
        return [
            obj["metadata"]["name"],
            spec.get("type", ""),
            ips[0] if ips else "<none>",
            external,
            ",".join(ports) or "<none>",
            age_of(obj, now),
            printing.labels(spec.get("selector")),
        ]

    def selectable(self, obj: Object) -> dict[str, str]:
        return {"spec.clusterIP": obj["spec"].get("clusterIP", ""), "spec.type": obj["spec"].get("type", "")}


def address_warnings(path: str, text: str) -> list[str]:
    """Warnings about a good address that is written in an unusual way."""
    parsed = parse_ip(text)
    if parsed is None or str(parsed) == text:
        return []
    if parsed.version == 4 or parsed.ipv4_mapped is not None:
        plain = parsed if parsed.version == 4 else parsed.ipv4_mapped
        return [f'{path}: non-standard IP address "{text}" is invalid: use "{plain}"']
    return [f'{path}: IPv6 address "{text}" should be in RFC 5952 canonical format ("{parsed}")']


def range_warnings(path: str, text: str) -> list[str]:
    """Warnings about a good CIDR value that is written in an unusual way."""
    parsed = parse_cidr(text.strip())
    if parsed is None:
        return []
    found = []
    network, address = parsed.network, text.strip().rpartition("/")[0]
    if parsed.ip != network.network_address:
        found.append(
            f'{path}: CIDR value "{text}" is ambiguous in this context'
            f' (should be "{network}" or "{parsed.ip}/{parsed.max_prefixlen}"?)'
        )
    if (parsed.version == 4 and str(parsed.ip) != address) or text != text.strip():
        found.append(f'{path}: non-standard CIDR value "{text}" is invalid: use "{network}"')
    elif not found and str(parsed) != text:
        found.append(f'{path}: IPv6 CIDR value "{text}" should be in RFC 5952 canonical format ("{parsed}")')
    return found


def _external(obj: Object) -> str:
    spec = obj["spec"]
    kind, given = spec.get("type"), spec.get("externalIPs") or []
    if kind == "ExternalName":
        return str(spec.get("externalName", ""))
    if kind == "LoadBalancer":
        listed = [
            i.get("ip") or i.get("hostname", "")
            for i in ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
        ]
        return ",".join([*listed, *given]) or "<pending>"
    return ",".join(given) or "<none>"


def _patch_allocated(spec: Object, before: Object) -> None:
    """An update that leaves allocated values out keeps them."""
    if needs_cluster_ip(before) and needs_cluster_ip(spec):
        if not spec.get("clusterIP"):
            for key in ("clusterIP",):
                if before.get(key):
                    spec[key] = before[key]
        if not spec.get("clusterIPs") and spec.get("clusterIP") == before.get("clusterIP") and before.get("clusterIPs"):
            spec["clusterIPs"] = list(before["clusterIPs"])
        if not spec.get("ipFamilies") and before.get("ipFamilies"):
            spec["ipFamilies"] = list(before["ipFamilies"])
        if spec.get("ipFamilyPolicy") is None and before.get("ipFamilyPolicy") is not None:
            spec["ipFamilyPolicy"] = before["ipFamilyPolicy"]
    if needs_node_port(before) and needs_node_port(spec):
        used = {p.get("nodePort") for p in spec.get("ports") or ()}
        known = {(p.get("protocol"), p.get("port")): p.get("nodePort") for p in before.get("ports") or ()}
        for port in spec.get("ports") or ():
            if not port.get("nodePort"):
                old = known.get((port.get("protocol"), port.get("port")))
                if old and old not in used:
                    port["nodePort"] = old
    if (
        needs_health_check_port(before)
        and needs_health_check_port(spec)
        and not spec.get("healthCheckNodePort")
        and before.get("healthCheckNodePort")
    ):
        spec["healthCheckNodePort"] = before["healthCheckNodePort"]


def _normalize(spec: Object, before: Object) -> None:
    """clusterIP and the first of clusterIPs are one value that clients may change in either place."""
    same_list = list(spec.get("clusterIPs") or ()) == list(before.get("clusterIPs") or ())
    if spec.get("clusterIP", "") != before.get("clusterIP", ""):
        if same_list:
            if spec.get("clusterIP"):
                spec["clusterIPs"] = (
                    [spec["clusterIP"], *(before.get("clusterIPs") or [])[1:]]
                    if spec["clusterIP"] != "None"
                    else ["None"]
                )
            else:
                spec.pop("clusterIPs", None)
    elif not same_list and not spec.get("clusterIPs"):
        spec.pop("clusterIP", None)


def _drop_by_type(spec: Object, before: Object) -> None:
    """What belongs to the old type goes with it, unless the update set it anew."""
    if needs_cluster_ip(before) and not needs_cluster_ip(spec):
        if spec.get("clusterIPs") == before.get("clusterIPs"):
            spec.pop("clusterIP", None)
            spec.pop("clusterIPs", None)
        for key in ("ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"):
            if spec.get(key) == before.get(key):
                spec.pop(key, None)
    if needs_node_port(before) and not needs_node_port(spec):
        was = {(p.get("protocol"), p.get("port")): p.get("nodePort") for p in before.get("ports") or ()}
        ports = spec.get("ports") or []
        if all(
            p.get("nodePort") == was.get((p.get("protocol"), p.get("port"))) or not p.get("nodePort") for p in ports
        ):
            for port in ports:
                port.pop("nodePort", None)
    if (
        needs_health_check_port(before)
        and not needs_health_check_port(spec)
        and spec.get("healthCheckNodePort") == before.get("healthCheckNodePort")
    ):
        spec.pop("healthCheckNodePort", None)
    if before.get("type") == "LoadBalancer" and spec.get("type") != "LoadBalancer":
        for key in ("allocateLoadBalancerNodePorts", "loadBalancerClass"):
            if spec.get(key) == before.get(key):
                spec.pop(key, None)
    if (
        before.get("type") in ACCESSIBLE
        and spec.get("type") not in ACCESSIBLE
        and not spec.get("externalIPs")
        and spec.get("externalTrafficPolicy") == before.get("externalTrafficPolicy")
    ):
        spec.pop("externalTrafficPolicy", None)
