"""Checks of containers: ports, environment, mounts, probes, life cycle, resources (upstream pkg/apis/core/validation)."""

from __future__ import annotations

import re
from typing import Any

from longshore.api.core.environment_validation import environment, environment_from, local_path
from longshore.api.core.security_validation import container_security
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import (
    dns1123_label,
    http_header,
    port_name,
    port_number,
)
from longshore.api.validation.quantities import (
    amount,
    container_resource_name,
    is_huge_page,
    is_overcommit_allowed,
    not_negative,
)
from longshore.machinery import quantity

Object = dict[str, Any]


def port_or_name(errors: Errors, value: Any, path: str) -> None:
    """A port's number or name."""
    for message in port_name(value) if isinstance(value, str) else port_number(value):
        errors.invalid(path, value, message)


def ports(errors: Errors, listed: list[Object], path: str) -> None:
    """Container ports."""
    names: set[str] = set()
    for index, port in enumerate(listed):
        here = f"{path}[{index}]"
        name = port.get("name", "")
        if name:
            messages = port_name(name)
            for message in messages:
                errors.invalid(f"{here}.name", name, message)
            if not messages:
                if name in names:
                    errors.duplicate(f"{here}.name", name)
                names.add(name)
        number = port.get("containerPort", 0)
        if number == 0:
            errors.required(f"{here}.containerPort")
        else:
            for message in port_number(number):
                errors.invalid(f"{here}.containerPort", number, message)
        host = port.get("hostPort", 0)
        if host:
            for message in port_number(host):
                errors.invalid(f"{here}.hostPort", host, message)
        protocol = port.get("protocol", "")
        if not protocol:
            errors.required(f"{here}.protocol")
        elif protocol not in ("TCP", "UDP", "SCTP"):
            errors.unsupported(f"{here}.protocol", protocol, ("SCTP", "TCP", "UDP"))


def volume_mounts(errors: Errors, container: Object, volumes: dict[str, Object], path: str) -> None:
    """Mounts of the pod's volumes."""
    seen: set[str] = set()
    devices = {d.get("name"): d for d in container.get("volumeDevices") or ()}
    device_paths = {d.get("devicePath") for d in devices.values()}
    security = container.get("securityContext") or {}
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        here = f"{path}[{index}]"
        name, target = mount.get("name", ""), mount.get("mountPath", "")
        if not name:
            errors.required(f"{here}.name")
        if name not in volumes:
            errors.not_found(f"{here}.name", name)
        if not target:
            errors.required(f"{here}.mountPath")
        if target in seen:
            errors.invalid(f"{here}.mountPath", target, "must be unique")
        seen.add(target)
        if name in devices:
            errors.invalid(f"{here}.name", name, "must not already exist in volumeDevices")
        if target in device_paths:
            errors.invalid(f"{here}.mountPath", target, "must not already exist as a path in volumeDevices")
        if mount.get("subPath"):
            local_path(errors, mount["subPath"], f"{path}.subPath")
        if mount.get("subPathExpr"):
            if mount.get("subPath"):
                errors.invalid(
                    f"{here}.subPathExpr", mount["subPathExpr"], "subPathExpr and subPath are mutually exclusive"
                )
            local_path(errors, mount["subPathExpr"], f"{path}.subPathExpr")
        propagation = mount.get("mountPropagation")
        if propagation is not None:
            if propagation not in ("Bidirectional", "HostToContainer", "None"):
                errors.unsupported(
                    f"{path}.mountPropagation", propagation, ("Bidirectional", "HostToContainer", "None")
                )
            if propagation == "Bidirectional" and not security.get("privileged"):
                errors.forbidden(
                    f"{path}.mountPropagation",
                    "Bidirectional mount propagation is available only to privileged containers",
                )
        _recursive(errors, mount, f"{path}.recursiveReadOnly")


def _recursive(errors: Errors, mount: Object, path: str) -> None:
    value = mount.get("recursiveReadOnly")
    if value is None or value == "Disabled":
        return
    if value not in ("IfPossible", "Enabled"):
        errors.unsupported(path, value, ("Disabled", "Enabled", "IfPossible"))
        return
    if not mount.get("readOnly"):
        errors.forbidden(path, "may only be specified when readOnly is true")
    propagation = mount.get("mountPropagation")
    if propagation not in (None, "None"):
        errors.forbidden(path, "may only be specified when mountPropagation is None or not specified")


def volume_devices(errors: Errors, container: Object, volumes: dict[str, Object], path: str) -> None:
    """Block devices out of the pod's volumes."""
    paths: set[str] = set()
    names: set[str] = set()
    mounts = {m.get("name"): m for m in container.get("volumeMounts") or ()}
    mount_paths = {m.get("mountPath") for m in mounts.values()}
    for index, device in enumerate(container.get("volumeDevices") or ()):
        here = f"{path}[{index}]"
        name, target = device.get("name", ""), device.get("devicePath", "")
        if not name:
            errors.required(f"{here}.name")
        if name in names:
            errors.invalid(f"{here}.name", name, "must be unique")
        volume = volumes.get(name)
        if volume is not None and "persistentVolumeClaim" not in volume and "ephemeral" not in volume:
            errors.invalid(
                f"{here}.name",
                name,
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            )
        if volume is None:
            errors.not_found(f"{here}.name", name)
        if not target:
            errors.required(f"{here}.devicePath")
        if target in paths:
            errors.invalid(f"{here}.devicePath", target, "must be unique")
        if target and ".." in target.split("/"):
            errors.invalid(f"{here}.devicePath", target, "can not contain backsteps ('..')")
        else:
            paths.add(target)
        if name in mounts:
            errors.invalid(f"{here}.name", name, "must not already exist in volumeMounts")
        if target in mount_paths:
            errors.invalid(f"{here}.devicePath", target, "must not already exist as a path in volumeMounts")
        if name:
            names.add(name)


def handler(errors: Errors, value: Object, path: str, grace: int | None) -> None:
    """What a probe or a hook does."""
    count = 0
    for kind in ("exec", "httpGet", "tcpSocket", "grpc", "sleep"):
        action = value.get(kind)
        if action is None:
            continue
        here = f"{path}.{kind}"
        if count:
            errors.forbidden(here, "may not specify more than 1 handler type")
            continue
        count += 1
        if kind == "exec":
            if not action.get("command"):
                errors.required(f"{here}.command")
        elif kind == "httpGet":
            if not action.get("path"):
                errors.required(f"{here}.path")
            port_or_name(errors, action.get("port", 0), f"{here}.port")
            if action.get("scheme") not in ("HTTP", "HTTPS"):
                errors.unsupported(f"{here}.scheme", action.get("scheme", ""), ("HTTP", "HTTPS"))
            for header in action.get("httpHeaders") or ():
                for message in http_header(header.get("name", "")):
                    errors.invalid(f"{here}.httpHeaders", header.get("name", ""), message)
        elif kind == "sleep":
            seconds = action.get("seconds", 0)
            if grace is not None and not 0 <= seconds <= grace:
                errors.invalid(
                    here, seconds, f"must be non-negative and less than terminationGracePeriodSeconds ({grace})"
                )
        else:
            port_or_name(errors, action.get("port", 0), f"{here}.port")
    if not count:
        errors.required(path, "must specify a handler type")


def probe(errors: Errors, value: Object | None, path: str, grace: int | None, kind: str) -> None:
    """One of the probes; kind: liveness, readiness or startup."""
    if value is None:
        return
    handler(errors, value, path, grace)
    for name in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        not_negative(errors, value.get(name, 0), f"{path}.{name}")
    period = value.get("terminationGracePeriodSeconds")
    if period is not None and period <= 0:
        errors.invalid(f"{path}.terminationGracePeriodSeconds", period, "must be greater than 0")
    if kind == "readiness":
        if period is not None:
            errors.invalid(f"{path}.terminationGracePeriodSeconds", period, "must not be set for readinessProbes")
    elif value.get("successThreshold", 0) != 1:
        errors.invalid(f"{path}.successThreshold", value.get("successThreshold", 0), "must be 1")


def lifecycle(errors: Errors, value: Object | None, path: str, grace: int | None, os: str) -> None:
    """Hooks and the stop signal."""
    if value is None:
        return
    for name in ("postStart", "preStop"):
        if value.get(name) is not None:
            handler(errors, value[name], f"{path}.{name}", grace)
    signal = value.get("stopSignal")
    if signal is not None:
        if not os:
            errors.forbidden(f"{path}.stopSignal", "may not be set for containers with empty `spec.os.name`")
        elif os == "windows":
            if signal not in ("SIGTERM", "SIGKILL"):
                errors.unsupported(f"{path}.stopSignal", signal, ("SIGKILL", "SIGTERM"))
        elif not re.fullmatch(r"SIG[A-Z0-9]+([+-]\d+)?", signal):
            errors.unsupported(f"{path}.stopSignal", signal, ())


def resources(errors: Errors, value: Object | None, path: str, claims: list[str] | None) -> None:
    """Requests, limits and claims of a container."""
    if not value:
        return
    limits, requests = value.get("limits") or {}, value.get("requests") or {}
    huge = has_cpu_or_memory = False
    for name in sorted(limits):
        here = f"{path}.limits[{name}]"
        container_resource_name(errors, name, here)
        amount(errors, name, limits[name], here)
        if is_huge_page(name):
            huge = True
            _huge_page(errors, name, limits[name], here)
        has_cpu_or_memory |= name in ("cpu", "memory")
    for name in sorted(requests):
        here = f"{path}.requests[{name}]"
        container_resource_name(errors, name, here)
        amount(errors, name, requests[name], here)
        limit = limits.get(name)
        if limit is not None:
            asked, most = quantity.parse(requests[name]), quantity.parse(limit)
            if asked.nanos != most.nanos and not is_overcommit_allowed(name):
                errors.invalid(f"{path}.requests", requests[name], f"must be equal to {name} limit of {limit}")
            elif asked.nanos > most.nanos:
                errors.invalid(
                    f"{path}.requests", requests[name], f"must be less than or equal to {name} limit of {limit}"
                )
        elif not is_overcommit_allowed(name):
            errors.required(f"{path}.limits", "Limit must be set for non overcommitable resources")
        if is_huge_page(name):
            huge = True
        has_cpu_or_memory |= name in ("cpu", "memory")
    if huge and not has_cpu_or_memory:
        errors.forbidden(path, "HugePages require cpu or memory")
    seen: set[tuple[str, str]] = set()
    for index, claim in enumerate(value.get("claims") or ()):
        here = f"{path}.claims[{index}]"
        name = claim.get("name", "")
        if not name:
            errors.required(f"{here}.name")
        elif (name, claim.get("request", "")) in seen:
            errors.duplicate(here, name if not claim.get("request") else f"{name}/{claim['request']}")
        elif claims is not None and name not in claims:
            errors.not_found(here, name)
            errors[-1].detail = "must be one of the names in pod.spec.resourceClaims" + (
                ": " + ", ".join(sorted(set(claims))) if claims else " which is empty"
            )
        seen.add((name, claim.get("request", "")))


def _huge_page(errors: Errors, name: str, value: str, path: str) -> None:
    try:
        size = quantity.parse(name.removeprefix("hugepages-")).value
    except quantity.QuantityError:
        return
    if size and quantity.parse(value).value % size:
        errors.invalid(path, value, f"{value} is not positive integer multiple of {name}")


def resize_policy(errors: Errors, policies: list[Object], path: str) -> None:
    """What a change of resources does to the container."""
    seen: set[str] = set()
    for index, policy in enumerate(policies):
        name, restart = policy.get("resourceName", ""), policy.get("restartPolicy", "")
        if name in seen:
            errors.duplicate(f"{path}[{index}]", name)
        seen.add(name)
        if not name:
            errors.required(path)
        elif name not in ("cpu", "memory"):
            errors.unsupported(path, name, ("cpu", "memory"))
        if not restart:
            errors.required(path)
        elif restart not in ("NotRequired", "RestartContainer"):
            errors.unsupported(path, restart, ("NotRequired", "RestartContainer"))


def container(
    errors: Errors, value: Object, volumes: dict[str, Object], claims: list[str], path: str, host_users: bool
) -> None:
    """What all kinds of containers have in common."""
    name = value.get("name", "")
    if not name:
        errors.required(f"{path}.name")
    else:
        for message in dns1123_label(name):
            errors.invalid(f"{path}.name", name, message)
    if not value.get("image"):
        errors.required(f"{path}.image")
    policy = value.get("terminationMessagePolicy", "")
    if not policy:
        errors.required(f"{path}.terminationMessagePolicy")
    elif policy not in ("File", "FallbackToLogsOnError"):
        errors.unsupported(f"{path}.terminationMessagePolicy", policy, ("File", "FallbackToLogsOnError"))
    if "ports" in value:
        ports(errors, value["ports"] or [], f"{path}.ports")
    if "env" in value:
        environment(errors, value["env"] or [], f"{path}.env", volumes)
    if "envFrom" in value:
        environment_from(errors, value["envFrom"] or [], f"{path}.envFrom")
    if "volumeMounts" in value:
        volume_mounts(errors, value, volumes, f"{path}.volumeMounts")
    if "volumeDevices" in value:
        volume_devices(errors, value, volumes, f"{path}.volumeDevices")
    pull = value.get("imagePullPolicy", "")
    if not pull:
        errors.required(f"{path}.imagePullPolicy")
    elif pull not in ("Always", "IfNotPresent", "Never"):
        errors.unsupported(f"{path}.imagePullPolicy", pull, ("Always", "IfNotPresent", "Never"))
    resources(errors, value.get("resources"), f"{path}.resources", claims)
    if "resizePolicy" in value:
        resize_policy(errors, value["resizePolicy"] or [], f"{path}.resizePolicy")
    if value.get("securityContext"):
        container_security(errors, value["securityContext"], f"{path}.securityContext", host_users)


def restart_rules(errors: Errors, value: Object, path: str) -> None:
    """A container's own restart policy and rules."""
    policy, rules = value.get("restartPolicy"), value.get("restartPolicyRules") or []
    if policy is not None and policy not in ("Always", "Never", "OnFailure"):
        errors.unsupported(f"{path}.restartPolicy", policy, ("Always", "Never", "OnFailure"))
    if rules and policy is None:
        errors.required(f"{path}.restartPolicy", "must specify restartPolicy when restart rules are used")
    if len(rules) > 20:
        errors.too_long(f"{path}.restartPolicyRules", 20)
    for index, rule in enumerate(rules):
        here = f"{path}.restartPolicyRules[{index}]"
        action = rule.get("action", "")
        if not action:
            errors.required(f"{here}.action")
        elif action not in ("Restart", "RestartAllContainers"):
            errors.unsupported(f"{here}.action", action, ("Restart",))
        codes = rule.get("exitCodes")
        if codes is None:
            errors.required(f"{here}.exitCodes", "must be specified")
            continue
        operator = codes.get("operator", "")
        if not operator:
            errors.required(f"{here}.exitCodes.operator")
        elif operator not in ("In", "NotIn"):
            errors.unsupported(f"{here}.exitCodes.operator", operator, ("In", "NotIn"))
        if len(codes.get("values") or ()) > 255:
            errors.too_long(f"{here}.exitCodes.values", 255)


def containers(errors: Errors, spec: Object, volumes: dict[str, Object], claims: list[str], path: str) -> None:
    """The regular containers of a pod."""
    listed = spec.get("containers") or []
    grace = spec.get("terminationGracePeriodSeconds")
    os = (spec.get("os") or {}).get("name", "")
    host_users = spec.get("hostUsers") is not False
    if not listed:
        errors.required(f"{path}.containers")
        return
    names: set[str] = set()
    for index, value in enumerate(listed):
        here = f"{path}.containers[{index}]"
        container(errors, value, volumes, claims, here, host_users)
        if value.get("name", "") in names:
            errors.duplicate(f"{here}.name", value.get("name", ""))
        names.add(value.get("name", ""))
        _with_probes(errors, value, here, grace, os)
        if value.get("restartPolicy") is not None or value.get("restartPolicyRules"):
            restart_rules(errors, value, here)
    host_port_conflicts(errors, listed, f"{path}.containers")


def _with_probes(errors: Errors, value: Object, here: str, grace: int | None, os: str) -> None:
    lifecycle(errors, value.get("lifecycle"), f"{here}.lifecycle", grace, os)
    for kind in ("liveness", "readiness", "startup"):
        probe(errors, value.get(f"{kind}Probe"), f"{here}.{kind}Probe", grace, kind)


def init_containers(errors: Errors, spec: Object, volumes: dict[str, Object], claims: list[str], path: str) -> None:
    """The containers that run first; those that restart always are sidecars."""
    grace = spec.get("terminationGracePeriodSeconds")
    os = (spec.get("os") or {}).get("name", "")
    host_users = spec.get("hostUsers") is not False
    names = {c.get("name", "") for c in spec.get("containers") or ()}
    for index, value in enumerate(spec.get("initContainers") or ()):
        here = f"{path}.initContainers[{index}]"
        container(errors, value, volumes, claims, here, host_users)
        sidecar = value.get("restartPolicy") == "Always"
        if value.get("restartPolicy") is not None or value.get("restartPolicyRules"):
            restart_rules(errors, value, here)
        if value.get("name", "") in names:
            errors.duplicate(f"{here}.name", value.get("name", ""))
        elif value.get("name"):
            names.add(value["name"])
        host_port_conflicts(errors, [value], f"{path}.initContainers")
        if sidecar:
            _with_probes(errors, value, here, grace, os)
        else:
            for field in ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe"):
                if value.get(field) is not None:
                    errors.forbidden(
                        f"{here}.{field}", "may not be set for init containers without restartPolicy=Always"
                    )


def host_port_conflicts(errors: Errors, listed: list[Object], path: str) -> None:
    """Two containers that want the same port of the host."""
    seen: set[str] = set()
    for index, value in enumerate(listed):
        for at, port in enumerate(value.get("ports") or ()):
            number = port.get("hostPort", 0)
            if number == 0:
                continue
            text = f"{port.get('protocol', '')}/{port.get('hostIP', '')}/{number}"
            if text in seen:
                errors.duplicate(f"{path}[{index}].ports[{at}].hostPort", text)
            seen.add(text)
