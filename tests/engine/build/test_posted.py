"""POST /build?version=2: BuildKit without its plugin."""

from __future__ import annotations

import asyncio
import base64
import io
import tarfile
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.engine.images.conftest import once, tar_of

from longshore.engine.build.buildkit.posted import PostedBuilds
from longshore.engine.build.buildkit.schemas import control
from longshore.engine.build.options import parse_options
from longshore.engine.errors import InvalidParameter, SystemFailure

from .kit import Kit

pytestmark = pytest.mark.root


class Posts:
    """Requests to one engine, and what it said to the last."""

    def __init__(self, kit: Kit) -> None:
        self.kit, self.builds = kit, PostedBuilds(kit.services)
        self.said: list[dict[str, Any]] = []

    async def __call__(self, body: bytes | AsyncIterator[bytes] = b"", **query: str) -> None:
        self.said = said = []
        given = {"version": "2", "networkmode": "none", **query}
        options = parse_options({key: [value] for key, value in given.items()})
        await self.builds.build(once(body) if isinstance(body, bytes) else body, options, said.append)

    @property
    def traces(self) -> list[Any]:
        found = []
        for message in self.said:
            if message.get("id") == "moby.buildkit.trace":
                trace = control.StatusResponse()
                trace.ParseFromString(base64.b64decode(message["aux"]))
                found.append(trace)
        return found


@pytest.fixture
def post(kit: Kit) -> Posts:
    return Posts(kit)


async def test_from_the_clients_session(kit: Kit, post: Posts) -> None:
    (kit.context / "Other").write_text("FROM busybox\nARG A\nCOPY f /f\nRUN echo hello $A\n")
    (kit.context / "f").write_text("data")
    await post(remote="client-session", session="s1", dockerfile="Other", t="x:1", buildargs='{"A":"b","C":null}')
    names = {vertex.name for trace in post.traces for vertex in trace.vertexes}
    assert "[internal] load build definition from Other" in names and "[3/3] RUN echo hello b" in names
    assert b"hello b\n" in b"".join(log.msg for trace in post.traces for log in trace.logs)
    assert post.said[-1] == {"id": "moby.image.id", "aux": {"ID": kit.store.resolve("x:1").id}}
    await post(remote="client-session", session="s1", dockerfile="Other", q="1")
    (only,) = post.said
    assert only["stream"].startswith("sha256:") and only["stream"].endswith("\n")
    await post(remote="client-session", session="s1", dockerfile="Other", outputs='[{"Type":"tar","Attrs":{}}]')
    with tarfile.open(fileobj=io.BytesIO((kit.path / "out").read_bytes())) as archive:
        assert "f" in archive.getnames()
    await post(remote="client-session", session="s1", dockerfile="Other", outputs='[{"Type":"cacheonly"}]')
    assert "moby.image.id" not in {message.get("id") for message in post.said}


async def test_from_the_requests_body(kit: Kit, post: Posts) -> None:
    body = tar_of({"Dockerfile": b"FROM busybox\nCOPY f /f\n", "f": b"data"})
    await post(body, t="x")  # without any session
    assert kit.store.find("x") is not None
    text = b"FROM busybox\nRUN --mount=type=secret,id=known cp /run/secrets/known /s\n"
    await post(tar_of({"Dockerfile": text}), session="s1", t="y")  # the secret is the session's
    assert kit.store.find("y") is not None
    assert "s1" in kit.services.sessions  # which goes on
    with pytest.raises(SystemFailure, match="exit code: 3"):
        await post(tar_of({"Dockerfile": b"FROM busybox\nRUN exit 3\n"}))
    for query, text_, kind in (
        ({"outputs": '[{"Type":"tar"},{"Type":"oci"}]'}, "multiple outputs not supported", SystemFailure),
        ({"outputs": "{"}, "error reading outputs", InvalidParameter),
        ({"networkmode": "some"}, 'network mode "some" not supported by buildkit', SystemFailure),
        ({"outputs": '[{"Type":"tar"}]'}, "no active sessions", SystemFailure),
    ):
        with pytest.raises(kind, match=text_):
            await post(body, **query)


async def test_a_body_in_a_request_of_its_own(kit: Kit, post: Posts) -> None:
    body = tar_of({"Dockerfile": b"FROM busybox\nCOPY f /f\n", "f": b"data"})
    bringing = asyncio.create_task(Posts.__call__(_beside(post), body, buildid="upload-request:b1"))
    await post(remote="upload-request", session="s1", buildid="b1", t="x")
    await asyncio.wait_for(bringing, 5)
    assert post.said[-1]["aux"]["ID"] == kit.store.resolve("x").id


def _beside(post: Posts) -> Posts:
    other = Posts(post.kit)
    other.builds = post.builds
    return other


async def test_cancel(kit: Kit, post: Posts) -> None:
    post.builds.cancel("unknown")
    running = asyncio.create_task(post(tar_of({"Dockerfile": b"FROM busybox\nRUN sleep 1000\n"}), buildid="b1"))
    async with asyncio.timeout(20):
        while not list((kit.path / "run").glob("*/config.json")):
            await asyncio.sleep(0.02)
    post.builds.cancel("b1")
    with pytest.raises(SystemFailure, match="context canceled"):
        await asyncio.wait_for(running, 20)
    async with asyncio.timeout(20):
        while list((kit.path / "run").glob("*/config.json")):  # what was cancelled cleans up in its own time
            await asyncio.sleep(0.02)


async def test_a_body_that_ends_early(post: Posts) -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield tar_of({"Dockerfile": b"FROM busybox\n", "big": bytes(1 << 20)})[: 1 << 19]
        raise SystemFailure("unexpected EOF")

    with pytest.raises(SystemFailure, match="unexpected EOF"):
        await post(cut())
