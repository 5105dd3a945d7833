"""Machines beside the test's own: a network namespace and folders each. Images of the machine's static busybox."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import signal
import tarfile
from pathlib import Path

import pytest

from longshore.machinery import netns
from longshore.machinery.netlink import Netlink
from support.cluster import Cluster, need

IMAGE = "local/busybox:1"
APPLETS = ("sh", "httpd", "hostname", "mkdir", "sleep", "wget", "timeout", "nslookup", "cat", "seq", "true")


class Machine(Cluster):
    """Folders and a network namespace of its own: every command runs there. Alone until it is `plugged` in."""

    def __init__(self, *flags: str) -> None:
        super().__init__(*flags)
        self.inside = self.folder / "machine"
        self.port = ""
        netns.create(self.inside)
        with Netlink(self.inside) as link:
            link.set_link(link.index("lo"), up=True)

    def plug(self, port: str, here: str, there: str) -> None:
        """A link to the test's own namespace: `port` with the address `here` on this side ("10.77.0.1/24")."""
        self.port = port
        with netns.opened(self.inside) as inside, Netlink() as link:
            link.add_veth(port, "eth0", peer_namespace=inside, up=True)
            link.add_address(link.index(port), ipaddress.ip_interface(here))
        with Netlink(self.inside) as link:
            index = link.index("eth0")
            link.add_address(index, ipaddress.ip_interface(there))
            link.set_link(index, up=True)
            gateway = ipaddress.ip_interface(here).ip
            link.add_route(ipaddress.ip_network("0.0.0.0/0"), gateway=gateway, link=index)

    def run(self, *argv: str, **rest: object) -> str:
        return super().run("nsenter", f"--net={self.inside}", "--", *argv, **rest)  # type: ignore[arg-type]

    def cut(self, *, off: bool) -> None:
        """Pull the cable out, or put it in again."""
        with Netlink() as link:
            link.set_link(link.index(self.port), up=not off)

    def kill_everything(self) -> None:
        """The machine dies: every part at once, none of them told."""
        for part in self.status()["parts"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(part["pid"], signal.SIGKILL)

    def destroy(self) -> None:
        try:
            super().destroy()
        finally:
            netns.delete(self.inside)
            shutil.rmtree(self.folder, ignore_errors=True)


def busybox(cluster: Cluster) -> None:
    """Give a cluster's engine the image IMAGE; skips where docker or busybox-static is absent."""
    need("docker")
    if not Path("/bin/busybox").exists():
        pytest.skip("busybox-static is not installed")
    path = cluster.folder / "busybox.tar"
    with tarfile.open(path, "w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        # The libraries' places: a pod that mounts the machine's /usr can run its programs.
        for name, target in [
            *((f"bin/{name}", "busybox") for name in APPLETS),
            ("lib", "usr/lib"),
            ("lib64", "usr/lib64"),
        ]:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    cluster.docker("import", str(path), IMAGE)
