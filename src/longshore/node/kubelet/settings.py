"""A KubeletConfiguration's fields (kubelet.config.k8s.io/v1beta1), put into the kubelet's `Config`.

Source: kubernetes staging/src/k8s.io/kubelet/config/v1beta1/types.go, pkg/kubelet/apis/config/validation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from longshore.machinery import quantity
from longshore.node.kubelet.config import Config
from longshore.node.kubelet.pulls.records import check_allowlist

log = logging.getLogger("longshore.kubelet")
API_VERSION, KIND = "kubelet.config.k8s.io/v1beta1", "KubeletConfiguration"
#: system-cluster-critical: from which priority on shutdownGracePeriodCriticalPods counts
CRITICAL_PRIORITY = 2_000_000_000
_SIGNALS = frozenset(
    ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree",
     "containerfs.available", "containerfs.inodesFree", "allocatableMemory.available", "pid.available")
)  # fmt: skip


def _seconds(value: Any) -> float:
    from longshore.api.times import parse_duration

    return parse_duration(str(value)) / 1e9


def _bytes(value: Any) -> int:
    return quantity.parse(str(value)).value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ValueError("must be a list")
    return [str(v) for v in value]


def _table(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("must be a map")
    return {str(k): str(v) for k, v in value.items()}


def _thresholds(value: Any) -> dict[str, str]:
    found = _table(value)
    for signal in found:
        if signal not in _SIGNALS:
            raise ValueError(f"unknown eviction signal {signal}")
    return found


def _graces(value: Any) -> dict[str, float]:
    return {signal: _seconds(text) for signal, text in _table(value).items()}


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a number")
    return value


def _one_of(*known: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in known:
            raise ValueError(f'unknown policy: "{value}"')
        return str(value)

    return check


def _swap(value: Any) -> str:
    behavior = _table(value).get("swapBehavior") or "NoSwap"
    if behavior not in ("NoSwap", "LimitedSwap"):
        raise ValueError(f'swapBehavior ("{behavior}") must be one of: "", "LimitedSwap" or "NoSwap"')
    return behavior


def _gates(value: Any) -> dict[str, bool]:
    if not isinstance(value, Mapping):
        raise ValueError("must be a map")
    unused = sorted(set(value) - _GATES)
    if unused:
        log.warning("kubelet configuration: featureGates %s have no effect here", ", ".join(unused))
    return {str(name): _flag(on) for name, on in value.items()}


def _reserved_memory(value: Any) -> list[tuple[int, dict[str, str]]]:
    """reservedMemory: what of each NUMA node is nobody's own, each sort named once."""
    found: list[tuple[int, dict[str, str]]] = []
    for entry in value:
        number, limits = int(entry["numaNode"]), _table(entry["limits"])
        for kind, text in limits.items():
            if kind != "memory" and not kind.startswith("hugepages-"):
                raise ValueError(f'the limit type "{kind}" for NUMA node {number} is not supported, only [memory hugepages-<HugePageSize>] is accepted')  # fmt: skip
            if not quantity.parse(text).nanos:
                raise ValueError(f'reserved memory may not be zero for NUMA node {number} and resource "{kind}"')
            if any(node == number and kind in other for node, other in found):
                raise ValueError(f'the reserved memory has a duplicate value for NUMA node {number} and resource "{kind}"')  # fmt: skip
        found.append((number, limits))
    return found


def _periods(value: Any) -> list[tuple[int, float]]:
    return sorted((int(e["priority"]), float(e["shutdownGracePeriodSeconds"])) for e in value)


def _taints(value: Any) -> list[dict[str, str]]:
    return [_table(taint) for taint in value]


#: field -> (the Config's attribute, how its value is read)
_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "allowedUnsafeSysctls": ("allowed_unsafe_sysctls", _texts),
    "cgroupsPerQOS": ("cgroups_per_qos", _flag),
    "clusterDNS": ("cluster_dns", _texts),
    "clusterDomain": ("cluster_domain", str),
    "containerLogMaxFiles": ("container_log_max_files", _number),
    "containerLogMaxSize": ("container_log_max_size", _bytes),
    "cpuManagerPolicy": ("cpu_manager_policy", _one_of("none", "static")),
    "cpuManagerPolicyOptions": ("cpu_manager_options", _table),
    "cpuCFSQuota": ("cpu_cfs_quota", _flag),
    "evictionHard": ("eviction_hard", _thresholds),
    "evictionSoft": ("eviction_soft", _thresholds),
    "evictionSoftGracePeriod": ("eviction_soft_grace", _graces),
    "featureGates": ("feature_gates", _gates),
    "imageGCHighThresholdPercent": ("image_gc_high_percent", _number),
    "imageGCLowThresholdPercent": ("image_gc_low_percent", _number),
    "imageMinimumGCAge": ("image_minimum_age", _seconds),
    "imagePullCredentialsVerificationPolicy": (
        "image_verification",
        _one_of("NeverVerify", "NeverVerifyPreloadedImages", "NeverVerifyAllowlistedImages", "AlwaysVerify"),
    ),
    "kubeReserved": ("kube_reserved", _table),
    "maxPods": ("max_pods", _number),
    "memoryManagerPolicy": ("memory_manager_policy", _one_of("None", "Static")),
    "memorySwap": ("swap_behavior", _swap),
    "nodeLeaseDurationSeconds": ("lease_seconds", _number),
    "nodeStatusReportFrequency": ("status_report_seconds", _seconds),
    "nodeStatusUpdateFrequency": ("status_update_seconds", _seconds),
    "podPidsLimit": ("pod_pids_limit", _number),
    "preloadedImagesVerificationAllowlist": ("preloaded_allowlist", _texts),
    "registerNode": ("register_node", _flag),
    "registerWithTaints": ("register_with_taints", _taints),
    "reservedMemory": ("reserved_memory", _reserved_memory),
    "reservedSystemCPUs": ("reserved_system_cpus", str),
    "resolvConf": ("resolv_conf", str),
    "rotateCertificates": ("rotate_certificates", _flag),
    "serverTLSBootstrap": ("server_tls_bootstrap", _flag),
    "shutdownGracePeriodByPodPriority": ("shutdown_periods", _periods),
    "staticPodPath": ("static_pods", Path),
    "systemReserved": ("system_reserved", _table),
    "topologyManagerPolicy": (
        "topology_manager_policy",
        _one_of("none", "best-effort", "restricted", "single-numa-node"),
    ),
    "topologyManagerPolicyOptions": ("topology_manager_options", _table),
    "topologyManagerScope": ("topology_manager_scope", _one_of("container", "pod")),
}
#: the feature gates that something here asks for
_GATES = frozenset(("CPUManagerPolicyAlphaOptions",))
#: What upstream's kubelet takes and this one has no use for; told in the log, as nothing comes of it.
_UNUSED = frozenset(
    [
        "address",
        "allowedKernelModules",
        "authentication",
        "authorization",
        "cgroupDriver",
        "cgroupRoot",
        "configMapAndSecretChangeDetectionStrategy",
        "containerLogMaxWorkers",
        "containerLogMonitorInterval",
        "containerRuntimeEndpoint",
        "contentType",
        "cpuCFSQuotaPeriod",
        "cpuManagerReconcilePeriod",
        "crashLoopBackOff",
        "enableContentionProfiling",
        "enableControllerAttachDetach",
        "enableDebugFlagsHandler",
        "enableDebuggingHandlers",
        "enableProfilingHandler",
        "enableServer",
        "enableSystemLogHandler",
        "enableSystemLogQuery",
        "enforceNodeAllocatable",
        "eventBurst",
        "eventRecordQPS",
        "evictionMaxPodGracePeriod",
        "evictionMinimumReclaim",
        "evictionPressureTransitionPeriod",
        "failCgroupV1",
        "failSwapOn",
        "fileCheckFrequency",
        "hairpinMode",
        "healthzBindAddress",
        "healthzPort",
        "httpCheckFrequency",
        "imageMaximumGCAge",
        "imageServiceEndpoint",
        "iptablesDropBit",
        "iptablesMasqueradeBit",
        "kernelMemcgNotification",
        "kubeAPIBurst",
        "kubeAPIQPS",
        "kubeReservedCgroup",
        "kubeletCgroups",
        "localStorageCapacityIsolation",
        "logging",
        "makeIPTablesUtilChains",
        "maxOpenFiles",
        "maxParallelImagePulls",
        "memoryThrottlingFactor",
        "mergeDefaultEvictionSettings",
        "oomScoreAdj",
        "podCIDR",
        "podLogsDir",
        "podsPerCore",
        "port",
        "protectKernelDefaults",
        "providerID",
        "qosReserved",
        "readOnlyPort",
        "registryBurst",
        "registryPullQPS",
        "runOnce",
        "runtimeRequestTimeout",
        "seccompDefault",
        "serializeImagePulls",
        "showHiddenMetricsForVersion",
        "singleProcessOOMKill",
        "staticPodURL",
        "staticPodURLHeader",
        "streamingConnectionIdleTimeout",
        "syncFrequency",
        "systemCgroups",
        "systemReservedCgroup",
        "tlsCertFile",
        "tlsCipherSuites",
        "tlsMinVersion",
        "tlsPrivateKeyFile",
        "tracing",
        "userNamespaces",
        "volumePluginDir",
        "volumeStatsAggPeriod",
    ]
)


def read(data: bytes) -> dict[str, Any]:
    """The fields of a KubeletConfiguration in YAML or JSON. Raises ValueError."""
    from longshore.api.decoding import parse_yaml

    found = parse_yaml(data).value
    if not isinstance(found, dict) or found.get("kind") != KIND or found.get("apiVersion") != API_VERSION:
        raise ValueError(f"not a {KIND} of {API_VERSION}")
    return {k: v for k, v in found.items() if k not in ("kind", "apiVersion", "metadata")}


def apply(config: Config, fields: Mapping[str, Any]) -> None:
    """Put fields, named and written as in a KubeletConfiguration, into a Config.

    Raises ValueError for what upstream's kubelet refuses.
    """
    for name, value in fields.items():
        if name in ("shutdownGracePeriod", "shutdownGracePeriodCriticalPods"):
            continue
        if name not in _FIELDS:
            if name not in _UNUSED:
                raise ValueError(f'strict decoding error: unknown field "{name}"')
            log.warning("kubelet configuration: %s has no effect here", name)
            continue
        attribute, convert = _FIELDS[name]
        try:
            setattr(config, attribute, convert(value))
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"invalid configuration: {name}: {error}") from error
    _shutdown(config, fields)
    check_allowlist(config.preloaded_allowlist)
    if config.preloaded_allowlist and config.image_verification != "NeverVerifyAllowlistedImages":
        raise ValueError("invalid configuration: can't set `preloadedImagesVerificationAllowlist` if `imagePullCredentialsVerificationPolicy` is not \"NeverVerifyAllowlistedImages\"")  # fmt: skip
    for signal in config.eviction_soft:
        if signal not in config.eviction_soft_grace:
            raise ValueError(f"grace period must be specified for the soft eviction threshold {signal}")
    low, high = config.image_gc_low_percent, config.image_gc_high_percent
    for name, percent in (("imageGCLowThresholdPercent", low), ("imageGCHighThresholdPercent", high)):
        if not 0 <= percent <= 100:
            raise ValueError(f"invalid configuration: {name} ({percent}) must be between 0 and 100, inclusive")
    if low >= high:
        raise ValueError(f"invalid configuration: imageGCLowThresholdPercent ({low}) must be less than imageGCHighThresholdPercent ({high})")  # fmt: skip


def _shutdown(config: Config, fields: Mapping[str, Any]) -> None:
    """shutdownGracePeriod and -CriticalPods as periods by priority, which is what they stand for."""
    try:
        total = _seconds(fields.get("shutdownGracePeriod") or "0s")
        critical = _seconds(fields.get("shutdownGracePeriodCriticalPods") or "0s")
    except ValueError as error:
        raise ValueError(f"invalid configuration: {error}") from error
    if total < critical:
        raise ValueError(f"invalid configuration: shutdownGracePeriod {total:g}s must be >= shutdownGracePeriodCriticalPods {critical:g}s")  # fmt: skip
    if total > 0 and config.shutdown_periods:
        raise ValueError("invalid configuration: Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time")  # fmt: skip
    if total > 0:
        config.shutdown_periods = [(0, total - critical), (CRITICAL_PRIORITY, critical)]
