"""Figures: /stats/summary, /metrics/resource, /metrics/cadvisor, /metrics/probes and /metrics.

Sources: k8s.io/kubelet/pkg/apis/stats/v1alpha1; kubernetes pkg/kubelet/metrics/collectors/resource_metrics.go (names);
cadvisor's documented container metrics.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longshore.machinery.grpc import RpcError, Status
from longshore.machinery.http import Request, Response
from longshore.node.kubelet import placementfigures
from longshore.node.kubelet.kubelet import Kubelet
from longshore.node.kubelet.runtime import CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID
from longshore.node.kubelet.textformat import line
from longshore.node.kubelet.volumefigures import VolumeFigures

TEXT = "text/plain; version=0.0.4; charset=utf-8"
_TICKS = os.sysconf("SC_CLK_TCK")
_DISK_SECONDS = 60.0


def stamp(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cpu_seconds() -> float:
    """CPU time of the whole machine but idle and iowait."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / _TICKS


def _meminfo() -> dict[str, int]:
    found = {}
    for text in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = text.partition(":")
        found[name] = int(rest.split()[0]) * 1024
    return found


def _node_memory() -> dict[str, int]:
    info = _meminfo()
    usage = info["MemTotal"] - info["MemFree"]
    working = max(0, usage - info.get("Inactive(file)", 0))
    return {
        "availableBytes": info["MemTotal"] - working, "usageBytes": usage, "workingSetBytes": working,
        "rssBytes": info.get("AnonPages", 0),
    }  # fmt: skip


def _file_system(path: Path) -> dict[str, Any]:
    info = os.statvfs(path)
    return {
        "time": stamp(time.time_ns()),
        "availableBytes": info.f_bavail * info.f_frsize, "capacityBytes": info.f_blocks * info.f_frsize,
        "usedBytes": (info.f_blocks - info.f_bfree) * info.f_frsize,
        "inodesFree": info.f_favail, "inodes": info.f_files, "inodesUsed": info.f_files - info.f_ffree,
    }  # fmt: skip


def tree_usage(folder: Path) -> tuple[int, int]:
    """(bytes, inodes) under a folder. Blocking."""
    used = inodes = 0
    for where, names, files in os.walk(folder):
        inodes += len(names) + len(files)
        for name in files:
            try:
                used += os.lstat(os.path.join(where, name)).st_blocks * 512
            except OSError:
                continue
    return used, inodes


_VOLUME_METRICS = {
    "capacityBytes": "capacity_bytes", "availableBytes": "available_bytes", "usedBytes": "used_bytes",
    "inodes": "inodes", "inodesFree": "inodes_free", "inodesUsed": "inodes_used",
}  # fmt: skip


class Figures:
    """Reads figures when asked; nothing is collected in between."""

    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet = kubelet
        self._started = time.time()
        self.volumes = VolumeFigures(kubelet.config.root, kubelet.volumes, kubelet.csi, tree_usage)
        self._disk: dict[str, tuple[float, int, int]] = {}
        self._rates: dict[str, tuple[float, float]] = {}
        self.probe_results: dict[tuple[str, ...], int] = {}

    def pages(self) -> dict[str, Callable[[Request], Any]]:
        return {
            "/stats/summary": self._summary_page,
            "/metrics/resource": self._resource_page,
            "/metrics/cadvisor": self._cadvisor_page,
            "/metrics/probes": self._probes_page,
            "/metrics": self._own_page,
        }

    def count_probe(self, kind: str, result: str, pod: dict[str, Any], container: str) -> None:
        """One more result of a probe."""
        metadata = pod["metadata"]
        key = (kind.capitalize(), result, container, metadata["name"], metadata["namespace"], metadata["uid"])
        self.probe_results[key] = self.probe_results.get(key, 0) + 1
        if len(self.probe_results) > 10000:
            alive = set(self.kubelet.pods)
            self.probe_results = {k: v for k, v in self.probe_results.items() if k[5] in alive}

    # -- what the runtime says ---------------------------------------------------------------------------------------

    async def _containers(self) -> list[Any]:
        return list((await self.kubelet.runtime.call("ListContainerStats")).stats)

    async def _pod_stats(self) -> dict[str, Any]:
        """uid -> PodSandboxStats; empty where the runtime has none."""
        try:
            found = await self.kubelet.runtime.call("ListPodSandboxStats")
        except RpcError as error:
            if error.status is Status.UNIMPLEMENTED:
                return {}
            raise
        return {s.attributes.metadata.uid: s for s in found.stats}

    def _disk_of(self, uid: str) -> tuple[int, int]:
        when, used, inodes = self._disk.get(uid, (0.0, 0, 0))
        if time.monotonic() - when > _DISK_SECONDS or not when:
            used, inodes = tree_usage(self.kubelet.config.pod_folder(uid) / "volumes")
            self._disk[uid] = (time.monotonic(), used, inodes)
        return used, inodes

    def _rate(self, key: str, total: float) -> int:
        """Nanocores since the last time that anybody asked."""
        now = time.monotonic()
        last = self._rates.get(key)
        self._rates[key] = (now, total)
        if last is None or now - last[0] < 0.1:
            return 0
        return max(0, int((total - last[1]) / (now - last[0]) * 1e9))

    # -- /stats/summary ----------------------------------------------------------------------------------------------

    async def summary(self) -> dict[str, Any]:
        """The stats/v1alpha1 Summary."""
        containers, pods = await asyncio.gather(self._containers(), self._pod_stats())
        config = self.kubelet.config
        now = stamp(time.time_ns())
        cpu = _cpu_seconds()
        node = {
            "nodeName": config.node_name,
            "startTime": stamp(int((time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)) * 1e9)),
            "cpu": {"time": now, "usageNanoCores": self._rate("node", cpu), "usageCoreNanoSeconds": int(cpu * 1e9)},
            "memory": {"time": now, **_node_memory()},
            "fs": _file_system(config.root),
            "runtime": {"imageFs": _file_system(config.root), "containerFs": _file_system(config.root)},
            "rlimit": {
                "time": now, "maxpid": int(Path("/proc/sys/kernel/pid_max").read_text()),
                "curproc": sum(1 for n in os.listdir("/proc") if n.isdigit()),
            },
        }  # fmt: skip
        by_pod: dict[str, list[Any]] = {}
        for stats in containers:
            by_pod.setdefault(stats.attributes.labels.get(POD_UID, ""), []).append(stats)
        shown = []
        for uid, found in by_pod.items():
            labels = found[0].attributes.labels
            entry: dict[str, Any] = {
                "podRef": {"name": labels.get(POD_NAME, ""), "namespace": labels.get(POD_NAMESPACE, ""), "uid": uid},
                "startTime": now,
                "containers": [_container_summary(c) for c in found],
            }
            pod = self.kubelet.pods.get(uid)
            if pod is not None and (pod.get("status") or {}).get("startTime"):
                entry["startTime"] = pod["status"]["startTime"]
            if pod is not None:
                entry["volume"] = await self.volumes.of(pod, now)
            own = pods.get(uid)
            cpu_total = sum(c["cpu"]["usageCoreNanoSeconds"] for c in entry["containers"])
            cpu_rate = sum(c["cpu"]["usageNanoCores"] for c in entry["containers"])
            entry["cpu"] = {"time": now, "usageNanoCores": cpu_rate, "usageCoreNanoSeconds": cpu_total}
            names = ("availableBytes", "usageBytes", "workingSetBytes", "rssBytes", "pageFaults", "majorPageFaults")
            entry["memory"] = {
                "time": now,
                **{n: sum(c["memory"].get(n, 0) for c in entry["containers"]) for n in names},
            }
            if own is not None:
                network = own.linux.network
                if network.HasField("default_interface"):
                    first = network.default_interface
                    entry["network"] = {"time": now, **_interface(first), "interfaces": [
                        _interface(i) for i in (first, *network.interfaces)]}  # fmt: skip
                entry["process_stats"] = {"process_count": own.linux.process.process_count.value}
            used, inodes = await asyncio.to_thread(self._disk_of, uid)
            layers = sum(c.writable_layer.used_bytes.value for c in found)
            entry["ephemeral-storage"] = {**node["fs"], "usedBytes": used + layers, "inodesUsed": inodes}  # type: ignore[dict-item]
            shown.append(entry)
        for uid in [u for u in self._disk if u not in by_pod]:
            del self._disk[uid]
        return {"node": node, "pods": shown}

    async def _summary_page(self, _: Request) -> Response:
        return Response.json(await self.summary())

    # -- Prometheus --------------------------------------------------------------------------------------------------

    async def _resource_page(self, _: Request) -> Response:
        containers = await self._containers()
        out = [
            "# TYPE node_cpu_usage_seconds_total counter",
            line("node_cpu_usage_seconds_total", {}, _cpu_seconds()),
            "# TYPE node_memory_working_set_bytes gauge",
            line("node_memory_working_set_bytes", {}, _node_memory()["workingSetBytes"]),
        ]
        rows = [(_who(c), c) for c in containers]
        for name, kind, value in (
            ("container_cpu_usage_seconds_total", "counter", lambda c: c.cpu.usage_core_nano_seconds.value / 1e9),
            ("container_memory_working_set_bytes", "gauge", lambda c: c.memory.working_set_bytes.value),
            ("container_swap_usage_bytes", "gauge", lambda c: c.swap.swap_usage_bytes.value),
            ("container_start_time_seconds", "gauge", self._start_of),
        ):
            out.append(f"# TYPE {name} {kind}")
            out += [line(name, who, value(c), c.cpu.timestamp // 10**6) for who, c in rows]
        pods: dict[tuple[str, str], list[float]] = {}
        for who, c in rows:
            total = pods.setdefault((who["namespace"], who["pod"]), [0.0, 0.0])
            total[0] += c.cpu.usage_core_nano_seconds.value / 1e9
            total[1] += c.memory.working_set_bytes.value
        for index, (name, kind) in enumerate(
            (("pod_cpu_usage_seconds_total", "counter"), ("pod_memory_working_set_bytes", "gauge"))
        ):
            out.append(f"# TYPE {name} {kind}")
            out += [line(name, {"namespace": ns, "pod": pod}, total[index]) for (ns, pod), total in pods.items()]
        out += ["# TYPE resource_scrape_error gauge", line("resource_scrape_error", {}, 0)]
        return _page(out)

    def _start_of(self, stats: Any) -> float:
        uid = stats.attributes.labels.get(POD_UID, "")
        made = self.kubelet.statuses.get(uid) or {}
        for field in ("containerStatuses", "initContainerStatuses"):
            for entry in made.get(field) or ():
                if entry["name"] == stats.attributes.metadata.name and "running" in entry["state"]:
                    started = entry["state"]["running"]["startedAt"]
                    return datetime.fromisoformat(started.replace("Z", "+00:00")).timestamp()
        return 0.0

    async def _cadvisor_page(self, _: Request) -> Response:
        """What the runtime measures itself (CRI's own metrics), else what its statistics tell."""
        try:
            described = (await self.kubelet.runtime.call("ListMetricDescriptors")).descriptors
            found = (await self.kubelet.runtime.call("ListPodSandboxMetrics")).pod_metrics
        except RpcError as error:
            if error.status is not Status.UNIMPLEMENTED:
                raise
            return await self._cadvisor_from_stats()
        known = {d.name: d for d in described}
        by_name: dict[str, list[str]] = {}
        for pod in found:
            groups: Iterable[Any] = [pod.metrics, *(c.metrics for c in pod.container_metrics)]
            for metrics in groups:
                for metric in metrics:
                    keys = known[metric.name].label_keys if metric.name in known else ()
                    labels = dict(zip(keys, metric.label_values, strict=False))
                    by_name.setdefault(metric.name, []).append(
                        line(metric.name, labels, metric.value.value, metric.timestamp // 10**6)
                    )
        out = []
        for name, lines in sorted(by_name.items()):
            if name in known:
                out.append(f"# HELP {name} {known[name].help}")
            out.append(f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}")
            out += lines
        return _page(out)

    async def _cadvisor_from_stats(self) -> Response:
        containers = await self._containers()
        out: list[str] = []
        figures: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
            ("container_cpu_usage_seconds_total", "counter", lambda c: c.cpu.usage_core_nano_seconds.value / 1e9),
            ("container_memory_working_set_bytes", "gauge", lambda c: c.memory.working_set_bytes.value),
            ("container_memory_usage_bytes", "gauge", lambda c: c.memory.usage_bytes.value),
            ("container_memory_rss", "gauge", lambda c: c.memory.rss_bytes.value),
            ("container_fs_usage_bytes", "gauge", lambda c: c.writable_layer.used_bytes.value),
        )
        for name, kind, value in figures:
            out.append(f"# TYPE {name} {kind}")
            for c in containers:
                who = _who(c)
                labels = {"container": who["container"], "id": c.attributes.id, "image": "", "name": c.attributes.id,
                          "namespace": who["namespace"], "pod": who["pod"]}  # fmt: skip
                out.append(line(name, labels, value(c), c.cpu.timestamp // 10**6))
        return _page(out)

    async def _probes_page(self, _: Request) -> Response:
        out = ["# HELP prober_probe_total Cumulative number of a liveness, readiness or startup probe for a container by result.",
               "# TYPE prober_probe_total counter"]  # fmt: skip
        names = ("probe_type", "result", "container", "pod", "namespace", "pod_uid")
        out += [line("prober_probe_total", dict(zip(names, k, strict=True)), v) for k, v in self.probe_results.items()]
        return _page(out)

    async def _own_page(self, _: Request) -> Response:
        kubelet = self.kubelet
        running = [w for w in kubelet.workers.values() if not w.ending]
        process = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
        cpu = (int(process[11]) + int(process[12])) / _TICKS
        states: dict[str, int] = {}
        for uid in kubelet.workers:
            made = kubelet.statuses.get(uid) or {}
            for entry in made.get("containerStatuses") or ():
                word = {"running": "running", "terminated": "exited", "waiting": "created"}[next(iter(entry["state"]))]
                states[word] = states.get(word, 0) + 1
        out = [
            "# TYPE kubelet_running_pods gauge", line("kubelet_running_pods", {}, len(running)),
            "# TYPE kubelet_desired_pods gauge", line("kubelet_desired_pods", {"static": ""}, len(kubelet.pods)),
            "# TYPE kubelet_running_containers gauge",
            *(line("kubelet_running_containers", {"container_state": s}, n) for s, n in states.items()),
            "# TYPE kubelet_active_pods gauge", line("kubelet_active_pods", {"static": ""}, len(running)),
            "# TYPE kubelet_node_name gauge", line("kubelet_node_name", {"node": kubelet.config.node_name}, 1),
            "# TYPE kubernetes_build_info gauge",
            line("kubernetes_build_info", {"git_version": kubelet.config.version, "major": "1", "minor": "36"}, 1),
            "# TYPE process_cpu_seconds_total counter", line("process_cpu_seconds_total", {}, cpu),
            "# TYPE process_resident_memory_bytes gauge",
            line("process_resident_memory_bytes", {}, int(process[21]) * os.sysconf("SC_PAGE_SIZE")),
            "# TYPE process_start_time_seconds gauge", line("process_start_time_seconds", {}, self._started),
        ]  # fmt: skip
        out += placementfigures.lines(kubelet.placement)
        claims = [v for w in running for v in await self.volumes.of(w.pod, "") if "pvcRef" in v]
        for field, name in _VOLUME_METRICS.items():
            out.append(f"# TYPE kubelet_volume_stats_{name} gauge")
            for volume in claims:
                if field in volume:
                    ref = volume["pvcRef"]
                    labels = {"namespace": ref["namespace"], "persistentvolumeclaim": ref["name"]}
                    out.append(line(f"kubelet_volume_stats_{name}", labels, volume[field]))
        return _page(out)


def _page(lines: list[str]) -> Response:
    return Response(200, ("\n".join(lines) + "\n").encode(), (), TEXT)


def _who(stats: Any) -> dict[str, str]:
    labels = stats.attributes.labels
    return {
        "container": labels.get(CONTAINER_NAME) or stats.attributes.metadata.name,
        "namespace": labels.get(POD_NAMESPACE, ""),
        "pod": labels.get(POD_NAME, ""),
    }


def _container_summary(stats: Any) -> dict[str, Any]:
    cpu, memory, layer = stats.cpu, stats.memory, stats.writable_layer
    return {
        "name": stats.attributes.labels.get(CONTAINER_NAME) or stats.attributes.metadata.name,
        "startTime": stamp(cpu.timestamp),
        "cpu": {
            "time": stamp(cpu.timestamp), "usageNanoCores": cpu.usage_nano_cores.value,
            "usageCoreNanoSeconds": cpu.usage_core_nano_seconds.value,
        },
        "memory": {
            "time": stamp(memory.timestamp), "availableBytes": memory.available_bytes.value,
            "usageBytes": memory.usage_bytes.value, "workingSetBytes": memory.working_set_bytes.value,
            "rssBytes": memory.rss_bytes.value, "pageFaults": memory.page_faults.value,
            "majorPageFaults": memory.major_page_faults.value,
        },
        "rootfs": {
            "time": stamp(layer.timestamp), "usedBytes": layer.used_bytes.value, "inodesUsed": layer.inodes_used.value,
        },
        "swap": {"time": stamp(cpu.timestamp), "swapUsageBytes": stats.swap.swap_usage_bytes.value},
    }  # fmt: skip


def _interface(usage: Any) -> dict[str, Any]:
    return {
        "name": usage.name, "rxBytes": usage.rx_bytes.value, "rxErrors": usage.rx_errors.value,
        "txBytes": usage.tx_bytes.value, "txErrors": usage.tx_errors.value,
    }  # fmt: skip
