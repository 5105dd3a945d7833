"""Claim: `docker run --rm busybox true` takes at most 120 ms on a bridge and 90 ms without a network, flat with 32 containers
running; create+start+wait+remove through the API 15/s one at a time and 30/s eight at once; `docker exec` of true 50 ms;
`docker logs` of a million lines 600,000 lines/s; the engine alone answers after 0.3 s and idles in 45 MB. Peers in the same run: Debian's dockerd and podman. Needs root.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.peers import dockerd
from bench.report import figure, medians

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.docker_engine import DockerEngine, base_image_tar

RUNS = 15
CHANGES = ["-c", 'CMD ["sh"]', "-c", "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin"]


def timed(command: list[str]) -> Callable[[], float]:
    """A function that runs a command and gives milliseconds."""

    def run() -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        return (time.perf_counter() - start) * 1000

    return run


def docker(path: Path, *words: str) -> list[str]:
    return ["docker", "-H", f"unix://{path}", *words]


def lives(path: Path, at_once: int, each: int = 12) -> float:
    """Containers created, started, waited for and removed a second. each: lives of each of those at once."""

    def work(n: int) -> None:
        connection = http.client.HTTPConnection("engine")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))

        def ask(method: str, target: str, body: object = None) -> bytes:
            data = json.dumps(body).encode() if body is not None else None
            connection.request(
                method, "/v1.41" + target, body=data, headers={"Content-Type": "application/json"} if data else {}
            )
            return connection.getresponse().read()

        for _ in range(n):
            made = json.loads(ask("POST", "/containers/create", {"Image": "busybox", "Cmd": ["true"]}))["Id"]
            ask("POST", f"/containers/{made}/start")
            ask("POST", f"/containers/{made}/wait")
            ask("DELETE", f"/containers/{made}")

    threads = [threading.Thread(target=work, args=(each,)) for _ in range(at_once)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return at_once * each / (time.perf_counter() - start)


@contextlib.contextmanager
def without_launcher(base: Path, image: bytes) -> Iterator[Path]:
    """The socket of an engine whose execs are runc's, with the container `box` running."""
    base.mkdir()
    (base / "daemon.json").write_text('{"launcher": false}')
    engine = DockerEngine(base, alone=True)
    engine.start()
    try:
        load(engine.socket, image)
        run_box(engine.socket)
        yield engine.socket
    finally:
        engine.stop()


def load(path: Path, image: bytes) -> None:
    """Give an engine the image busybox."""
    words = docker(path, "import", *CHANGES, "-", "busybox:latest")
    subprocess.run(words, input=image, check=True, capture_output=True)


def run_box(path: Path) -> None:
    """Have an engine run a container `box` that does nothing."""
    words = docker(path, "run", "-d", "--name", "box", "busybox", "sleep", "100000")
    subprocess.run(words, check=True, capture_output=True)


def start_dockerd(base: Path) -> tuple[Path, subprocess.Popen[bytes]] | None:
    """Debian's dockerd on folders of its own; None where it is absent or does not start."""
    if shutil.which("dockerd") is None:
        return None
    path = base / "dockerd.sock"
    log = open(base / "dockerd.log", "w")  # noqa: SIM115
    process = subprocess.Popen(
        ["dockerd", "--host", f"unix://{path}", "--data-root", str(base / "root"), "--exec-root", str(base / "exec"),
         "--pidfile", str(base / "pid"), "--log-level", "error"],
        stdout=log, stderr=log,
    )  # fmt: skip
    for _ in range(200):
        if subprocess.run(docker(path, "version"), capture_output=True).returncode == 0:
            return path, process
        if process.poll() is not None:
            break
        time.sleep(0.1)
    process.terminate()
    return None


def podman(base: Path, image: bytes) -> list[str] | None:
    """podman's command line with folders of its own and the image in it; None where it is absent or does not run."""
    if shutil.which("podman") is None:
        return None
    command = ["podman", "--root", str(base / "pod"), "--runroot", str(base / "podrun")]
    command += ["--cgroup-manager=cgroupfs", "--runtime=runc", "--events-backend=file"]
    archive = base / "image.tar"
    archive.write_bytes(image)
    done = subprocess.run([*command, "import", str(archive), "busybox"], capture_output=True)
    return command if done.returncode == 0 else None


def engine_alone(base: Path) -> tuple[float, float]:
    """`longshore engine --docker` by itself: (seconds until its API answered, MB of its own share of memory when idle)."""
    command = [sys.executable, "-m", "longshore", "engine", "--docker", "--registry-port", "0"]
    path = base / "run" / "docker.sock"
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--data-dir", str(base / "data"), "--run-dir", str(base / "run")], stderr=subprocess.DEVNULL
    )
    try:
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: engine\r\n\r\n")
                if b"200 OK" in sock.recv(4096):
                    break
            time.sleep(0.002)
        ready = time.perf_counter() - start
        time.sleep(1)
        return ready, own_memory(process.pid)
    finally:
        process.terminate()
        process.wait()


def own_memory(pid: int) -> float:
    """A process's share of memory in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def dockerd_alone() -> float:
    """Seconds until Debian's dockerd answered; 0 where it is absent."""
    with dockerd() as started:
        return started[1] if started is not None else 0.0


def main() -> int:
    if os.geteuid() != 0 or any(shutil.which(p) is None for p in ("docker", "runc", "conmon")):
        print("docker_run: needs root, docker, runc and conmon")
        return 0
    base = Path(tempfile.mkdtemp(prefix="bench-docker-"))
    turns = [engine_alone(base / "alone") for _ in range(5)]
    ready = statistics.median(turn[0] for turn in turns)
    figure("start until the API answers", ready, "s", peer="dockerd", theirs=dockerd_alone() or None, target="<= 0.3 s")
    figure("engine alone, idle memory", statistics.median(turn[1] for turn in turns), "MB", target="<= 45 MB")
    engine = DockerEngine(base / "longshore")
    engine.start()
    peer = start_dockerd(base)
    try:
        image = base_image_tar()
        ours = engine.socket
        for path in [ours, *([peer[0]] if peer else [])]:
            load(path, image)
        sides: dict[str, Path] = {"longshore": ours, **({"dockerd": peer[0]} if peer else {})}
        name = "dockerd"

        def compare(claim: str, words: list[str], target: str) -> None:
            found = medians(RUNS, *(timed(docker(path, *words)) for path in sides.values()))
            figure(claim, found[0], "ms", peer=name, theirs=found[1] if peer else None, target=target)

        compare("docker run --rm busybox true, bridge", ["run", "--rm", "busybox", "true"], "<= 120 ms")
        compare(
            "docker run --rm busybox true, no network",
            ["run", "--rm", "--network", "none", "busybox", "true"],
            "<= 90 ms",
        )
        other = podman(base, image)
        if other is not None:
            # Without CAP_SYS_RESOURCE podman's own limits cannot be set: ours are given.
            words = ["run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
            mine = timed(docker(ours, "run", "--rm", "--network", "none", "busybox", "true"))
            found = medians(RUNS, mine, timed([*other, *words, "busybox", "true"]))
            figure("docker run --rm busybox true, no network", found[0], "ms", peer="podman", theirs=found[1])
            subprocess.run([*other, "rmi", "-af"], capture_output=True)
        for path in sides.values():
            run_box(path)
        compare("docker exec of true", ["exec", "box", "true"], "<= 50 ms")
        with without_launcher(base / "runc", image) as slow:
            found = medians(RUNS, *(timed(docker(path, "exec", "box", "true")) for path in (ours, slow)))
            figure("docker exec of true", found[0], "ms", peer="--no-launcher", theirs=found[1])
        for at_once, target in ((1, ">= 15/s"), (8, ">= 30/s")):
            found = medians(3, *((lambda path=path, n=at_once: lives(path, n)) for path in sides.values()))
            figure(
                f"API create+start+wait+remove, {at_once} at once",
                found[0],
                "/s",
                peer=name,
                theirs=found[1] if peer else None,
                target=target,
            )
        for path in sides.values():
            subprocess.run(
                docker(path, "run", "--name", "lines", "busybox", "sh", "-c", "seq 1000000"),
                check=True,
                capture_output=True,
            )
        found = medians(3, *(timed(docker(path, "logs", "lines")) for path in sides.values()))
        figure(
            "docker logs, a million lines",
            1e9 / found[0],
            "lines/s",
            peer=name,
            theirs=1e9 / found[1] if peer else None,
            target=">= 600,000",
        )
        for _ in range(31):
            engine.docker("run", "-d", "busybox", "sleep", "100000")
        (full,) = medians(RUNS, timed(docker(ours, "run", "--rm", "busybox", "true")))
        figure("docker run on a bridge with 32 running", full, "ms", target="flat")
        figure("engine's own memory with 32 running", own_memory(engine.pid), "MB", target="<= 45 MB")
    finally:
        if peer is not None:
            ids = subprocess.run(docker(peer[0], "ps", "-aq"), capture_output=True, text=True).stdout.split()
            if ids:
                subprocess.run(docker(peer[0], "rm", "-f", *ids), capture_output=True)
            peer[1].terminate()
            peer[1].wait(20)
        engine.stop()
        shutil.rmtree(base, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
