"""Pods as CRI configurations: the sandbox's and each container's.

Sources: kubernetes pkg/kubelet/kuberuntime/{kuberuntime_sandbox,kuberuntime_container,security_context}*.go,
pkg/kubelet/kubelet_pods.go (mounts, hostname, /etc/hosts), pkg/kubelet/network/dns.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from longshore.node.kubelet import resources, swapping
from longshore.node.kubelet import runtime as rt
from longshore.node.kubelet.config import Config
from longshore.wire.cri import cri

Pod = dict[str, Any]
MASKED = ["/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
          "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
          "/sys/devices/virtual/powercap"]  # fmt: skip
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_PROTOCOLS = {"TCP": 0, "UDP": 1, "SCTP": 2}
MAX_SEARCHES, MAX_SERVERS, MAX_SEARCH_CHARS = 32, 3, 2048


def host_network(pod: Pod) -> bool:
    return bool(pod["spec"].get("hostNetwork"))


def hostname(pod: Pod, node_name: str, cluster_domain: str) -> tuple[str, str]:
    """(the containers' hostname, the domain that makes it a full name, "" when it has none)."""
    spec = pod["spec"]
    if spec.get("hostnameOverride"):
        return spec["hostnameOverride"], ""
    name = spec.get("hostname") or pod["metadata"]["name"]
    domain = ""
    if spec.get("subdomain"):
        domain = f"{spec['subdomain']}.{pod['metadata']['namespace']}.svc.{cluster_domain}"
    if host_network(pod):
        name = os.uname().nodename
    name = name[:63].rstrip("-.")
    if spec.get("setHostnameAsFQDN") and domain:
        name = f"{name}.{domain}"
    return name, domain


def dns(pod: Pod, config: Config) -> Any:
    """The pod's DNSConfig by its dnsPolicy and dnsConfig; None leaves the runtime's own."""
    policy = pod["spec"].get("dnsPolicy") or "ClusterFirst"
    servers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    host_servers, host_searches, host_options = resolv_conf(config.resolv_conf)
    if policy == "ClusterFirst" and host_network(pod):
        policy = "Default"
    if policy in ("ClusterFirst", "ClusterFirstWithHostNet"):
        if config.cluster_dns:
            servers, options = list(config.cluster_dns), ["ndots:5"]
            namespace, domain = pod["metadata"]["namespace"], config.cluster_domain
            if domain:
                searches = [f"{namespace}.svc.{domain}", f"svc.{domain}", domain]
            searches += [s for s in host_searches if s not in searches]
        else:
            policy = "Default"
    if policy == "Default":
        servers, searches, options = host_servers, host_searches, host_options
    extra = pod["spec"].get("dnsConfig") or {}
    servers += [s for s in extra.get("nameservers") or () if s not in servers]
    searches += [s for s in extra.get("searches") or () if s not in searches]
    named = {o.partition(":")[0]: o for o in options}
    for option in extra.get("options") or ():
        named[option["name"]] = f"{option['name']}:{option['value']}" if option.get("value") else option["name"]
    while len(" ".join(searches)) > MAX_SEARCH_CHARS:
        searches.pop()
    return cri.DNSConfig(servers=servers[:MAX_SERVERS], searches=searches[:MAX_SEARCHES], options=list(named.values()))


def resolv_conf(path: str) -> tuple[list[str], list[str], list[str]]:
    """(nameservers, search domains, options) of a resolv.conf; empty when it cannot be read."""
    servers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    try:
        text = Path(path).read_text() if path else ""
    except OSError:
        return servers, searches, options
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            servers.append(words[1])
        elif words[0] == "search":
            searches = [w.rstrip(".") or "." for w in words[1:]]
        elif words[0] == "options":
            options = words[1:]
    return servers, searches, options


def _namespaces(pod: Pod, container: Mapping[str, Any] | None = None, target: str = "") -> Any:
    spec = pod["spec"]
    options = cri.NamespaceOption()
    options.network = cri.NODE if spec.get("hostNetwork") else cri.POD
    options.ipc = cri.NODE if spec.get("hostIPC") else cri.POD
    if spec.get("hostPID"):
        options.pid = cri.NODE
    elif spec.get("shareProcessNamespace"):
        options.pid = cri.POD
    else:
        options.pid = cri.CONTAINER
    if target:
        options.pid, options.target_id = cri.TARGET, target
    return options


def _seccomp(profile: Mapping[str, Any] | None, root: Path) -> Any:
    kind = (profile or {}).get("type")
    if kind == "RuntimeDefault":
        return cri.SecurityProfile(profile_type=cri.RuntimeDefault)
    if kind == "Localhost":
        path = root / "seccomp" / str((profile or {}).get("localhostProfile") or "")
        return cri.SecurityProfile(profile_type=cri.Localhost, localhost_ref=str(path))
    return cri.SecurityProfile(profile_type=cri.Unconfined)


def _apparmor(profile: Mapping[str, Any] | None) -> Any:
    kind = (profile or {}).get("type")
    if kind == "Localhost":
        return cri.SecurityProfile(
            profile_type=cri.Localhost, localhost_ref=str((profile or {}).get("localhostProfile"))
        )
    if kind == "Unconfined":
        return cri.SecurityProfile(profile_type=cri.Unconfined)
    return cri.SecurityProfile(profile_type=cri.RuntimeDefault)


def sandbox_config(pod: Pod, attempt: int, config: Config, cgroup_parent: str) -> Any:
    """The PodSandboxConfig of a pod."""
    metadata, spec = pod["metadata"], pod["spec"]
    context = spec.get("securityContext") or {}
    name, _ = hostname(pod, config.node_name, config.cluster_domain)
    security = cri.LinuxSandboxSecurityContext(
        namespace_options=_namespaces(pod),
        privileged=any((c.get("securityContext") or {}).get("privileged") for c in resources.all_containers(pod)),
        seccomp=cri.SecurityProfile(profile_type=cri.RuntimeDefault),
        supplemental_groups=_groups(context),
    )
    if context.get("supplementalGroupsPolicy") == "Strict":
        security.supplemental_groups_policy = cri.Strict
    if context.get("runAsUser") is not None:
        security.run_as_user.value = context["runAsUser"]
    if context.get("runAsGroup") is not None:
        security.run_as_group.value = context["runAsGroup"]
    linux = cri.LinuxPodSandboxConfig(
        cgroup_parent=cgroup_parent,
        security_context=security,
        sysctls={s["name"]: s["value"] for s in context.get("sysctls") or ()},
    )
    ports = [
        cri.PortMapping(
            protocol=_PROTOCOLS.get(port.get("protocol") or "TCP", 0),
            container_port=port["containerPort"],
            host_port=0 if host_network(pod) else port.get("hostPort") or 0,
            host_ip=port.get("hostIP") or "",
        )
        for group in ("initContainers", "containers")
        for container in spec.get(group) or ()
        if group == "containers" or resources.is_sidecar(container)
        for port in container.get("ports") or ()
    ]
    return cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(
            name=metadata["name"], namespace=metadata["namespace"], uid=metadata["uid"], attempt=attempt
        ),
        hostname="" if host_network(pod) else name,
        log_directory=str(config.pod_log_folder(metadata["namespace"], metadata["name"], metadata["uid"])),
        dns_config=dns(pod, config),
        port_mappings=ports,
        labels={
            **(metadata.get("labels") or {}),
            rt.POD_NAME: metadata["name"], rt.POD_NAMESPACE: metadata["namespace"], rt.POD_UID: metadata["uid"],
        },
        annotations=dict(metadata.get("annotations") or {}),
        linux=linux,
    )  # fmt: skip


def _groups(context: Mapping[str, Any]) -> list[int]:
    groups = list(context.get("supplementalGroups") or ())
    if context.get("fsGroup") is not None and context["fsGroup"] not in groups:
        groups.append(context["fsGroup"])
    return groups


def effective_context(pod: Pod, container: Mapping[str, Any]) -> dict[str, Any]:
    """The container's security context with the pod's values where it has none of its own."""
    outer = pod["spec"].get("securityContext") or {}
    found = dict(container.get("securityContext") or {})
    for name in ("runAsUser", "runAsGroup", "runAsNonRoot", "seccompProfile", "appArmorProfile", "seLinuxOptions"):
        if found.get(name) is None and outer.get(name) is not None:
            found[name] = outer[name]
    return found


def security_context(
    pod: Pod, container: Mapping[str, Any], root: Path, *, image_user: tuple[int | None, str], target: str
) -> Any:
    """The LinuxContainerSecurityContext. image_user: (numeric uid, or None and a name) that the image asks for."""
    outer = pod["spec"].get("securityContext") or {}
    context = effective_context(pod, container)
    found = cri.LinuxContainerSecurityContext(
        privileged=bool(context.get("privileged")),
        namespace_options=_namespaces(pod, container, target),
        readonly_rootfs=bool(context.get("readOnlyRootFilesystem")),
        supplemental_groups=_groups(outer),
        seccomp=_seccomp(context.get("seccompProfile"), root),
    )
    if context.get("appArmorProfile"):
        found.apparmor.CopyFrom(_apparmor(context["appArmorProfile"]))
    if outer.get("supplementalGroupsPolicy") == "Strict":
        found.supplemental_groups_policy = cri.Strict
    if context.get("runAsUser") is not None:
        found.run_as_user.value = context["runAsUser"]
    elif image_user[0] is not None:
        found.run_as_user.value = image_user[0]
    elif image_user[1]:
        found.run_as_username = image_user[1]
    if context.get("runAsGroup") is not None:
        found.run_as_group.value = context["runAsGroup"]
    capabilities = context.get("capabilities") or {}
    found.capabilities.add_capabilities.extend(capabilities.get("add") or ())
    found.capabilities.drop_capabilities.extend(capabilities.get("drop") or ())
    escalate = context.get("allowPrivilegeEscalation")
    found.no_new_privs = escalate is False
    if context.get("procMount") != "Unmasked":
        found.masked_paths.extend(MASKED)
        found.readonly_paths.extend(READONLY)
    return found


def container_resources(
    pod: Pod, container: Mapping[str, Any], memory_capacity: int, cfs_quota: bool = True, swap: str = ""
) -> Any:
    """The LinuxContainerResources of a container's requests and limits. swap: the node's memorySwap.swapBehavior."""
    request, limit = (resources.requested(container, "cpu", kind) for kind in ("requests", "limits"))
    level = ((pod["spec"].get("resources") or {}).get("limits")) or {}
    memory = resources.requested(container, "memory", "limits")
    if not memory and "memory" in level:
        memory = resources.amount(level["memory"])
    cpu = limit or (resources.milli(level["cpu"]) if "cpu" in level else 0)
    found = cri.LinuxContainerResources(
        cpu_shares=resources.shares(limit if not request and limit else request),
        memory_limit_in_bytes=memory,
        oom_score_adj=resources.oom_score_adj(pod, container, memory_capacity),
    )
    if cfs_quota:
        found.cpu_period = resources.PERIOD
        found.cpu_quota = resources.quota(cpu)
    sizes = _page_sizes()
    for size, bytes_ in resources.hugepage_limits(container, sizes):
        found.hugepage_limits.add(page_size=size, limit=bytes_)
    swapping.limit(found, pod, container, swap, memory_capacity)
    return found


def _page_sizes() -> list[str]:
    """Huge page sizes of the node in cgroup's words ("2MB")."""
    try:
        names = os.listdir("/sys/kernel/mm/hugepages")
    except OSError:
        return []
    sizes = []
    for name in names:
        kilobytes = int(name.removeprefix("hugepages-").removesuffix("kB"))
        sizes.append(f"{kilobytes // 2**20}GB" if kilobytes >= 2**20 else f"{kilobytes // 1024}MB" if kilobytes >= 1024 else f"{kilobytes}KB")  # fmt: skip
    return sizes


def container_labels(pod: Pod, container: Mapping[str, Any]) -> dict[str, str]:
    metadata = pod["metadata"]
    return {
        rt.POD_NAME: metadata["name"], rt.POD_NAMESPACE: metadata["namespace"], rt.POD_UID: metadata["uid"],
        rt.CONTAINER_NAME: container["name"],
    }  # fmt: skip


def container_annotations(pod: Pod, container: Mapping[str, Any], restarts: int) -> dict[str, str]:
    """What makes a container understandable without its pod."""
    found = {
        rt.HASH: rt.container_hash(container),
        rt.RESTART_COUNT: str(restarts),
        rt.MESSAGE_PATH: container.get("terminationMessagePath") or "",
        rt.MESSAGE_POLICY: container.get("terminationMessagePolicy") or "File",
    }
    metadata = pod["metadata"]
    if metadata.get("deletionGracePeriodSeconds") is not None:
        found[rt.DELETION_GRACE] = str(metadata["deletionGracePeriodSeconds"])
    if pod["spec"].get("terminationGracePeriodSeconds") is not None:
        found[rt.GRACE] = str(pod["spec"]["terminationGracePeriodSeconds"])
    stop = (container.get("lifecycle") or {}).get("preStop")
    if stop:
        found[rt.PRE_STOP] = orjson.dumps(stop).decode()
    if container.get("ports"):
        found[rt.PORTS] = orjson.dumps(container["ports"]).decode()
    return found


def hosts_file(pod: Pod, ips: list[str], config: Config) -> str:
    """The content of a pod's /etc/hosts."""
    lines: list[str] = []
    if host_network(pod):
        try:
            text = Path("/etc/hosts").read_text()
        except OSError:
            text = ""
        lines = ["# Kubernetes-managed hosts file (host network).", *text.splitlines()]
    else:
        name, domain = hostname(pod, config.node_name, config.cluster_domain)
        lines = [
            "# Kubernetes-managed hosts file.", "127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback",
            "fe00::0\tip6-localnet", "fe00::0\tip6-mcastprefix", "fe00::1\tip6-allnodes", "fe00::2\tip6-allrouters",
        ]  # fmt: skip
        short = name.partition(".")[0] if domain else name
        for ip in ips:
            lines.append(f"{ip}\t{short}.{domain}\t{short}" if domain else f"{ip}\t{name}")
    aliases = pod["spec"].get("hostAliases") or ()
    if aliases:
        lines += ["", "# Entries added by HostAliases."]
        lines += [f"{alias['ip']}\t" + "\t".join(alias.get("hostnames") or ()) for alias in aliases]
    return "\n".join(lines) + "\n"


def termination_file(config: Config, pod: Pod, container: Mapping[str, Any]) -> Path:
    """Make the file that a container's termination message goes to."""
    folder = config.pod_folder(pod["metadata"]["uid"]) / "containers" / container["name"]
    folder.mkdir(parents=True, exist_ok=True)
    path: Path = folder / secrets.token_hex(4)
    path.touch()
    os.chmod(path, 0o666)
    return path
