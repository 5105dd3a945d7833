"""Claims: a ten-step Dockerfile takes no longer than 500 ms cold and 20 ms cached (classic builder), 600 and 340 ms with
buildx (where the docker command has that plugin, or BUILDX names it); save, load, import, push and pull move at least 500, 100, 100, 150 and 100 MB/s. Peer in the same run: Debian's dockerd.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.peers import dockerd
from bench.report import figure, medians

RUNS = 5
LAYER = 128 << 20
DOCKERFILE = "FROM busybox\n" + "".join(f"RUN echo {n} > /f{n}\n" for n in range(4)) + (
    'COPY f /f\nENV A=1\nWORKDIR /w\nLABEL a=b\nCMD ["sh"]\n'
)  # fmt: skip


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[str]:
    """An engine of ours alone, with a registry on port 5000; its DOCKER_HOST."""
    from longshore.engine.server import serve
    from longshore.machinery.paths import Layout
    from longshore.registry.server import serve as registry

    layout = Layout(folder / "d", folder / "r")
    up = threading.Event()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        await serve(
            layout=layout, node_layout=layout.node("n"), docker_socket=layout.docker_socket,
            beside=[lambda: registry(data_dir=folder / "registry", port=5000)], ready=lambda _: up.set(),
        )  # fmt: skip

    task: list[asyncio.Task[None]] = []

    def run() -> None:
        asyncio.set_event_loop(loop)
        task.append(loop.create_task(main()))
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task[0])

    thread = threading.Thread(target=run)
    thread.start()
    if not up.wait(30):
        raise RuntimeError("the engine did not come up")
    try:
        yield f"unix://{layout.docker_socket}"
    finally:
        loop.call_soon_threadsafe(task[0].cancel)
        thread.join(20)


def tree(size: int) -> bytes:
    """A tar of files as they are in images: half random, half text, a few hundred of them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number in range(256):
            info = tarfile.TarInfo(f"d{number % 16}/f{number}")
            half = size // 512
            data = os.urandom(half) + b"the quick brown fox jumps over the lazy dog\n" * (half // 44)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def timed(*argv: str, before: tuple[str, ...] = (), cwd: str | None = None, buildkit: str = "0") -> Callable[[], float]:
    """A command's wall time in milliseconds; `before` is run first and not counted."""

    def once() -> float:
        if before:
            subprocess.run(before, capture_output=True, check=False)
        started = time.monotonic()
        subprocess.run(argv, check=True, capture_output=True, cwd=cwd, env={**os.environ, "DOCKER_BUILDKIT": buildkit})
        return (time.monotonic() - started) * 1000

    return once


def buildx(folder: Path) -> bool:
    """Whether the docker command has buildx. BUILDX: a path of the plugin, for a command that has none of its own."""
    plugin = os.environ.get("BUILDX")
    if plugin:
        plugins = folder / "config" / "cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-buildx").symlink_to(plugin)
        os.environ["DOCKER_CONFIG"] = str(folder / "config")
    return subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode == 0


def main() -> None:
    from longshore.cli.demo import busybox_root

    folder = Path(tempfile.mkdtemp(prefix="bb-", dir="/tmp"))
    (folder / "c").mkdir()
    (folder / "c" / "Dockerfile").write_text(DOCKERFILE)
    (folder / "c" / "f").write_text("x")
    (folder / "big.tar").write_bytes(tree(LAYER))
    with engine(folder) as ours, dockerd() as peer:
        hosts = [ours] + ([peer[0]] if peer else [])
        for host in hosts:
            subprocess.run(
                ["docker", "-H", host, "import", "-", "busybox"], input=busybox_root(), check=True, capture_output=True
            )

        def told(claim: str, target: str, unit: str, sides: list[Callable[[], float]], size: int = 0) -> None:
            found = list(medians(RUNS, *sides))
            if size:
                found = [size / 1e3 / ms for ms in found]
            figure(claim, found[0], unit, peer="dockerd", theirs=found[1] if peer else None, target=target)

        def each(
            *words: str, before: tuple[str, ...] = (), cwd: str | None = None, buildkit: str = "0"
        ) -> list[Callable[[], float]]:
            fill = lambda host, parts: tuple(p.replace("SIDE", str(hosts.index(host))) for p in parts)  # noqa: E731
            return [
                timed(
                    "docker",
                    "-H",
                    host,
                    *fill(host, words),
                    before=("docker", "-H", host, *before) if before else (),
                    cwd=cwd,
                    buildkit=buildkit,
                )
                for host in hosts
            ]

        context = str(folder / "c")
        told(
            "ten-step Dockerfile, cold", "< 500", "ms", each("build", "--no-cache", "--network", "none", "-q", context)
        )
        told("ten-step Dockerfile, cached", "< 20", "ms", each("build", "--network", "none", "-q", context))
        if buildx(folder):
            words = ("build", "--network", "none", "-q", context)
            told("ten-step Dockerfile with buildx, cold", "< 600", "ms", each(*words, "--no-cache", buildkit="1"))
            told("ten-step Dockerfile with buildx, cached", "< 340", "ms", each(*words, buildkit="1"))
        size = (folder / "big.tar").stat().st_size
        told(
            "import",
            "> 100",
            "MB/s",
            each("import", str(folder / "big.tar"), "big:1", before=("rmi", "-f", "big:1")),
            size,
        )
        told("save", "> 500", "MB/s", each("save", "-o", str(folder / "saveSIDE.tar"), "big:1"), size)
        told(
            "load",
            "> 100",
            "MB/s",
            each("load", "-i", str(folder / "saveSIDE.tar"), before=("rmi", "-f", "big:1")),
            size,
        )
        for host in hosts:
            subprocess.run(
                ["docker", "-H", host, "tag", "big:1", f"127.0.0.1:5000/big{hosts.index(host)}:1"], check=True
            )
        pushes = []
        for number, host in enumerate(hosts):

            def push(host: str = host, number: int = number) -> float:
                # A repository that is not there yet, and content that no other repository has.
                name = f"127.0.0.1:5000/p{number}-{time.monotonic_ns()}:1"
                fresh = folder / f"push{number}.tar"
                fresh.write_bytes(tree(LAYER // 4))
                subprocess.run(["docker", "-H", host, "import", str(fresh), name], check=True, capture_output=True)
                started = time.monotonic()
                subprocess.run(["docker", "-H", host, "push", name], check=True, capture_output=True)
                return (time.monotonic() - started) * 1000

            pushes.append(push)
        told("push, loopback registry, uncompressed bytes", "> 150", "MB/s", pushes, LAYER // 4)
        for host in hosts:
            subprocess.run(
                ["docker", "-H", host, "push", f"127.0.0.1:5000/big{hosts.index(host)}:1"],
                check=True,
                capture_output=True,
            )
        for host in hosts:
            subprocess.run(["docker", "-H", host, "rmi", "-f", "big:1"], check=False, capture_output=True)
        name = "127.0.0.1:5000/bigSIDE:1"
        pulls = [
            timed(
                "docker", "-H", host, "pull", name.replace("SIDE", str(number)),
                before=("docker", "-H", host, "rmi", "-f", name.replace("SIDE", str(number))),
            )
            for number, host in enumerate(hosts)
        ]  # fmt: skip
        told("pull, loopback registry, uncompressed bytes", "> 100", "MB/s", pulls, size)
    subprocess.run(["rm", "-rf", str(folder)], check=False)


if __name__ == "__main__":
    main()
