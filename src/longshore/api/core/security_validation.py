"""Checks of security contexts."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from longshore.api.gotypes import dump
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import in_range

Object = dict[str, Any]
_ID = in_range(0, 2147483647)
_SYSCTL = r"([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?"
_sysctl = re.compile(_SYSCTL).fullmatch
_MAX_ID = 2147483647


def _ids(errors: Errors, value: Object, path: str, names: tuple[str, ...]) -> None:
    for name in names:
        number = value.get(name)
        if number is not None and not 0 <= number <= _MAX_ID:
            errors.invalid(f"{path}.{name}", number, _ID)


def seccomp(errors: Errors, profile: Object | None, path: str) -> None:
    """A seccomp profile."""
    if profile is None:
        return
    kind, local = profile.get("type", ""), profile.get("localhostProfile")
    if kind == "Localhost":
        if local is None:
            errors.required(f"{path}.localhostProfile", "must be set when seccomp type is Localhost")
        else:
            _descending(errors, local, f"{path}.localhostProfile")
        return
    if not kind:
        errors.required(f"{path}.type", "type is required when seccompProfile is set")
    elif kind not in ("RuntimeDefault", "Unconfined"):
        errors.unsupported(f"{path}.type", kind, ("Localhost", "RuntimeDefault", "Unconfined"))
    if local is not None:
        errors.invalid(
            f"{path}.localhostProfile",
            dump("io.k8s.api.core.v1.SeccompProfile", profile),
            "can only be set when seccomp type is Localhost",
        )


def _descending(errors: Errors, value: str, path: str) -> None:
    if posixpath.isabs(value):
        errors.invalid(path, value, "must be a relative path")
    if ".." in value.split("/"):
        errors.invalid(path, value, "must not contain '..'")


def app_armor(errors: Errors, profile: Object | None, path: str) -> None:
    """An AppArmor profile."""
    if profile is None:
        return
    kind, local = profile.get("type", ""), profile.get("localhostProfile")
    if kind == "Localhost":
        if local is None or not local.strip():
            errors.required(f"{path}.localhostProfile", "must be set when AppArmor type is Localhost")
        elif len(local) > 4095:
            errors.too_long(f"{path}.localhostProfile", 4095)
        elif local.strip() != local:
            errors.invalid(f"{path}.localhostProfile", local, "must not be padded with whitespace")
    elif kind in ("RuntimeDefault", "Unconfined"):
        if local is not None:
            errors.invalid(f"{path}.localhostProfile", local, "can only be set when AppArmor type is Localhost")
    elif not kind:
        errors.required(f"{path}.type", "type is required when appArmorProfile is set")
    else:
        errors.unsupported(f"{path}.type", kind, ("Localhost", "RuntimeDefault", "Unconfined"))


def windows_options(errors: Errors, value: Object | None, path: str) -> None:
    """Options of Windows containers."""
    if value is None:
        return
    name = value.get("gmsaCredentialSpecName")
    if name is not None:
        from longshore.api.validation.names import dns1123_subdomain

        for message in dns1123_subdomain(name):
            errors.invalid(f"{path}.gmsaCredentialSpecName", name, message)
    content = value.get("gmsaCredentialSpec")
    if content is not None:
        if not content:
            errors.invalid(f"{path}.gmsaCredentialSpec", content, "gmsaCredentialSpec cannot be an empty string")
        elif len(content) > 64 * 1024:
            errors.invalid(f"{path}.gmsaCredentialSpec", content, "gmsaCredentialSpec size must be under 65536 bytes")
    user = value.get("runAsUserName")
    if user is not None:
        if not user:
            errors.invalid(f"{path}.runAsUserName", user, "runAsUserName cannot be an empty string")
        elif re.search(r"[\x00-\x1f\x7f]", user):
            errors.invalid(f"{path}.runAsUserName", user, "runAsUserName cannot contain control characters")
        elif user.count("\\") > 1:
            errors.invalid(f"{path}.runAsUserName", user, "runAsUserName cannot contain more than one backslash")


def container_security(errors: Errors, value: Object, path: str, host_users: bool) -> None:
    """A container's security context."""
    privileged, escalation = value.get("privileged"), value.get("allowPrivilegeEscalation")
    _ids(errors, value, path, ("runAsUser", "runAsGroup"))
    mount = value.get("procMount")
    if mount is not None:
        if mount not in ("Default", "Unmasked"):
            errors.unsupported(f"{path}.procMount", mount, ("Default", "Unmasked"))
        if mount == "Unmasked" and host_users:
            errors.invalid(f"{path}.procMount", mount, "`hostUsers` must be false to use `Unmasked`")
    seccomp(errors, value.get("seccompProfile"), f"{path}.seccompProfile")
    if escalation is False:
        if privileged:
            errors.invalid(
                path,
                dump("io.k8s.api.core.v1.SecurityContext", value),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            )
        for capability in (value.get("capabilities") or {}).get("add") or ():
            if capability in ("CAP_SYS_ADMIN", "SYS_ADMIN"):
                errors.invalid(
                    path,
                    dump("io.k8s.api.core.v1.SecurityContext", value),
                    f"cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` {capability}",
                )
    windows_options(errors, value.get("windowsOptions"), f"{path}.windowsOptions")
    app_armor(errors, value.get("appArmorProfile"), f"{path}.appArmorProfile")


def pod_security(errors: Errors, spec: Object, path: str) -> None:
    """A pod's security context and the namespaces that it shares with the host."""
    value = spec.get("securityContext")
    host_network = spec.get("hostNetwork")
    here = f"{path}.securityContext"
    if value is not None:
        _ids(errors, value, here, ("fsGroup", "runAsUser", "runAsGroup"))
        for index, number in enumerate(value.get("supplementalGroups") or ()):
            if not 0 <= number <= _MAX_ID:
                errors.invalid(f"{here}.supplementalGroups[{index}]", number, _ID)
    if spec.get("shareProcessNamespace") and spec.get("hostPID"):
        errors.invalid(
            f"{here}.shareProcessNamespace", True, "ShareProcessNamespace and HostPID cannot both be enabled"
        )
    if value is None:
        return
    seen: set[str] = set()
    for index, sysctl in enumerate(value.get("sysctls") or ()):
        name = sysctl.get("name", "")
        place = f"{here}.sysctls[{index}].name"
        if not name:
            errors.required(place)
        elif len(name) > 253 or not _sysctl(name):
            errors.invalid(place, name, f"must have at most 253 characters and match regex ^{_SYSCTL}$")
        elif name in seen:
            errors.duplicate(place, name)
        else:
            _host_sysctl(errors, name, place, bool(host_network), bool(spec.get("hostIPC")))
        seen.add(name)
    policy = value.get("fsGroupChangePolicy")
    if policy is not None and policy not in ("Always", "OnRootMismatch"):
        errors.unsupported(f"{here}.fsGroupChangePolicy", policy, ("Always", "OnRootMismatch"))
    seccomp(errors, value.get("seccompProfile"), f"{here}.seccompProfile")
    windows_options(errors, value.get("windowsOptions"), f"{here}.windowsOptions")
    app_armor(errors, value.get("appArmorProfile"), f"{here}.appArmorProfile")
    groups = value.get("supplementalGroupsPolicy")
    if groups is not None and groups not in ("Merge", "Strict"):
        errors.unsupported(f"{here}.supplementalGroupsPolicy", groups, ("Merge", "Strict"))
    linux = value.get("seLinuxChangePolicy")
    if linux is not None and linux not in ("MountOption", "Recursive"):
        errors.unsupported(f"{here}.seLinuxChangePolicy", linux, ("MountOption", "Recursive"))


def _host_sysctl(errors: Errors, name: str, path: str, host_network: bool, host_ipc: bool) -> None:
    plain = name.replace("/", ".")
    if host_network and (plain.startswith("net.") or plain == "net"):
        errors.invalid(path, name, "may not be specified when 'hostNetwork' is true")
    if host_ipc and (plain.startswith(("kernel.shm", "kernel.msg", "fs.mqueue.")) or plain == "kernel.sem"):
        errors.invalid(path, name, "may not be specified when 'hostIPC' is true")
