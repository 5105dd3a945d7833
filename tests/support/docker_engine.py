"""An engine of its own in a process of its own, and the docker command pointed at it."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BUSYBOX = Path("/bin/busybox")
#: Where Docker's plugins lie: as scripts/setup unpacks them, as a person installs them, as packages do.
PLUGIN_FOLDERS = (
    Path(sys.prefix) / "plugins/usr/libexec/docker/cli-plugins",
    Path.home() / ".docker/cli-plugins",
    *(Path(f"/usr/{place}/docker/cli-plugins") for place in ("libexec", "lib", "local/lib")),
)
_SERVE = """
import asyncio, logging, pathlib, signal, sys, uvloop
from longshore.engine import configuration
from longshore.engine.server import serve
from longshore.machinery.paths import Layout
logging.basicConfig(level=logging.INFO)
base = pathlib.Path(sys.argv[1])
layout = Layout(base / "data", base / "run")
async def main():
    task = asyncio.ensure_future(serve(layout=layout, node_layout=layout.node("n1"), docker_socket=base / "run" / "docker.sock",
        configuration=configuration.load(base / "daemon.json"), reread=lambda: configuration.read(base / "daemon.json"), ready=lambda _: print("ready", flush=True)))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        pass
uvloop.run(main())
"""


_TAKE_AWAY = """
import asyncio, pathlib, sys
from longshore.engine.server import tear_down
from longshore.machinery.paths import Layout
layout = Layout(pathlib.Path(sys.argv[1]) / "data", pathlib.Path(sys.argv[1]) / "run")
asyncio.run(tear_down(layout=layout, node_layout=layout.node(sys.argv[2]), node=sys.argv[3]))
"""


def take_away(base: Path, node: str, name: str = "") -> None:
    """What a stopped engine leaves to its containers and to its next start: bridges, rules, routes, processes.

    base: the folder of its `data` and `run`. node: its folder in them. name: the engine's own.
    """
    subprocess.run([sys.executable, "-c", _TAKE_AWAY, str(base), node, name], check=True, timeout=60)


def docker_plugin(name: str) -> str:
    """The program of a Docker plugin; the environment's NAME (BUILDX, COMPOSE) names another. Skips where it is absent."""
    places = [folder / f"docker-{name}" for folder in PLUGIN_FOLDERS]
    named = os.environ.get(name.upper())
    found = next((path for path in [*([Path(named)] if named else []), *places] if path.exists()), None)
    if found is None:
        pytest.skip(f"docker {name} is not installed")
    return str(found)


def base_image_tar() -> bytes:
    """A root file system with a static busybox and a link for each of its applets."""
    names = subprocess.run([BUSYBOX, "--list-full"], capture_output=True, text=True, check=True).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for folder in ("bin", "etc", "proc", "sys", "dev", "tmp", "root"):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            archive.addfile(info)
        data = BUSYBOX.read_bytes()
        info = tarfile.TarInfo("bin/busybox")
        info.size, info.mode = len(data), 0o755
        archive.addfile(info, io.BytesIO(data))
        for name in names:
            if name != "bin/busybox":
                info = tarfile.TarInfo(name)
                info.type, info.linkname = tarfile.SYMTYPE, "/bin/busybox"
                archive.addfile(info)
        for name, text in (("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n"), ("etc/group", "root:x:0:\nuser:x:1000:\n")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


class DockerEngine:
    """An engine under `base`, with the settings of `base`/daemon.json where there are any. `docker(...)` runs the docker
    command; stop() leaves nothing behind."""

    def __init__(self, base: Path, *, alone: bool = False) -> None:
        """alone: in a network namespace of its own, where no other engine has taken names and addresses."""
        self.base = base
        self._alone = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh") if alone else ()
        self.socket = base / "run" / "docker.sock"
        self._process: subprocess.Popen[str] | None = None
        (base / "run").mkdir(parents=True)

    def start(self) -> None:
        log = open(self.base / "log", "a")  # noqa: SIM115 - the child keeps it
        self._process = subprocess.Popen(
            [*self._alone, sys.executable, "-c", _SERVE, str(self.base)], stdout=subprocess.PIPE, stderr=log, text=True
        )
        log.close()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "ready\n", (self.base / "log").read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9, as an accident would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        ids = self.docker("ps", "-aq").stdout.split()
        if ids:
            self.docker("rm", "-f", "-v", *ids)
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)
        if not self._alone:
            take_away(self.base, "n1")
        with open("/proc/self/mountinfo") as table:
            mounted = [line.split()[4] for line in table]
        for path in reversed([m for m in mounted if m.startswith(str(self.base))]):
            subprocess.run(["umount", "-l", path], check=False)

    def docker(
        self, *args: str, input: str | bytes | None = None, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            ["docker", "-H", f"unix://{self.socket}", *args],
            input=data,
            stdin=None if data is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env={**os.environ, "DOCKER_CONFIG": str(self.base / "config")},
        )
        result = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        if check and result.returncode != 0:
            raise AssertionError(
                f"docker {' '.join(args)}: {result.returncode}\n{result.stdout}\n{result.stderr}\n{(self.base / 'log').read_text()[-3000:]}"
            )
        return result

    def until(self, *args: str, shows: str, seconds: float = 15) -> str:
        """Run a docker command until its output holds a text."""
        deadline = time.monotonic() + seconds
        while True:
            out = self.docker(*args, check=False).stdout
            if shows in out or time.monotonic() > deadline:
                assert shows in out, out
                return out
            time.sleep(0.05)


def running_engine(base: Path, *, alone: bool = False) -> Iterator[DockerEngine]:
    """An engine with busybox:latest (for fixtures; alone: see DockerEngine); skips where a program is absent."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for program in ("docker", "runc", "conmon"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is absent")
    if not BUSYBOX.exists():
        pytest.skip("busybox-static is absent")
    engine = DockerEngine(base, alone=alone)
    engine.start()
    try:
        changes = ["-c", 'CMD ["sh"]', "-c", "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        engine.docker("import", *changes, "-", "busybox:latest", input=base_image_tar())
        yield engine
    finally:
        engine.stop()
