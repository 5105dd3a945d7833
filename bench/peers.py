"""The peers that Debian has, started beside us in the same run: dockerd, podman."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 30.0


@contextmanager
def dockerd() -> Iterator[tuple[str, float] | None]:
    """Debian's dockerd with folders of its own: (DOCKER_HOST, seconds until its API answered); None when absent."""
    program = shutil.which("dockerd")
    if program is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="dockerd-", dir="/tmp"))
    host = f"unix://{folder}/d.sock"
    flags = ["-H", host, "--data-root", folder / "data", "--exec-root", folder / "exec", "-p", folder / "pid"]
    started = time.monotonic()
    log = (folder / "log").open("wb")
    daemon = subprocess.Popen([program, *flags, "--bridge", "bench0" if _bridge() else "none"], stdout=log, stderr=log)
    try:
        while subprocess.run(["docker", "-H", host, "version"], capture_output=True, check=False).returncode != 0:
            if daemon.poll() is not None or time.monotonic() - started > START_SECONDS:
                yield None
                return
            time.sleep(0.02)
        yield host, time.monotonic() - started
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
        log.close()
        subprocess.run(
            f"grep -o '{folder}[^ ]*' /proc/self/mountinfo | sort -r | xargs -r umount -l", shell=True, check=False
        )
        shutil.rmtree(folder, ignore_errors=True)


def _bridge() -> bool:
    """A bridge for dockerd's default network, apart from any other engine's."""
    done = subprocess.run(
        "ip link add bench0 type bridge && ip addr add 172.29.0.1/24 dev bench0 && ip link set bench0 up",
        shell=True,
        check=False,
        capture_output=True,
    )
    return done.returncode == 0 or Path("/sys/class/net/bench0").exists()
