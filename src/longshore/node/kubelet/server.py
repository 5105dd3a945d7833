"""The kubelet as a process: put together, registered, serving until it is told to end."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from longshore.client.config import Config as ClientConfig
from longshore.client.config import load, load_pair
from longshore.client.events import EventRecorder
from longshore.client.rest import Client
from longshore.machinery import pki
from longshore.machinery.grpc import RpcError
from longshore.machinery.http import Request, Response, Server, server_context
from longshore.node.kubelet import certificates, cgroups, resources
from longshore.node.kubelet.api import KubeletApi, Pages
from longshore.node.kubelet.auth import Gate
from longshore.node.kubelet.config import Config
from longshore.node.kubelet.figures import Figures
from longshore.node.kubelet.kubelet import Kubelet
from longshore.node.kubelet.nodestatus import NodeStatus
from longshore.node.kubelet.runtime import Runtime
from longshore.node.kubelet.settings import apply
from longshore.node.kubelet.upkeep import Upkeep

log = logging.getLogger("longshore.kubelet")


async def serve(
    *,
    kubeconfig: Path | str,
    node_name: str,
    node_ip: str | Sequence[str],
    cri_endpoint: str,
    root_dir: Path,
    pod_logs_dir: Path,
    cluster_dns: Sequence[str] = (),
    cluster_domain: str = "cluster.local",
    client_ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    address: str = "0.0.0.0",
    port: int = 10250,
    cgroup_root: str = "",
    node_labels: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    image_credential_provider_config: Path | None = None,
    image_credential_provider_bin_dir: Path | None = None,
    ready: asyncio.Event | None = None,
) -> None:
    """Run a node's pods until cancelled; its containers go on then.

    Flags have upstream's names. kubeconfig: who the node is (system:node:NAME in system:nodes). node_ip: its addresses,
    the primary first. cri_endpoint: unix:///path of the runtime. root_dir: the kubelet's state; pod_logs_dir: as
    /var/log/pods. certificate, key: of the port (None: made here, self-signed). client_ca: who signs the API server's
    client certificate. cgroup_root: under which "kubepods" is made ("": one that no other node of the machine has).
    settings: fields of a KubeletConfiguration, named and written as there; where it gives shutdown periods, all pods are
    ended within them when this is cancelled, else they go on without a kubelet. ready: set once the first lists are there.

    Raises ValueError for values that upstream's kubelet refuses.
    """
    ips = [node_ip] if isinstance(node_ip, str) else list(node_ip)
    config = Config(
        node_name=node_name,
        node_ips=ips,
        root=Path(root_dir),
        pod_logs=Path(pod_logs_dir),
        cluster_dns=list(cluster_dns),
        cluster_domain=cluster_domain,
        address=address,
        port=port,
        cgroup_root=cgroup_root or default_cgroup_root(node_name, Path(root_dir)),
        node_labels=dict(node_labels or {}),
        credential_providers=image_credential_provider_config,
        credential_provider_folder=image_credential_provider_bin_dir,
    )
    apply(config, settings or {})
    config.root.mkdir(parents=True, exist_ok=True, mode=0o750)
    config.pod_logs.mkdir(parents=True, exist_ok=True, mode=0o755)
    client = Client(_identity(config, kubeconfig), user_agent="longshore-kubelet/v1.36.1")
    runtime = Runtime(cri_endpoint)
    recorder = EventRecorder(client, "kubelet", host=node_name)
    kubelet = Kubelet(config, client, runtime, recorder)
    upkeep = Upkeep(kubelet, lambda: node.nudge())
    node = NodeStatus(
        config,
        client,
        runtime,
        recorder,
        healthy=kubelet.unhealthy,
        pressures=upkeep.pressures.conditions,
        devices=kubelet.devices.figures,
        volumes=kubelet.csi.in_use,
    )
    kubelet.csi.report = node.report
    kubelet.devices_changed = node.nudge
    kubelet.allocatable = node.allocatable
    kubelet.supports_users = node.supports_users
    figures = Figures(kubelet)
    kubelet.probes.metric = figures.count_probe
    api = KubeletApi(kubelet, Gate(client, node_name), {**_pages(config), **figures.pages()})
    context, pair = await _port_context(config, certificate, key, client_ca)
    http = Server(api.handle)
    try:
        await asyncio.to_thread(
            cgroups.ensure_qos,
            config.cgroup_root,
            resources.milli(node.allocatable["cpu"]),
            resources.amount(node.allocatable["memory"]),
        )
        await _wait_for(runtime)
        await node.ask_runtime()
        await node.ask_images()
        images = (await runtime.image_call("ListImages")).images
        await asyncio.to_thread(kubelet.pull_records.settle, images)
        config.port = await http.listen_tcp(address, port, ssl=context)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(kubelet.run())
            await _first_of(kubelet.synced, running)
            # Only now: a node that was Ready before a restart must not tell that it is not, or its pods are marked so.
            await node.register()
            tasks = [
                running,
                group.create_task(_follow_node(kubelet, node)),
                group.create_task(node.renew_forever()),
                group.create_task(node.run()),
                group.create_task(upkeep.run()),
                *(group.create_task(rotation.run()) for rotation in _rotations(config, client, context, pair)),
            ]
            group.create_task(_report_ready(kubelet, node, ready))
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                # Asked to go, and not because one of the tasks has failed.
                if config.shutdown_periods and not any(task.done() for task in tasks):
                    await kubelet.shut_down()
                raise
    finally:
        await http.close()
        await api.close()
        await recorder.stop()
        runtime.close()
        await client.close()


def default_cgroup_root(node_name: str, root: Path) -> str:
    """A cgroup of this node's own, also beside another cluster's node of the same name."""
    return f"/longshore-{node_name}-{hashlib.blake2b(os.fsencode(root.resolve()), digest_size=3).hexdigest()}"


async def _first_of(event: asyncio.Event, running: asyncio.Task[None]) -> None:
    """Return when the event is set; raise what the task raised when it ends before."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((waiting, running), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if running.done():
        running.result()


async def _wait_for(runtime: Runtime) -> None:
    """Return when the runtime answers."""
    pause = 0.05
    while True:
        try:
            await runtime.hello()
            return
        except RpcError as error:
            log.log(
                logging.INFO if pause > 1 else logging.DEBUG, "waiting for the container runtime: %s", error.message
            )
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 2.0)


async def _follow_node(kubelet: Kubelet, node: NodeStatus) -> None:
    """Give the runtime the node's pod ranges as they are known, and pods the network's state."""
    changed = asyncio.Event()
    kubelet.node.on(lambda _: changed.set(), lambda *_: changed.set(), None)
    given: list[str] = []
    while True:
        await changed.wait()
        changed.clear()
        obj = kubelet.node.store.named("", kubelet.config.node_name)
        if obj is None:
            continue
        node.seen(obj)
        spec = obj.get("spec") or {}
        ranges = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
        if ranges and ranges != given:
            try:
                await node.give_pod_cidr(obj)
                given = ranges
            except RpcError as error:
                log.warning("pod ranges %s: %s", ranges, error.message)
                await asyncio.sleep(1)
                changed.set()
                continue
            await node.ask_runtime()
            kubelet.set_network(node.network_problem)


async def _report_ready(kubelet: Kubelet, node: NodeStatus, ready: asyncio.Event | None) -> None:
    """Tell the node's readiness as soon as the first lists are there."""
    kubelet.set_network(node.network_problem)
    await kubelet.synced.wait()
    node.nudge()
    if ready is not None:
        ready.set()


def _pages(config: Config) -> Pages:
    """Answers by path that need nothing of the pods."""

    async def configz(_: Request) -> Response:
        shown: dict[str, Any] = {
            "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1", "address": config.address,
            "port": config.port, "clusterDomain": config.cluster_domain, "clusterDNS": config.cluster_dns,
            "maxPods": config.max_pods, "podPidsLimit": config.pod_pids_limit, "cgroupsPerQOS": config.cgroups_per_qos,
            "cgroupDriver": "cgroupfs", "cpuCFSQuota": config.cpu_cfs_quota, "evictionHard": config.eviction_hard,
            "resolvConf": config.resolv_conf, "containerLogMaxFiles": config.container_log_max_files,
        }  # fmt: skip
        return Response(200, orjson.dumps({"kubeletconfig": shown}), (), "application/json")

    return {"/configz": configz}


async def _port_context(
    config: Config, certificate: Path | None, key: Path | None, client_ca: Path | None
) -> tuple[ssl.SSLContext, pki.KeyPair]:
    """The port's TLS context, and the certificate in it."""
    pair = await asyncio.to_thread(certificates.serving, config, certificate, key)
    store = certificates.Store(config.root / "pki", "kubelet-server")
    pair = await asyncio.to_thread(store.newest, pair, subject=False)
    context = server_context(client_ca=client_ca)
    load_pair(context, pair.certificate, pair.key)
    return context, pair


def _rotations(
    config: Config, client: Client, context: ssl.SSLContext, pair: pki.KeyPair
) -> Iterator[certificates.Rotation]:
    """The certificates that are renewed, as the settings say."""
    folder, name, own = config.root / "pki", config.node_name, client.config
    if config.rotate_certificates and own.certificate and own.key:
        yield certificates.Rotation(
            client,
            certificates.Store(folder, "kubelet-client"),
            name,
            pki.KeyPair(own.certificate, own.key),
            lambda new: client.renew(new.certificate, new.key),
        )
    if config.server_tls_bootstrap:
        yield certificates.Rotation(
            client,
            certificates.Store(folder, "kubelet-server"),
            name,
            pair,
            lambda new: load_pair(context, new.certificate, new.key),
            names=[name, *config.node_ips],
        )


def _identity(config: Config, kubeconfig: Path | str) -> ClientConfig:
    """Who the node is: the kubeconfig's certificate, or the one that it was renewed with. Blocking."""
    who = load(kubeconfig)
    who.source = None  # it is renewed here, not by whoever writes the file
    if who.certificate and who.key:
        store = certificates.Store(config.root / "pki", "kubelet-client")
        pair = store.newest(pki.KeyPair(who.certificate, who.key), subject=True)
        who.certificate, who.key = pair.certificate, pair.key
    return who
