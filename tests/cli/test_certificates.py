"""A cluster's certificates: made once, made anew when they are due, kept while the supervisor runs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from longshore.cli import certificates, cluster
from longshore.client import config as client_config
from longshore.machinery import pki
from longshore.machinery.paths import Layout


def world(tmp_path: Path) -> tuple[Layout, cluster.ClusterConfig]:
    layout = Layout(tmp_path / "d", tmp_path / "r")
    config = cluster.plan(nodes=1, host_ip="10.9.9.1", names=["n"])
    certificates.ensure(layout, config)
    return layout, config


def shorten(layout: Layout, file: str, user: str) -> None:
    """A certificate that is due, and good for another minute."""
    ca = pki.KeyPair.read(layout.pki / "ca.crt", layout.pki / "ca.key")
    pair = pki.issue(ca, user, client=True, days=60 / 86400)
    pair.write(layout.pki / f"{file}.crt", layout.pki / f"{file}.key")


def test_what_is_due_is_made_anew_and_nothing_else(tmp_path: Path) -> None:
    layout, config = world(tmp_path)
    files = certificates.files(layout, config)
    assert all(file.exists() and file.with_suffix(".key").exists() for file in files)
    assert certificates.due(files) > time.time() + 200 * 86400
    before = {file: file.read_bytes() for file in files}
    shorten(layout, "proxy", "system:kube-proxy")
    assert certificates.due(files) < time.time()
    certificates.ensure(layout, config)
    changed = [file.stem for file in files if file.read_bytes() != before[file]]
    assert changed == ["proxy"]
    told = client_config.load(layout.kubeconfig("proxy"))
    assert told.certificate == (layout.pki / "proxy.crt").read_bytes()
    assert certificates.due([layout.pki / "absent.crt"]) == 0.0


async def test_they_are_kept(tmp_path: Path) -> None:
    layout, config = world(tmp_path)
    files = certificates.files(layout, config)
    calls = 0

    async def renew() -> None:
        nonlocal calls
        calls += 1
        certificates.ensure(layout, config)

    shorten(layout, "scheduler", "system:kube-scheduler")
    keeper = asyncio.create_task(certificates.keep(files, renew))
    async with asyncio.timeout(10):
        while certificates.due(files) < time.time():
            await asyncio.sleep(0.01)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    assert calls == 1
