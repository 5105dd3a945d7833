"""Continue tokens whose revision is compacted away: the answer has one that goes on with what is there now."""

from __future__ import annotations

import urllib.parse
from pathlib import Path

from .conftest import Running

URL = "/api/v1/namespaces/default/configmaps"


def test_a_token_expires_and_is_replaced(tmp_path: Path) -> None:
    server = Running(tmp_path, "--etcd-compaction-interval", "1")
    try:
        for name in ("a", "b", "c"):
            assert server.send("POST", URL, {"metadata": {"name": name}}).status == 201
        page = server.send("GET", f"{URL}?limit=1").json
        token = urllib.parse.quote(page["metadata"]["continue"])
        for number in range(400):
            # The revision moves on, as it does in a cluster.
            assert server.send("PUT", f"{URL}/a", {"metadata": {"name": "a"}, "data": {"n": str(number)}}).status == 200
            answer = server.send("GET", f"{URL}?limit=1&continue={token}")
            if answer.status != 200:
                break
        assert answer.status == 410 and answer.json["reason"] == "Expired"
        fresh = urllib.parse.quote(answer.json["metadata"]["continue"])
        rest = server.send("GET", f"{URL}?limit=10&continue={fresh}").json
        assert [i["metadata"]["name"] for i in rest["items"]][:2] == ["b", "c"]
        assert int(rest["metadata"]["resourceVersion"]) > int(page["metadata"]["resourceVersion"])
    finally:
        server.stop()
