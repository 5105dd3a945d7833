"""`longshore apiserver`: the API server alone on its own certificates, with upstream's flag names."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longshore.client.config import ConfigError
from longshore.machinery import pki
from longshore.machinery.heap import keep_small
from longshore.master.apiserver.audit import flags as audit_flags
from longshore.master.apiserver.auth import flags
from longshore.master.apiserver.config import Config
from longshore.master.apiserver.configfile import ConfigurationError
from longshore.master.apiserver.flagtypes import boolean, whole_seconds
from longshore.master.apiserver.server import APIServer, serve

log = logging.getLogger("longshore.apiserver")
SETTLE_SECONDS = 1.0
COLLECT = (20_000, 20, 20)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="longshore apiserver", description="Serve the Kubernetes API on the embedded store."
    )
    add = p.add_argument
    add("--data-dir", type=Path, default=None, help="state and certificates; without it everything is in memory")
    add("--bind-address", default="127.0.0.1")
    add("--secure-port", type=int, default=6443, help="0 takes a free one")
    add("--advertise-address", default="")
    add("--write-kubeconfig", type=Path, default=None, help="write an administrator's kubeconfig to this file")
    add("--etcd-servers", default="", help="comma-separated URLs of a real etcd instead of the embedded store")
    add("--etcd-cafile", type=Path)
    add("--etcd-certfile", type=Path)
    add("--etcd-keyfile", type=Path)
    add("--tls-cert-file", type=Path)
    add("--tls-private-key-file", type=Path)
    add("--client-ca-file", type=Path)
    add("--service-account-key-file", type=Path, action="append", default=[])
    add("--service-account-signing-key-file", type=Path)
    add("--service-account-issuer", default="https://kubernetes.default.svc.cluster.local")
    add("--api-audiences", default="")
    add("--service-cluster-ip-range", default="10.96.0.0/16")
    add("--service-node-port-range", default="30000-32767")
    add("--kubelet-client-certificate", type=Path)
    add("--kubelet-client-key", type=Path)
    add("--kubelet-certificate-authority", type=Path)
    add("--requestheader-client-ca-file", type=Path)
    add("--proxy-client-cert-file", type=Path)
    add("--proxy-client-key-file", type=Path)
    add("--authorization-mode", default="Node,RBAC")
    add(
        "--bootstrap-rbac-file",
        type=Path,
        help="JSON list of roles and bindings to make, where missing, before serving",
    )
    add("--anonymous-auth", type=boolean, default=True)
    add("--enable-admission-plugins", default="")
    add("--disable-admission-plugins", default="")
    add("--admission-control-config-file", type=Path)
    add("--encryption-provider-config", type=Path)
    add("--encryption-provider-config-automatic-reload", type=boolean, nargs="?", const=True, default=False)
    add("--etcd-compaction-interval", type=whole_seconds, default=300)
    add("--event-ttl", type=whole_seconds, default=3600)
    add("--max-requests-inflight", type=int, default=400)
    add("--max-mutating-requests-inflight", type=int, default=200)
    flags.add(p)
    audit_flags.add(p)
    add("-v", "--v", type=int, default=0, dest="verbosity")
    return p


def prepare(args: argparse.Namespace, folder: Path) -> tuple[Config, pki.KeyPair | None, bytes]:
    """The configuration, with certificates made where none are given; the administrator's certificate; the CA (PEM)."""
    config = Config()
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
             "localhost", "127.0.0.1", "::1", socket.gethostname()]  # fmt: skip
    ranges = args.service_cluster_ip_range.split(",")
    names += [_first(r) for r in ranges]
    for address in (args.advertise_address, args.bind_address):
        if address and address not in ("0.0.0.0", "::") and address not in names:
            names.append(address)
    admin: pki.KeyPair | None = None
    ca_data = b""
    if args.client_ca_file is None or args.tls_cert_file is None:
        ca = pki.ensure_ca(folder)
        ca_data = ca.certificate
        pki.ensure_issued(folder, "apiserver", ca, "kube-apiserver", names=names, server=True)
        admin = pki.ensure_issued(
            folder, "admin", ca, "kubernetes-admin", organizations=["system:masters"], client=True
        )
        pki.ensure_issued(
            folder, "apiserver-kubelet-client", ca, "kube-apiserver-kubelet-client",
            organizations=["system:masters"], client=True,
        )  # fmt: skip
        pki.ensure_issued(folder, "front-proxy-client", ca, "front-proxy-client", client=True)
        args.requestheader_client_ca_file = args.requestheader_client_ca_file or folder / "ca.crt"
        if args.proxy_client_cert_file is None:
            args.proxy_client_cert_file = folder / "front-proxy-client.crt"
            args.proxy_client_key_file = folder / "front-proxy-client.key"
    config.client_ca = args.client_ca_file or folder / "ca.crt"
    config.certificate = args.tls_cert_file or folder / "apiserver.crt"
    config.key = args.tls_private_key_file or folder / "apiserver.key"
    config.kubelet_certificate = args.kubelet_client_certificate or folder / "apiserver-kubelet-client.crt"
    config.kubelet_key = args.kubelet_client_key or folder / "apiserver-kubelet-client.key"
    config.kubelet_ca = args.kubelet_certificate_authority
    config.extra["auth"] = flags.options(args)
    config.requestheader_ca = args.requestheader_client_ca_file
    config.proxy_certificate, config.proxy_key = args.proxy_client_cert_file, args.proxy_client_key_file
    signing = args.service_account_signing_key_file
    if signing is None and not args.service_account_key_file:
        signing = folder / "sa.key"
        pki.ensure_key(signing)
    config.service_account_keys = [k for k in (signing, *args.service_account_key_file) if k is not None]
    config.service_account_issuer = args.service_account_issuer
    config.api_audiences = [a for a in args.api_audiences.split(",") if a] or [args.service_account_issuer]
    config.service_cidrs = ranges
    first, _, last = args.service_node_port_range.partition("-")
    config.node_ports = (int(first), int(last or first))
    config.authorization_modes = args.authorization_mode.split(",")
    config.bootstrap_rbac = args.bootstrap_rbac_file
    config.anonymous = args.anonymous_auth
    config.enable_admission = [p for p in args.enable_admission_plugins.split(",") if p]
    config.disable_admission = [p for p in args.disable_admission_plugins.split(",") if p]
    config.admission_config = args.admission_control_config_file
    config.audit = audit_flags.options(args)
    config.encryption_config = args.encryption_provider_config
    config.encryption_reload = args.encryption_provider_config_automatic_reload
    config.event_ttl = args.event_ttl
    config.compaction_seconds = float(args.etcd_compaction_interval)
    config.max_in_flight, config.max_mutating_in_flight = (
        args.max_requests_inflight,
        args.max_mutating_requests_inflight,
    )
    advertise = args.advertise_address or (
        args.bind_address if args.bind_address not in ("0.0.0.0", "::") else "127.0.0.1"
    )
    config.advertise = (advertise, args.secure_port)
    return config, admin, ca_data


def _first(cidr: str) -> str:
    import ipaddress

    return str(ipaddress.ip_network(cidr.strip())[1])


async def open_store(args: argparse.Namespace) -> Any:
    """The store that the flags name. Found by name: the rooms of the master do not import one another."""
    if args.etcd_servers:
        client = importlib.import_module("longshore.master.etcd.client")
        return await client.connect(
            args.etcd_servers.split(","), ca=args.etcd_cafile, certificate=args.etcd_certfile, key=args.etcd_keyfile
        )
    embedded = importlib.import_module("longshore.master.etcd.embedded")
    path = args.data_dir / "etcd" / "store.db" if args.data_dir is not None else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    return await embedded.EmbeddedStore.open(path)


def settle() -> None:
    """What starting has made stays: keep the collector from walking it again and again.

    Requests free what they make by reference counting, so the young generation may be large: at Python's own threshold
    of 700 the collector took one part in twenty of a write.
    """
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)
    keep_small(asyncio.get_running_loop())


async def run(args: argparse.Namespace, folder: Path) -> None:
    config, admin, ca = prepare(args, folder)
    store = await open_store(args)

    def ready(server: APIServer, port: int) -> None:
        asyncio.get_running_loop().call_later(SETTLE_SECONDS, settle)
        if args.write_kubeconfig is not None and admin is not None:
            host = args.bind_address if args.bind_address not in ("0.0.0.0", "::") else "127.0.0.1"
            url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
            pki.write_kubeconfig(args.write_kubeconfig, pki.kubeconfig(url, ca, client=admin))

    task = asyncio.ensure_future(
        serve(store=store, config=config, host=args.bind_address, port=args.secure_port, ready=ready)
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        await store.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    gc.disable()  # until it serves: starting makes little garbage
    args = parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if args.verbosity >= 4 else logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    import tempfile

    import uvloop

    try:
        if args.data_dir is not None:
            args.data_dir.mkdir(parents=True, exist_ok=True)
            uvloop.run(run(args, args.data_dir / "pki"))
            return 0
        with tempfile.TemporaryDirectory(prefix="longshore-apiserver-") as folder:
            uvloop.run(run(args, Path(folder)))
    except (ConfigurationError, ConfigError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0
