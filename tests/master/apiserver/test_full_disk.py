"""A full disk: writes are refused with etcd's words, reads and watches go on, and with room again writes do too."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Running

MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """6 MB of tmpfs, in this process's own mount namespace."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(mount)], check=True)
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.root
def test_writes_are_refused_reads_go_on_and_room_ends_it(small: Path, tmp_path: Path) -> None:
    ballast = small / "ballast"
    ballast.write_bytes(bytes(3 * 2**20))
    folder = tmp_path / "server"
    folder.mkdir()
    server = Running(folder, data=small / "data")
    try:
        version = server.send("GET", MAPS).json["metadata"]["resourceVersion"]
        stored: list[str] = []
        refused = 0
        for number in range(400):
            answer = server.send("POST", MAPS, {"metadata": {"name": f"m-{number}"}, "data": {"x": "y" * 20_000}})
            if answer.status == 201:
                stored.append(f"m-{number}")
                continue
            assert answer.status == 500
            assert "etcdserver: mvcc: database space exceeded" in answer.json["message"]
            refused += 1
            if refused == 3:
                break
        assert refused == 3
        # What was refused is nowhere, what was acknowledged is, and the server is well.
        assert {i["metadata"]["name"] for i in server.send("GET", MAPS).json["items"]} == set(stored)
        one = server.send("GET", f"{MAPS}/{stored[0]}").json
        assert server.send("GET", "/livez").status == 200
        change = {"data": {"x": "z" * 20_000}}
        answer = server.send("PATCH", f"{MAPS}/{stored[0]}", change, Content_Type="application/merge-patch+json")
        assert answer.status == 500
        assert server.send("GET", f"{MAPS}/{stored[0]}").json == one

        ballast.unlink()
        answer = server.send("PATCH", f"{MAPS}/{stored[0]}", change, Content_Type="application/merge-patch+json")
        assert answer.status == 200, answer.raw
        assert server.send("POST", MAPS, {"metadata": {"name": "room"}}).status == 201
        connection = server.connect()
        connection.request("GET", f"{MAPS}?watch=1&timeoutSeconds=1&resourceVersion={version}")
        events = [json.loads(line) for line in connection.getresponse().read().splitlines()]
        connection.close()
        told = [(e["type"], e["object"]["metadata"]["name"]) for e in events]
        assert told == [*(("ADDED", name) for name in stored), ("MODIFIED", stored[0]), ("ADDED", "room")]
    finally:
        server.stop()
    again = tmp_path / "again"
    again.mkdir()
    server = Running(again, data=small / "data")
    try:
        assert {i["metadata"]["name"] for i in server.send("GET", MAPS).json["items"]} == {*stored, "room"}
    finally:
        server.stop()
