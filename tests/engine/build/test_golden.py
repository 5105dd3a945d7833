"""dockerd's recorded exchanges about images and builds, replayed against an engine of ours."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from longshore.engine.server import serve
from longshore.machinery.paths import Layout

pytestmark = pytest.mark.root

# Go's URL parser takes "::" for a host and port; here it is told to be no URL.
KNOWN = {"image.import-url"}


async def replay(golden: Path, folder: Path, socket: Path, only: str) -> list[dict[str, str]]:
    """Run the replayer; its verdicts."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(golden / "replay_docker.py"), "--socket", str(socket), "--only", only,
        "--json", str(folder / "verdicts"), str(folder / "exchanges" / "image.jsonl"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert (folder / "verdicts").exists(), said.decode()
    return [json.loads(line) for line in (folder / "verdicts").read_text().splitlines()]


@pytest.mark.skipif(not Path("/bin/busybox").exists(), reason="busybox-static is not installed")
async def test_images_and_builds(golden: Path, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data", tmp_path / "run")
    ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    engine = asyncio.create_task(
        serve(layout=layout, node_layout=layout.node("n"), docker_socket=layout.docker_socket, ready=ready.set_result)
    )
    # The builds are listed as unstable only for what their registries and caches held: without the list all count.
    counted, listed = tmp_path / "counted", tmp_path / "listed"
    for folder in (counted, listed):
        (folder / "exchanges").mkdir(parents=True)
        shutil.copy(golden / "docker" / "exchanges" / "image.jsonl", folder / "exchanges")
    shutil.copy(golden / "docker" / "unstable.txt", listed)
    try:
        await ready
        verdicts = await replay(golden, counted, layout.docker_socket, "image.build")
        assert len(verdicts) > 40
        assert [v for v in verdicts if v["verdict"] != "exact"] == []
        verdicts = await replay(golden, listed, layout.docker_socket, "image.")
        assert len(verdicts) > 70
        # How long a container has been up depends on how busy the machine is.
        wrong = [v for v in verdicts if v["verdict"] != "exact" and 'want "Up Less than a second"' not in v["why"]]
        assert [v for v in wrong if v["id"] not in KNOWN] == []
    finally:
        engine.cancel()
        await asyncio.gather(engine, return_exceptions=True)
