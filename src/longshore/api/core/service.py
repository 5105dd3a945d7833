"""Service and Endpoints."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api import printing
from longshore.api.core.container_validation import port_or_name
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import (
    cidr,
    dns1123_label,
    dns1123_subdomain,
    ip,
    ip_family,
    parse_cidr,
    parse_ip,
    port_number,
    qualified_name,
)

_ACCESSIBLE = ("NodePort", "LoadBalancer")


def needs_cluster_ip(spec: Object) -> bool:
    """Services of every type but ExternalName have an address."""
    return spec.get("type") in ("ClusterIP", "NodePort", "LoadBalancer")


def needs_node_port(spec: Object) -> bool:
    """Whether the type opens ports on nodes."""
    if spec.get("type") == "NodePort":
        return True
    return spec.get("type") == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False


def needs_health_check_port(spec: Object) -> bool:
    """Whether a port for health checks belongs to the service."""
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def is_headless(spec: Object) -> bool:
    """A service without an address of its own."""
    return list(spec.get("clusterIPs") or ()) == ["None"]


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
        if kind in _ACCESSIBLE and not spec.get("externalTrafficPolicy"):
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
        before.get("type") in _ACCESSIBLE
        and spec.get("type") not in _ACCESSIBLE
        and not spec.get("externalIPs")
        and spec.get("externalTrafficPolicy") == before.get("externalTrafficPolicy")
    ):
        spec.pop("externalTrafficPolicy", None)


def special_ip(errors: Errors, text: str, path: str) -> None:
    """Addresses that nothing can be reached at from elsewhere."""
    address = parse_ip(text)
    if address is None:
        errors.invalid(path, text, "must be a valid IP address")
        return
    if address.is_unspecified:
        errors.invalid(path, text, f"may not be unspecified ({text})")
    if address.is_loopback:
        errors.invalid(path, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
    if address.is_link_local:
        errors.invalid(path, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    if text.startswith("224.0.0.") or (
        address.version == 6 and address.is_multicast and text.lower().startswith("ff02:")
    ):
        errors.invalid(path, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")


def _port(errors: Errors, port: Object, path: str, named: bool, names: set[str]) -> None:
    name = port.get("name", "")
    if named and not name:
        errors.required(f"{path}.name")
    elif name:
        for message in dns1123_label(name):
            errors.invalid(f"{path}.name", name, message)
        if name in names:
            errors.duplicate(f"{path}.name", name)
        names.add(name)
    for message in port_number(port.get("port", 0)):
        errors.invalid(f"{path}.port", port.get("port", 0), message)
    protocol = port.get("protocol", "")
    if not protocol:
        errors.required(f"{path}.protocol")
    elif protocol not in ("SCTP", "TCP", "UDP"):
        errors.unsupported(f"{path}.protocol", protocol, ("SCTP", "TCP", "UDP"))
    port_or_name(errors, port.get("targetPort", 0), f"{path}.targetPort")
    protocol = port.get("appProtocol")
    if protocol is not None:
        for message in qualified_name(protocol):
            errors.invalid(f"{path}.appProtocol", protocol, message)


def validate_service(obj: Object, errors: Errors) -> None:
    """A service, metadata excepted."""
    spec = obj["spec"]
    kind, ports, ips = spec.get("type", ""), spec.get("ports") or [], spec.get("clusterIPs") or []
    headless = is_headless(spec)
    if not ports and not headless and kind != "ExternalName":
        errors.required("spec.ports")
    if kind == "LoadBalancer":
        for index, port in enumerate(ports):
            if port.get("port") == 10250:
                errors.invalid(
                    f"spec.ports[{index}]", 10250, "may not expose port 10250 externally since it is used by kubelet"
                )
    if kind in _ACCESSIBLE and headless:
        errors.invalid("spec.clusterIPs[0]", "None", f"may not be set to 'None' for {kind} services")
    if kind == "ExternalName":
        for key in ("clusterIPs", "ipFamilies"):
            if spec.get(key):
                errors.forbidden(f"spec.{key}", "may not be set for ExternalName services")
        if spec.get("ipFamilyPolicy") is not None:
            errors.forbidden("spec.ipFamilyPolicy", "may not be set for ExternalName services")
        name = spec.get("externalName", "").removesuffix(".")
        if name:
            for message in dns1123_subdomain(name):
                errors.invalid("spec.externalName", name, message)
        else:
            errors.required("spec.externalName")
    names: set[str] = set()
    for index, port in enumerate(ports):
        _port(errors, port, f"spec.ports[{index}]", len(ports) > 1, names)
    if spec.get("selector"):
        metadata.labels(errors, spec["selector"], "spec.selector")
    _affinity(errors, spec)
    _cluster_ips(errors, spec, ips)
    for index, address in enumerate(spec.get("externalIPs") or ()):
        problems = ip(address)
        for message in problems:
            errors.invalid(f"spec.externalIPs[{index}]", address, message)
        if not problems:
            special_ip(errors, address, f"spec.externalIPs[{index}]")
    if not kind:
        errors.required("spec.type")
    elif kind not in ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort"):
        errors.unsupported("spec.type", kind, ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort"))
    if kind == "ClusterIP":
        for index, port in enumerate(ports):
            if port.get("nodePort"):
                errors.forbidden(f"spec.ports[{index}].nodePort", "may not be used when `type` is 'ClusterIP'")
    _duplicates(errors, ports)
    _source_ranges(errors, spec, obj["metadata"].get("annotations") or {})
    _load_balancer_fields(errors, spec, kind)
    _policies(errors, spec, kind)


def _affinity(errors: Errors, spec: Object) -> None:
    affinity, config = spec.get("sessionAffinity", ""), spec.get("sessionAffinityConfig")
    if not affinity:
        errors.required("spec.sessionAffinity")
    elif affinity not in ("ClientIP", "None"):
        errors.unsupported("spec.sessionAffinity", affinity, ("ClientIP", "None"))
    if affinity == "ClientIP":
        if config is None:
            errors.required("spec.sessionAffinityConfig", "when session affinity type is ClientIP")
        elif config.get("clientIP") is None:
            errors.required("spec.sessionAffinityConfig.clientIP", "when session affinity type is ClientIP")
        else:
            seconds = config["clientIP"].get("timeoutSeconds")
            if seconds is None:
                errors.required(
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds", "when session affinity type is ClientIP"
                )
            elif not 0 < seconds <= 86400:
                errors.invalid(
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                    seconds,
                    "must be greater than 0 and less than 86400",
                )
    elif affinity == "None" and config is not None:
        errors.forbidden("spec.sessionAffinityConfig", "must not be set when session affinity is None")


def _cluster_ips(errors: Errors, spec: Object, ips: list[str]) -> None:
    if spec.get("type") == "ExternalName":
        return
    bad = False
    if spec.get("clusterIP") and not ips:
        errors.required("spec.clusterIPs")
    elif ips and spec.get("clusterIP", "") != ips[0]:
        errors.invalid("spec.clusterIPs", ips, "first value must match `clusterIP`")
    families = spec.get("ipFamilies") or []
    for index, family in enumerate(families):
        if family not in ("IPv4", "IPv6"):
            errors.unsupported(f"spec.ipFamilies[{index}]", family, ("IPv4", "IPv6"))
        elif family in families[:index]:
            errors.duplicate(f"spec.ipFamilies[{index}]", family)
    policy = spec.get("ipFamilyPolicy")
    if policy is not None and policy not in ("SingleStack", "PreferDualStack", "RequireDualStack"):
        errors.unsupported("spec.ipFamilyPolicy", policy, ("SingleStack", "PreferDualStack", "RequireDualStack"))
    for index, address in enumerate(ips):
        if index == 0 and address == "None":
            if len(ips) > 1:
                bad = True
                errors.invalid("spec.clusterIPs[0]", ips, "'None' must be the first and only value")
            continue
        problems = ip(address)
        bad = bad or bool(problems)
        for message in problems:
            errors.invalid(f"spec.clusterIPs[{index}]", address, message)
    if len(ips) > 2:
        errors.invalid("spec.clusterIPs", ips, "may only hold up to 2 values")
    if bad:
        return
    if len(ips) > 1 and ips[0] != "None" and len({ip_family(a) for a in ips}) != 2:
        errors.invalid("spec.clusterIPs", ips, "may specify no more than one IP for each IP family")
    if is_headless(spec):
        return
    for index, address in enumerate(ips):
        if index >= len(families):
            break
        if families[index] in ("IPv4", "IPv6") and ip_family(address) != families[index]:
            article = "an" if families[index].startswith("I") else "a"
            errors.invalid(
                f"spec.clusterIPs[{index}]",
                address,
                f"expected {article} {families[index]} value as indicated by `ipFamilies[{index}]`",
            )


def _duplicates(errors: Errors, ports: list[Object]) -> None:
    seen: set[tuple[str, int]] = set()
    for index, port in enumerate(ports):
        if not port.get("nodePort"):
            continue
        key = (port.get("protocol", ""), port["nodePort"])
        if key in seen:
            errors.duplicate(f"spec.ports[{index}].nodePort", port["nodePort"])
        seen.add(key)
    seen = set()
    for index, port in enumerate(ports):
        key = (port.get("protocol", ""), port.get("port", 0))
        if key in seen:
            errors.duplicate(
                f"spec.ports[{index}]",
                {"Name": "", "Protocol": key[0], "AppProtocol": None, "Port": key[1], "TargetPort": 0, "NodePort": 0},
            )
        seen.add(key)


def _source_ranges(errors: Errors, spec: Object, annotations: dict[str, str]) -> None:
    ranges = spec.get("loadBalancerSourceRanges") or []
    if ranges:
        if spec.get("type") != "LoadBalancer":
            errors.forbidden("spec.LoadBalancerSourceRanges", "may only be used when `type` is 'LoadBalancer'")
        for index, text in enumerate(ranges):
            for message in cidr(text.strip()):
                errors.invalid(f"spec.LoadBalancerSourceRanges[{index}]", text, message)
    elif "service.beta.kubernetes.io/load-balancer-source-ranges" in annotations:
        key = "service.beta.kubernetes.io/load-balancer-source-ranges"
        if spec.get("type") != "LoadBalancer":
            errors.forbidden(f"metadata.annotations[{key}]", "may only be used when `type` is 'LoadBalancer'")
        text = annotations[key].strip()
        if text and any(cidr(part.strip()) for part in text.split(",")):
            errors.invalid(
                f"metadata.annotations[{key}]",
                text,
                "must be a comma separated list of CIDRs e.g. 192.168.0.0/16,10.0.0.0/8",
            )


def _load_balancer_fields(errors: Errors, spec: Object, kind: str) -> None:
    allocate = spec.get("allocateLoadBalancerNodePorts")
    if kind == "LoadBalancer" and allocate is None:
        errors.required("spec.allocateLoadBalancerNodePorts")
    if kind != "LoadBalancer" and allocate is not None:
        errors.forbidden("spec.allocateLoadBalancerNodePorts", "may only be used when `type` is 'LoadBalancer'")
    name = spec.get("loadBalancerClass")
    if name is not None:
        if kind != "LoadBalancer":
            errors.forbidden("spec.loadBalancerClass", "may only be used when `type` is 'LoadBalancer'")
        for message in qualified_name(name):
            errors.invalid("spec.loadBalancerClass", name, message)


def _policies(errors: Errors, spec: Object, kind: str) -> None:
    external = spec.get("externalTrafficPolicy", "")
    accessible = kind in _ACCESSIBLE or (kind == "ClusterIP" and bool(spec.get("externalIPs")))
    if not accessible:
        if external:
            errors.invalid("spec.externalTrafficPolicy", external, "may only be set for externally-accessible services")
    elif not external:
        if kind in _ACCESSIBLE:
            errors.required("spec.externalTrafficPolicy")
    elif external not in ("Cluster", "Local"):
        errors.unsupported("spec.externalTrafficPolicy", external, ("Cluster", "Local"))
    port = spec.get("healthCheckNodePort", 0)
    if not needs_health_check_port(spec):
        if port:
            errors.invalid(
                "spec.healthCheckNodePort",
                port,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            )
    else:
        for message in port_number(port) if port else ():
            errors.invalid("spec.healthCheckNodePort", port, message)
    internal = spec.get("internalTrafficPolicy")
    if internal is None:
        if kind in ("NodePort", "LoadBalancer", "ClusterIP"):
            errors.required("spec.internalTrafficPolicy")
    elif internal not in ("Cluster", "Local"):
        errors.unsupported("spec.internalTrafficPolicy", internal, ("Cluster", "Local"))
    distribution = spec.get("trafficDistribution")
    if distribution is not None and distribution not in ("PreferClose", "PreferSameZone", "PreferSameNode"):
        errors.unsupported(
            "spec.trafficDistribution", distribution, ("PreferClose", "PreferSameZone", "PreferSameNode")
        )


def load_balancer(errors: Errors, ingress: list[Object], path: str, *, modes: bool = True) -> None:
    """The addresses in a status. modes: of a Service, whose addresses say how they are delivered (an Ingress's do not)."""
    for index, entry in enumerate(ingress):
        here = f"{path}[{index}]"
        address = entry.get("ip", "")
        if address:
            for message in ip(address):
                errors.invalid(f"{here}.ip", address, message)
            mode = entry.get("ipMode")
            if modes and mode is None:
                errors.required(f"{here}.ipMode", "must be specified when `ip` is set")
            elif modes and mode not in ("Proxy", "VIP"):
                errors.unsupported(f"{here}.ipMode", mode, ("Proxy", "VIP"))
        elif entry.get("ipMode") is not None:
            errors.forbidden(f"{here}.ipMode", "may not be specified when `ip` is not set")
        if entry.get("hostname"):
            for message in dns1123_subdomain(entry["hostname"]):
                errors.invalid(f"{here}.hostname", entry["hostname"], message)
            if parse_ip(entry["hostname"]) is not None:
                errors.invalid(f"{here}.hostname", entry["hostname"], "must be a DNS name, not an IP address")
