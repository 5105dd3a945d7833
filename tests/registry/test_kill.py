"""The registry as a command: killed at any moment of pushes, it has all that it acknowledged, and nothing broken."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import signal
import sys
from pathlib import Path

from longshore.machinery.http import Client
from longshore.machinery.http.errors import ClientError
from longshore.registry.storage import Storage

from .test_protocol import Remote, digest

SIZE = 300_000


async def start(root: Path, *flags: str) -> tuple[asyncio.subprocess.Process, str]:
    """The command on a port of its choice; its process and host:port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "longshore", "registry", "--root", str(root), "--port", "0", *flags,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    while line := await process.stderr.readline():
        if found := re.search(rb"registry on (\S+)", line):
            return process, found[1].decode()
    raise AssertionError("the registry did not start")


async def test_killed_while_clients_push(tmp_path: Path) -> None:
    chance = random.Random(5)
    kept: set[str] = set()
    for _ in range(4):
        process, host = await start(tmp_path)

        async def push(number: int, host: str = host) -> None:
            async with Client() as client:
                remote = Remote(client, host, f"r/{number}")
                while True:
                    data = os.urandom(SIZE)
                    try:
                        await remote.blob(data)
                    except (ClientError, TimeoutError, OSError):
                        return
                    kept.add(digest(data))

        pushes = [asyncio.create_task(push(number)) for number in range(3)]
        await asyncio.sleep(chance.uniform(0.1, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        await asyncio.gather(*pushes)
    assert kept
    storage = Storage(tmp_path)
    found = {row[0] for row in storage.all("SELECT digest FROM blobs")}
    assert kept <= found
    for name in found:
        assert "sha256:" + hashlib.sha256(storage.blob_path(name).read_bytes()).hexdigest() == name
    # What was under way is no blob; garbage collection takes it when it is old, and files that nobody knows at once.
    storage.collect(grace=3600, upload_grace=-10)
    files = {path.name for path in (tmp_path / "blobs" / "sha256").rglob("*") if path.is_file()}
    assert files == {name.partition(":")[2] for name in found}
    assert list((tmp_path / "uploads").iterdir()) == []
    storage.close()


async def test_flags(tmp_path: Path) -> None:
    root = tmp_path / "data"
    first, behind = await start(root)
    async with Client() as client:
        remote = Remote(client, behind, "team/a")
        await remote.image()
        second, host = await start(tmp_path / "mirror", "--mirror", f"http://{behind}", "--collect-every", "0")
        mirrored = Remote(client, host, "team/a")
        assert (await mirrored("GET", "manifests/t")).status == 200
        assert (await mirrored("PUT", "manifests/u", b"{}")).status == 405
        third, host = await start(tmp_path / "small", "--quota", "*=10", "--blob-limit", "1GB")
        assert (
            await Remote(client, host)("POST", f"blobs/uploads/?digest={digest(b'x' * 11)}", b"x" * 11)
        ).status == 403
    for process in (first, second, third):
        process.terminate()
        assert await process.wait() == 0
    for flags in (["--tokens"], ["--quota", "x"], ["--permissions", str(tmp_path / "none"), "--htpasswd", "/dev/null"]):
        wrong = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "longshore", "registry", "--root", str(root), "--port", "0", *flags,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await wrong.communicate()
        assert wrong.returncode != 0 and b"Traceback" not in said
