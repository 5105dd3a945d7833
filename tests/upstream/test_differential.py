"""The same wrong objects to upstream's API server and to ours: how often do they answer differently?"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import differential
from support.cluster import eventually
from support.upstream import longshore, program, running

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[differential.Server, differential.Server]]:
    """Upstream's on `longshore etcd`, ours on its own store, with the same certificates."""
    api = program("kube-apiserver")
    subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
    subprocess.run(("ip", "addr", "add", "10.9.9.1/32", "dev", "lo"), check=True)
    folder = Path(tempfile.mkdtemp(prefix="ld-", dir="/tmp"))
    pki, kubeconfig = folder / "own" / "pki", folder / "kc"
    ours = longshore("apiserver", "--data-dir", str(folder / "own"), "--secure-port", "7443", "--write-kubeconfig", str(kubeconfig))  # fmt: skip
    theirs = (
        *(api, "--etcd-servers", "http://127.0.0.1:2379", "--secure-port", "6443", "--bind-address", "127.0.0.1"),
        *("--advertise-address", "10.9.9.1", "--client-ca-file", str(pki / "ca.crt"), "--allow-privileged=true"),
        *("--tls-cert-file", str(pki / "apiserver.crt"), "--tls-private-key-file", str(pki / "apiserver.key")),
        *("--service-account-key-file", str(pki / "sa.key"), "--service-account-signing-key-file", str(pki / "sa.key")),
        *("--service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        *("--authorization-mode", "Node,RBAC", "--service-cluster-ip-range", "10.96.0.0/16"),
    )
    etcd = longshore("etcd", "--data-dir", str(folder / "etcd"))
    with running(folder / "etcd.log", *etcd, end=signal.SIGINT), running(folder / "own.log", *ours):
        eventually(kubeconfig.exists, seconds=60)
        with running(folder / "api.log", *theirs):
            both = []
            for port in (6443, 7443):
                eventually(lambda port=port: _answers(port, pki), seconds=120)
                server = differential.Server(port, pki)
                server.ask("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
                runtime = {"metadata": {"name": "rc"}, "handler": "h"}
                server.ask("POST", "/apis/node.k8s.io/v1/runtimeclasses", runtime)
                both.append(server)
            yield both[0], both[1]


def _answers(port: int, pki: Path) -> bool:
    try:
        found = differential.Server(port, pki).ask("GET", "/readyz")
    except (AssertionError, KeyError, OSError):
        time.sleep(0.3)
        return False
    return found is not None and found.status == 200


@pytest.mark.parametrize("update", [False, True], ids=["create", "update"])
def test_wrong_objects_are_answered_alike(servers: tuple[differential.Server, ...], update: bool) -> None:
    theirs, ours = servers
    asked: Counter[str] = Counter()
    apart: Counter[str] = Counter()
    lines = []
    for obj in differential.objects():
        number, differences = differential.compare(theirs, ours, obj, update=update)
        asked[obj["kind"]] += number
        apart[obj["kind"]] += len(differences)
        for found in differences:
            lines.append(f"{found.kind} | {found.way} | {found.theirs.shown()} | {found.ours.shown()}"[:2000])
    report = os.environ.get("LONGSHORE_DIFFERENCES")
    if report:
        Path(f"{report}.{'update' if update else 'create'}").write_text("\n".join(lines) + "\n")
    shown = "\n".join(f"{kind:36} {asked[kind]:5} {apart[kind]:5}" for kind in asked)
    print(f"{shown}\n{'all':36} {asked.total():5} {apart.total():5}")
    assert asked.total() > 10_000
    assert apart.total() <= asked.total() * (0.08 if update else 0.03), shown
