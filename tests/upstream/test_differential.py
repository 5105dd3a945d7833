"""The same wrong objects to upstream's API server and to ours: how often do they answer differently?"""

from __future__ import annotations

import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import differential
from support.upstream import api_server, longshore, loopback, running, serving

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[differential.Server, differential.Server]]:
    """Upstream's on `longshore etcd`, ours on its own store, with the same certificates."""
    loopback()
    folder = Path(tempfile.mkdtemp(prefix="ld-", dir="/tmp"))
    pki, kubeconfig = folder / "own" / "pki", folder / "kc"
    ours = longshore("apiserver", "--data-dir", str(folder / "own"), "--secure-port", "7443", "--write-kubeconfig", str(kubeconfig))  # fmt: skip
    etcd = longshore("etcd", "--data-dir", str(folder / "etcd"))
    with (
        running(folder / "etcd.log", *etcd, end=signal.SIGINT),
        serving(folder, 7443, *ours) as mine,
        serving(folder, 6443, *api_server(pki)) as judge,
    ):
        for server in (judge, mine):
            server.ask("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
            runtime = {"metadata": {"name": "rc"}, "handler": "h"}
            server.ask("POST", "/apis/node.k8s.io/v1/runtimeclasses", runtime)
        yield judge, mine


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
