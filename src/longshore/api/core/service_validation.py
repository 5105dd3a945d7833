"""Validation of Services, and of the addresses that Endpoints and load balancers have in common with them.

Source: kubernetes pkg/apis/core/validation/validation.go (ValidateService and what it calls).
"""

from __future__ import annotations

from longshore.api.core.container_validation import port_or_name
from longshore.api.core.service_needs import ACCESSIBLE, is_headless, needs_health_check_port
from longshore.api.strategy import Object
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import (
    cidr,
    dns1123_label,
    dns1123_subdomain,
    ip,
    ip_family,
    parse_ip,
    port_number,
    qualified_name,
)


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
    if kind in ACCESSIBLE and headless:
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
        errors.unsupported("spec.ipFamilyPolicy", policy, ("PreferDualStack", "RequireDualStack", "SingleStack"))
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
    accessible = kind in ACCESSIBLE or (kind == "ClusterIP" and bool(spec.get("externalIPs")))
    if not accessible:
        if external:
            errors.invalid("spec.externalTrafficPolicy", external, "may only be set for externally-accessible services")
    elif not external:
        if kind in ACCESSIBLE:
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
