"""Clients that are slow, silent, hostile or gone."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from grpclib.const import Cardinality

from longshore.engine.build.buildkit import progress, session, transport
from longshore.engine.build.buildkit.schemas import control
from longshore.engine.build.buildkit.session import Session
from longshore.machinery.grpc import Client, RpcError, Status

from .kit import Kit, Socket

pytestmark = pytest.mark.root


async def pipe(path: Any, answer: Any) -> Socket:
    """A connection to somebody who does with it what `answer` does."""
    server = await asyncio.start_unix_server(answer, path)
    reader, writer = await asyncio.open_unix_connection(str(path))
    server.close()
    return Socket(reader, writer)


async def test_a_client_that_says_nothing(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its session is open, and not a word comes: builds that wait for its files end."""
    monkeypatch.setattr(session, "HEALTH_EVERY", 0.2)
    monkeypatch.setattr(session, "HEALTH_WITHIN", 0.3)
    held: list[Any] = []

    async def silent(reader: Any, writer: Any) -> None:
        held.append(writer)
        while await reader.read(65536):
            pass
        writer.close()

    opened = Session("mute", await pipe(kit.path / "mute.sock", silent), [])  # type: ignore[arg-type]
    await kit.services.sessions.add(opened)
    ending = asyncio.create_task(opened.ended())
    with pytest.raises(RpcError, match=r"session ended|Connection (lost|closed)"):
        await asyncio.wait_for(kit.client.call("Solve", Ref="m", Session="mute", Frontend="dockerfile.v0"), 20)
    await asyncio.wait_for(ending, 20)


async def test_a_client_that_answers_goes_on(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not know the question for its health (as the kit's) is alive."""
    monkeypatch.setattr(session, "HEALTH_EVERY", 0.05)
    watching = asyncio.create_task(kit.session.ended())
    await kit.build("FROM busybox\nRUN sleep 0.5\n", **{"force-network-mode": "none"})
    assert not watching.done()
    watching.cancel()


async def test_messages_without_measure(kit: Kit) -> None:
    async def serve(reader: Any, writer: Any) -> None:
        try:
            await transport.serve(Socket(reader, writer), kit.services.server())  # type: ignore[arg-type]
        finally:
            writer.close()

    listening = await asyncio.start_unix_server(serve, kit.path / "raw.sock")
    client = Client(control.Control, path=kit.path / "raw.sock")
    method = client._methods["Solve"]
    stream = client._channel.request(method.path, Cardinality.UNARY_UNARY, method.request, method.reply)
    with pytest.raises(RpcError) as caught:
        async with stream:
            await stream.send_request()
            # A message that says to be 4 GB long, and begins.
            await stream._stream.send_data(struct.pack("?", False) + struct.pack(">I", 0xFFFFFFFF) + bytes(4096))
            await stream.recv_message()
    assert caught.value.status is Status.RESOURCE_EXHAUSTED
    assert (await client.call("Info")).buildkitVersion.version  # the connection is as good as before
    # What is no HTTP/2 at all ends its own connection only.
    reader, writer = await asyncio.open_unix_connection(str(kit.path / "raw.sock"))
    writer.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(70_000))
    assert await asyncio.wait_for(reader.read(), 10) is not None
    writer.close()
    assert (await client.call("ListWorkers")).record
    client.close()
    listening.close()


async def test_two_builds_of_one_session(kit: Kit) -> None:
    (kit.context / "Dockerfile").write_text("FROM busybox\nARG A\nCOPY Dockerfile /f\nRUN sleep 0.2; echo $A > /a\n")
    solving = [
        kit.client.call(
            "Solve", Ref=f"t{n}", Session="s1", Frontend="dockerfile.v0",
            FrontendAttrs={"filename": "Dockerfile", "force-network-mode": "none", "build-arg:A": str(n)},
            Exporters=[control.Exporter(Type="moby", Attrs={"name": f"both:{n}"})],
        )
        for n in range(4)
    ]  # fmt: skip
    answers = await asyncio.gather(*solving)
    made = {answer.ExporterResponse["containerimage.config.digest"] for answer in answers}
    assert len(made) == 4 and made == {kit.store.resolve(f"both:{n}").id for n in range(4)}
    assert "s1" in kit.services.sessions


async def test_output_without_end(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word of a build is kept for its watchers: only so many of a step."""
    monkeypatch.setattr(progress, "_LOG_LIMIT", 1000)
    await kit.build("FROM busybox\nRUN seq 1 100000\nRUN echo short\n", **{"force-network-mode": "none"})
    assert kit.logs.count(b"[output clipped, log limit") == 1 and len(kit.logs) < 2000 and b"short\n" in kit.logs
