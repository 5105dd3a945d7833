"""Faults are ordinary: every part is killed, the machine is rebooted, and nothing is left behind at the end."""

import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from support.cluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def shop():
    made = Cluster()
    try:
        made.up()
        made.longshore("demo", timeout=200)
        yield made
    finally:
        made.destroy()


def pods(shop) -> dict[str, dict]:
    """The sample's pods by uid."""
    items = json.loads(shop.kubectl("get", "pods", "-n", "shop", "-o", "json"))["items"]
    return {p["metadata"]["uid"]: p for p in items}


def containers(shop) -> dict[str, tuple[str, int]]:
    """Each pod's container id and restart count."""
    return {
        uid: (p["status"]["containerStatuses"][0]["containerID"], p["status"]["containerStatuses"][0]["restartCount"])
        for uid, p in pods(shop).items()
    }


class Asker:
    """Asks the front tier again and again while something happens."""

    def __init__(self, ip: str) -> None:
        self.url = f"http://{ip}/cgi-bin/tier"
        self.failures: list[str] = []
        self.answers = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with urllib.request.urlopen(self.url, timeout=5) as answer:
                    text = answer.read().decode()
                if "token accepted" not in text:
                    self.failures.append(text)
                self.answers += 1
            except OSError as error:
                self.failures.append(str(error))
            self._stop.wait(0.05)

    def __enter__(self) -> "Asker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def cluster_ip(shop) -> str:
    return shop.kubectl("get", "svc", "front", "-n", "shop", "-o", "jsonpath={.spec.clusterIP}")


def answers(shop) -> bool:
    """Whether the front tier answers; not while its pods, or the rules that lead to them, are new."""
    try:
        with urllib.request.urlopen(f"http://{cluster_ip(shop)}/cgi-bin/tier", timeout=5) as answer:
            return "token accepted" in answer.read().decode()
    except OSError:
        return False


@pytest.mark.parametrize("part", ["engine", "manager", "apiserver"])
def test_a_killed_part_comes_back_and_containers_notice_nothing(shop, part):
    before = containers(shop)
    with Asker(cluster_ip(shop)) as asker:
        shop.kill(part)
        time.sleep(1)
    assert asker.answers > 0 and asker.failures == []
    assert containers(shop) == before


def test_a_killed_node_part_comes_back_and_starts_no_pod_twice(shop):
    # The node part answers DNS itself, so the front tier's look-ups wait while it is away: the addresses still answer.
    before = containers(shop)
    ip = cluster_ip(shop)
    shop.kill("node")
    with urllib.request.urlopen(f"http://{ip}/healthz", timeout=5) as answer:
        assert answer.read() == b"ok\n"
    eventually(lambda: answers(shop))
    assert containers(shop) == before


def test_what_was_acknowledged_is_there_after_the_api_server_was_killed(shop):
    written: list[str] = []
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            name = f"w{number}"
            done = shop.run("kubectl", "create", "cm", name, "-n", "shop", check=False)
            if "created" in done:
                written.append(name)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(1)
    shop.kill("apiserver")
    time.sleep(1)
    stop.set()
    writer.join()
    names = shop.kubectl("get", "cm", "-n", "shop", "-o", "jsonpath={.items[*].metadata.name}").split()
    assert len(written) > 2 and set(written) <= set(names)


def test_a_pod_deleted_while_the_node_part_is_away_is_cleaned_up(shop):
    shop.kubectl("run", "leaver", "-n", "shop", "--image=busybox", "--", "sleep", "987123")
    shop.kubectl("wait", "pod/leaver", "-n", "shop", "--for=condition=Ready", "--timeout=30s")
    node = shop.pid("node")
    os.kill(node, signal.SIGSTOP)
    try:
        shop.kubectl("delete", "pod", "leaver", "-n", "shop", "--force", "--grace-period=0", "--wait=false")
    finally:
        os.kill(node, signal.SIGKILL)
    eventually(lambda: b"sleep\x00987123" not in b"".join(cmdline(p) for p in Path("/proc").glob("[0-9]*")))


def cmdline(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_killed_supervisors_cluster_is_up_when_up_says_so(shop):
    """What it left running is replaced, not taken for the new cluster; no container is started again."""
    before, parts = containers(shop), {p["name"]: p["pid"] for p in shop.status()["parts"]}
    os.kill(parts["supervisor"], signal.SIGKILL)
    assert "Ready: " in shop.up()
    assert {p["status"]["phase"] for p in pods(shop).values()} == {"Running"}  # asked at once, once
    now = {p["name"]: p["pid"] for p in shop.status()["parts"]}
    assert now.keys() == parts.keys() and not set(now.values()) & set(parts.values())
    assert containers(shop) == before


def test_a_reboot_brings_the_same_cluster_back(shop):
    before = {p["metadata"]["name"] for p in pods(shop).values()}
    reboot(shop)
    shop.up()
    eventually(lambda: answers(shop), 60)
    assert {p["metadata"]["name"] for p in pods(shop).values()} == before


def reboot(shop) -> None:
    """All processes killed at once, mounts and namespaces gone, as after a power cut. By recorded pid and cgroup."""
    mine = str(shop.folder).encode()
    for _ in range(3):
        for process in Path("/proc").glob("[0-9]*"):
            if process.name != str(os.getpid()) and (mine in cmdline(process) or inside(process, shop)):
                try:
                    os.kill(int(process.name), signal.SIGKILL)
                except OSError:
                    pass
        time.sleep(0.2)
    subprocess.run("nft flush ruleset", shell=True, check=True)
    for mount in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        where = mount.split()[4]
        if where.startswith(str(shop.folder)):
            subprocess.run(["umount", "-l", where], check=False)
    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
    for link in links:
        if link["ifname"] not in ("lo", "ifb0", "ifb1"):
            subprocess.run(["ip", "link", "del", link["ifname"]], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["ip", "route", "flush", "table", "main"], check=False)
    subprocess.run(["rm", "-rf", str(shop.run_dir)], check=True)


def inside(process: Path, shop) -> bool:
    """Whether a process is a container's: its root file system lies in the cluster's folders."""
    try:
        return any(
            line.split()[4] == "/" and str(shop.folder) in line
            for line in (process / "mountinfo").read_text().splitlines()
        )
    except OSError:
        return False


def test_down_leaves_nothing_behind(shop):
    shop.docker("run", "-d", "--name", "side", "busybox", "sleep", "987124")
    shop.docker("network", "create", "sidenet")
    shop.down()
    mine = str(shop.folder)
    left = [p.name for p in Path("/proc").glob("[0-9]*") if p.name != str(os.getpid()) and mine.encode() in cmdline(p)]
    assert left == []
    assert not [p for p in Path("/proc").glob("[0-9]*") if b"sleep\x00987124" in cmdline(p)]
    assert mine not in Path("/proc/self/mountinfo").read_text()
    links = {
        link["ifname"]
        for link in json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
    }
    assert links <= {"lo", "ifb0", "ifb1"}
    assert subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout == ""
    assert subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout.strip() == ""
    assert not shop.run_dir.exists()
    assert (shop.data / "etcd").exists(), "the state stays"
    shop.up()
    eventually(lambda: answers(shop), 60)
