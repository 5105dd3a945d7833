"""The checks of the Pod Security Standards, each with the level and the version from which it holds.

A check takes a pod's metadata and spec and answers None when they are well, else (reason, detail).
Source: staging/src/k8s.io/pod-security-admission/policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Object = dict[str, Any]
Result = tuple[str, str] | None
Check = Callable[[Object, Object], Result]

BASELINE, RESTRICTED = "baseline", "restricted"
_DEFAULT_CAPABILITIES = frozenset((
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP",
    "SETUID", "SYS_CHROOT",
))  # fmt: skip
_SYSCTLS_0 = frozenset(
    (
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
    )
)
_SYSCTLS_27 = _SYSCTLS_0 | {"net.ipv4.ip_local_reserved_ports"}
_SYSCTLS_29 = _SYSCTLS_27 | {
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}
_SYSCTLS_32 = _SYSCTLS_29 | {"net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"}
_VOLUMES = (
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
    "image",
)
_SELINUX = frozenset(("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"))


def containers(spec: Object) -> list[Object]:
    """Init, regular and ephemeral containers in the order in which upstream visits them."""
    return [
        *(spec.get("initContainers") or ()),
        *(spec.get("containers") or ()),
        *(spec.get("ephemeralContainers") or ()),
    ]


def _context(container: Object) -> Object:
    return container.get("securityContext") or {}


def quoted(names: list[str]) -> str:
    """Names in quotes, joined."""
    return ", ".join(f'"{n}"' for n in names)


def plural(word: str, count: int) -> str:
    """container or containers."""
    return word if count == 1 else word + "s"


def _named(names: list[str]) -> str:
    return f"{plural('container', len(names))} {quoted(names)}"


def privileged(meta: Object, spec: Object) -> Result:
    bad = [c["name"] for c in containers(spec) if _context(c).get("privileged")]
    return ("privileged", f"{_named(bad)} must not set securityContext.privileged=true") if bad else None


def host_namespaces(meta: Object, spec: Object) -> Result:
    bad = [f"{k}=true" for k in ("hostNetwork", "hostPID", "hostIPC") if spec.get(k)]
    return ("host namespaces", ", ".join(bad)) if bad else None


def host_path(meta: Object, spec: Object) -> Result:
    bad = [v["name"] for v in spec.get("volumes") or () if v.get("hostPath") is not None]
    return ("hostPath volumes", f"{plural('volume', len(bad))} {quoted(bad)}") if bad else None


def host_ports(meta: Object, spec: Object) -> Result:
    bad: list[str] = []
    ports: list[str] = []
    for container in containers(spec):
        mine = [str(p["hostPort"]) for p in container.get("ports") or () if p.get("hostPort")]
        if mine:
            bad.append(container["name"])
            ports.extend(p for p in mine if p not in ports)
    if not bad:
        return None
    verb = "uses" if len(bad) == 1 else "use"
    return "hostPort", f"{_named(bad)} {verb} {plural('hostPort', len(ports))} {', '.join(sorted(ports, key=int))}"


def _host_of(handler: Object | None) -> list[str]:
    out = []
    for kind in ("httpGet", "tcpSocket"):
        host = ((handler or {}).get(kind) or {}).get("host")
        if host and host not in ("127.0.0.1", "::1"):
            out.append(host)
    return out


def probe_host(meta: Object, spec: Object) -> Result:
    bad: list[str] = []
    hosts: list[str] = []
    for container in containers(spec):
        lifecycle = container.get("lifecycle") or {}
        mine: list[str] = []
        for handler in (
            container.get("livenessProbe"),
            container.get("readinessProbe"),
            container.get("startupProbe"),
            lifecycle.get("postStart"),
            lifecycle.get("preStop"),
        ):
            mine.extend(_host_of(handler))
        if mine:
            bad.append(container["name"])
            hosts.extend(h for h in mine if h not in hosts)
    if not bad:
        return None
    verb = "uses" if len(bad) == 1 else "use"
    return (
        "probe or lifecycle host",
        f"{_named(bad)} {verb} probe or lifecycle {plural('host', len(hosts))} {quoted(hosts)}",
    )


def capabilities_baseline(meta: Object, spec: Object) -> Result:
    bad: list[str] = []
    names: list[str] = []
    for container in containers(spec):
        mine = [
            c
            for c in (_context(container).get("capabilities") or {}).get("add") or ()
            if c not in _DEFAULT_CAPABILITIES
        ]
        if mine:
            bad.append(container["name"])
            names.extend(n for n in mine if n not in names)
    return (
        (
            "non-default capabilities",
            f"{_named(bad)} must not include {quoted(sorted(names))} in securityContext.capabilities.add",
        )
        if bad
        else None
    )


def host_process(meta: Object, spec: Object) -> Result:
    bad = [c["name"] for c in containers(spec) if (_context(c).get("windowsOptions") or {}).get("hostProcess")]
    pod = ((spec.get("securityContext") or {}).get("windowsOptions") or {}).get("hostProcess")
    if not bad and not pod:
        return None
    parts = (["pod"] if pod else []) + ([_named(bad)] if bad else [])
    return "hostProcess", f"{' and '.join(parts)} must not set securityContext.windowsOptions.hostProcess=true"


def app_armor(meta: Object, spec: Object) -> Result:
    bad, values = [], []
    pod = ((spec.get("securityContext") or {}).get("appArmorProfile") or {}).get("type")
    allowed = (None, "RuntimeDefault", "Localhost")
    parts: list[str] = []
    if pod not in allowed:
        parts.append("pod")
        values.append(pod)
    for container in containers(spec):
        kind = (_context(container).get("appArmorProfile") or {}).get("type")
        if kind not in allowed:
            bad.append(container["name"])
            if kind not in values:
                values.append(kind)
    prefix = "container.apparmor.security.beta.kubernetes.io/"
    notes = sorted(
        f'{k}="{v}"'
        for k, v in (meta.get("annotations") or {}).items()
        if k.startswith(prefix) and v != "" and v != "runtime/default" and not v.startswith("localhost/")
    )
    if bad:
        parts.append(_named(bad))
    texts = []
    if parts:
        texts.append(
            f"{' and '.join(parts)} must not set AppArmor profile type to {quoted(sorted(str(v) for v in values))}"
        )
    if notes:
        texts.append(f"{plural('annotation', len(notes))} {', '.join(notes)}")
    if not texts:
        return None
    count = len(values) + len(notes)
    return plural("forbidden AppArmor profile", count), "; ".join(texts) if parts else ", ".join(texts)


def selinux(meta: Object, spec: Object) -> Result:
    types: list[str] = []
    user = role = False
    setters: list[str] = []
    bad: list[str] = []

    def look(options: Object | None) -> bool:
        nonlocal user, role
        if options is None:
            return True
        good = True
        if options.get("type", "") not in _SELINUX:
            good = False
            if options["type"] not in types:
                types.append(options["type"])
        if options.get("user"):
            good, user = False, True
        if options.get("role"):
            good, role = False, True
        return good

    if not look((spec.get("securityContext") or {}).get("seLinuxOptions")):
        setters.append("pod")
    bad = [c["name"] for c in containers(spec) if not look(_context(c).get("seLinuxOptions"))]
    if bad:
        setters.append(_named(bad))
    if not setters:
        return None
    texts = []
    if types:
        texts.append(f"{plural('type', len(types))} {quoted(sorted(types))}")
    if user:
        texts.append("user may not be set")
    if role:
        texts.append("role may not be set")
    return "seLinuxOptions", f"{' and '.join(setters)} set forbidden securityContext.seLinuxOptions: {'; '.join(texts)}"


def proc_mount(meta: Object, spec: Object) -> Result:
    bad, values = [], []
    for container in containers(spec):
        kind = _context(container).get("procMount")
        if kind not in (None, "Default"):
            bad.append(container["name"])
            if kind not in values:
                values.append(kind)
    return (
        ("procMount", f"{_named(bad)} must not set securityContext.procMount to {quoted(sorted(values))}")
        if bad
        else None
    )


def proc_mount_35(meta: Object, spec: Object) -> Result:
    # A pod with a user namespace of its own may see its own /proc.
    return None if spec.get("hostUsers") is False else proc_mount(meta, spec)


def seccomp_baseline(meta: Object, spec: Object) -> Result:
    bad, values, parts = [], [], []
    allowed = (None, "RuntimeDefault", "Localhost")
    pod = ((spec.get("securityContext") or {}).get("seccompProfile") or {}).get("type")
    if pod not in allowed:
        parts.append("pod")
        values.append(pod)
    for container in containers(spec):
        kind = (_context(container).get("seccompProfile") or {}).get("type")
        if kind not in allowed:
            bad.append(container["name"])
            if kind not in values:
                values.append(kind)
    if bad:
        parts.append(_named(bad))
    if not parts:
        return None
    return (
        "seccompProfile",
        f"{' and '.join(parts)} must not set securityContext.seccompProfile.type to {quoted(sorted(values))}",
    )


def _sysctls(allowed: frozenset[str]) -> Check:
    def check(meta: Object, spec: Object) -> Result:
        bad = [s["name"] for s in (spec.get("securityContext") or {}).get("sysctls") or () if s["name"] not in allowed]
        return ("forbidden sysctls", ", ".join(sorted(bad))) if bad else None

    return check


def volumes(meta: Object, spec: Object) -> Result:
    bad, kinds = [], []
    for volume in spec.get("volumes") or ():
        given = [k for k in volume if k != "name"]
        if any(k in _VOLUMES for k in given):
            continue
        bad.append(volume["name"])
        kind = given[0] if given else "unknown"
        if kind not in kinds:
            kinds.append(kind)
    if not bad:
        return None
    verb = "uses" if len(bad) == 1 else "use"
    return (
        "restricted volume types",
        f"{plural('volume', len(bad))} {quoted(bad)} {verb} restricted volume {plural('type', len(kinds))} {quoted(sorted(kinds))}",
    )


def _windows(spec: Object) -> bool:
    return bool((spec.get("os") or {}).get("name") == "windows")


def escalation(meta: Object, spec: Object) -> Result:
    bad = [c["name"] for c in containers(spec) if _context(c).get("allowPrivilegeEscalation") is not False]
    return (
        ("allowPrivilegeEscalation != false", f"{_named(bad)} must set securityContext.allowPrivilegeEscalation=false")
        if bad
        else None
    )


def escalation_25(meta: Object, spec: Object) -> Result:
    return None if _windows(spec) else escalation(meta, spec)


def run_as_non_root(meta: Object, spec: Object) -> Result:
    pod = (spec.get("securityContext") or {}).get("runAsNonRoot")
    explicit, missing = [], []
    for container in containers(spec):
        value = _context(container).get("runAsNonRoot")
        if value is False:
            explicit.append(container["name"])
        elif value is None and not pod:
            missing.append(container["name"])
    setters = (["pod"] if pod is False and missing else []) + ([_named(explicit)] if explicit else [])
    if pod is False and not missing and not explicit:
        return None
    if setters:
        return "runAsNonRoot != true", f"{' and '.join(setters)} must not set securityContext.runAsNonRoot=false"
    if missing:
        return "runAsNonRoot != true", f"pod or {_named(missing)} must set securityContext.runAsNonRoot=true"
    return None


def run_as_non_root_35(meta: Object, spec: Object) -> Result:
    return None if spec.get("hostUsers") is False else run_as_non_root(meta, spec)


def run_as_user(meta: Object, spec: Object) -> Result:
    pod = (spec.get("securityContext") or {}).get("runAsUser") == 0
    bad = [c["name"] for c in containers(spec) if _context(c).get("runAsUser") == 0]
    parts = (["pod"] if pod else []) + ([_named(bad)] if bad else [])
    return ("runAsUser=0", f"{' and '.join(parts)} must not set runAsUser=0") if parts else None


def run_as_user_35(meta: Object, spec: Object) -> Result:
    return None if spec.get("hostUsers") is False else run_as_user(meta, spec)


def seccomp_restricted(meta: Object, spec: Object) -> Result:
    pod = ((spec.get("securityContext") or {}).get("seccompProfile") or {}).get("type")
    allowed = ("RuntimeDefault", "Localhost")
    explicit, missing, values = [], [], []
    for container in containers(spec):
        kind = (_context(container).get("seccompProfile") or {}).get("type")
        if kind is None:
            if pod not in allowed:
                missing.append(container["name"])
        elif kind not in allowed:
            explicit.append(container["name"])
            values.append(kind)
    parts = []
    if pod is not None and pod not in allowed:
        parts.append("pod")
        values.insert(0, pod)
    if explicit:
        parts.append(_named(explicit))
    if parts:
        return (
            "seccompProfile",
            f"{' and '.join(parts)} must not set securityContext.seccompProfile.type to {quoted(sorted(set(values)))}",
        )
    if missing:
        return (
            "seccompProfile",
            f'pod or {_named(missing)} must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"',
        )
    return None


def seccomp_restricted_25(meta: Object, spec: Object) -> Result:
    return None if _windows(spec) else seccomp_restricted(meta, spec)


def capabilities_restricted(meta: Object, spec: Object) -> Result:
    undropped: list[str] = []
    adding: list[str] = []
    added: list[str] = []
    for container in containers(spec):
        capabilities = _context(container).get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or ()):
            undropped.append(container["name"])
        mine = [c for c in capabilities.get("add") or () if c != "NET_BIND_SERVICE"]
        if mine:
            adding.append(container["name"])
            added.extend(n for n in mine if n not in added)
    texts = []
    if undropped:
        texts.append(f'{_named(undropped)} must set securityContext.capabilities.drop=["ALL"]')
    if adding:
        texts.append(f"{_named(adding)} must not include {quoted(sorted(added))} in securityContext.capabilities.add")
    return ("unrestricted capabilities", "; ".join(texts)) if texts else None


def capabilities_restricted_25(meta: Object, spec: Object) -> Result:
    return None if _windows(spec) else capabilities_restricted(meta, spec)


class Rule(NamedTuple):
    """A check by its level; versions: (first minor version, function), ascending; overridden by the restricted rule named."""

    id: str
    level: str
    versions: tuple[tuple[int, Check], ...]
    overrides: str = ""


# In the order in which violations are told.
RULES = (
    Rule("hostNamespaces", BASELINE, ((0, host_namespaces),)),
    Rule("privileged", BASELINE, ((0, privileged),)),
    Rule("capabilities_baseline", BASELINE, ((0, capabilities_baseline),)),
    Rule("hostPathVolumes", BASELINE, ((0, host_path),)),
    Rule("hostPorts", BASELINE, ((0, host_ports),)),
    Rule("hostProbesAndHostLifecycle", BASELINE, ((34, probe_host),)),
    Rule("appArmorProfile", BASELINE, ((0, app_armor),)),
    Rule("seLinuxOptions", BASELINE, ((0, selinux),)),
    Rule("procMount", BASELINE, ((0, proc_mount), (35, proc_mount_35))),
    Rule("seccompProfile_baseline", BASELINE, ((19, seccomp_baseline),)),
    Rule(
        "sysctls",
        BASELINE,
        (
            (0, _sysctls(_SYSCTLS_0)),
            (27, _sysctls(_SYSCTLS_27)),
            (29, _sysctls(_SYSCTLS_29)),
            (32, _sysctls(_SYSCTLS_32)),
        ),
    ),
    Rule("windowsHostProcess", BASELINE, ((0, host_process),)),
    Rule("allowPrivilegeEscalation", RESTRICTED, ((8, escalation), (25, escalation_25))),
    Rule(
        "capabilities_restricted",
        RESTRICTED,
        ((22, capabilities_restricted), (25, capabilities_restricted_25)),
        "capabilities_baseline",
    ),
    Rule("procMount_restricted", RESTRICTED, ((0, proc_mount),), "procMount"),
    Rule("restrictedVolumes", RESTRICTED, ((0, volumes),), "hostPathVolumes"),
    Rule("runAsNonRoot", RESTRICTED, ((0, run_as_non_root), (35, run_as_non_root_35))),
    Rule("runAsUser", RESTRICTED, ((23, run_as_user), (35, run_as_user_35))),
    Rule(
        "seccompProfile_restricted",
        RESTRICTED,
        ((19, seccomp_restricted), (25, seccomp_restricted_25)),
        "seccompProfile_baseline",
    ),
)


def violations(level: str, minor: int, meta: Object, spec: Object) -> list[tuple[str, str]]:
    """What a pod does wrong at a level ("baseline" or "restricted") of a version (1.minor)."""
    overridden = (
        {r.overrides for r in RULES if r.level == RESTRICTED and r.overrides and r.versions[0][0] <= minor}
        if level == RESTRICTED
        else set()
    )
    found = []
    for rule in RULES:
        if (rule.level == RESTRICTED and level != RESTRICTED) or rule.id in overridden:
            continue
        chosen = None
        for first, check in rule.versions:
            if first <= minor:
                chosen = check
        result = chosen(meta, spec) if chosen is not None else None
        if result is not None:
            found.append(result)
    return found
