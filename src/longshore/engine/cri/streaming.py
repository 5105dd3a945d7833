"""The streaming server: exec, attach and port-forward sessions behind one-time addresses on loopback.

Source: k8s.io/kubelet/pkg/cri/streaming (how addresses are given out: each holds for one request, for a minute).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from longshore.engine.runtime.attachment import STDERR, Attachment
from longshore.engine.runtime.runtime import ExecSession
from longshore.machinery import netns
from longshore.machinery.grpc import RpcError, Status
from longshore.machinery.http import Request, Response, Server
from longshore.machinery.streams import (
    SUCCESS,
    Options,
    Refused,
    RemoteCommand,
    accept_command,
    exit_status,
    failure,
    serve_port_forward,
)

log = logging.getLogger("longshore.engine.cri.streaming")
TOKEN_SECONDS = 60.0
TOKEN_LIMIT = 1000
CONNECT_SECONDS = 10.0

#: starts an exec session for a request that came in by an address
ExecStarter = Callable[[], Awaitable[ExecSession]]


class StreamingServer:
    """Gives out addresses and serves each of them once."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._host, self._port = host, port
        self._server = Server(self._handle)
        self._waiting: dict[str, tuple[float, str, Callable[[Request], Awaitable[None]]]] = {}

    async def start(self) -> None:
        self._port = await self._server.listen_tcp(self._host, self._port)

    async def close(self) -> None:
        await self._server.close()

    def _address(self, kind: str, serve: Callable[[Request], Awaitable[None]]) -> str:
        now = time.monotonic()
        for token in [t for t, (when, _, _) in self._waiting.items() if now - when > TOKEN_SECONDS]:
            del self._waiting[token]
        if len(self._waiting) >= TOKEN_LIMIT:
            raise RpcError(Status.RESOURCE_EXHAUSTED, "maximum number of in-flight requests exceeded")
        token = secrets.token_urlsafe(12)
        self._waiting[token] = (now, kind, serve)
        return f"http://{self._host}:{self._port}/{kind}/{token}"

    async def _handle(self, request: Request) -> Response | None:
        parts = request.path.strip("/").split("/")
        if len(parts) != 2:
            return Response(404, b"404 page not found\n", (), "text/plain; charset=utf-8")
        kind, token = parts
        found = self._waiting.get(token)
        if found is None or found[1] != kind or time.monotonic() - found[0] > TOKEN_SECONDS:
            return Response(404, b"404 page not found\n", (), "text/plain; charset=utf-8")
        if request.method not in ("GET", "POST"):
            return Response(405, b"", (("Allow", "GET, POST"),))
        del self._waiting[token]
        try:
            await found[2](request)
        except Refused as refused:
            return refused.response
        except ConnectionError as error:
            log.debug("%s session: %s", kind, error)
        return None

    # -- exec and attach ---------------------------------------------------------------------------------------------

    def exec(self, options: Options, start: ExecStarter) -> str:
        """An address that runs a command once. start: begins it, attached; raises RpcError or the runtime's error."""

        async def serve(request: Request) -> None:
            command = await accept_command(request, options)
            try:
                session = await start()
            except Exception as error:
                text = error.message if isinstance(error, RpcError) else str(error)
                await command.finish(failure(f"error executing command in container: {text}"))
                return
            assert session.io is not None
            try:
                await _carry(command, session.io, session.resize)
                if session.exit_code is None and command.stdin is None and command.stdout is None:
                    await session.wait()
                code = await session.wait()
                await command.finish(exit_status(code) if code else SUCCESS)
            except BaseException:
                session.hang_up()
                raise
            finally:
                session.io.close()

        return self._address("exec", serve)

    def attach(self, options: Options, connect: Callable[[], Attachment], resize: Callable[[int, int], None]) -> str:
        """An address that joins a running container's stdio once. resize: (rows, columns)."""

        async def serve(request: Request) -> None:
            command = await accept_command(request, options)
            try:
                io = connect()
            except Exception as error:
                await command.finish(failure(f"error attaching to container: {error}"))
                return
            try:
                await _carry(command, io, resize)
                await command.finish(SUCCESS)
            finally:
                io.close()

        return self._address("attach", serve)

    # -- port-forward ------------------------------------------------------------------------------------------------

    def port_forward(self, namespace: Path | None) -> str:
        """An address that forwards to ports of localhost in a network namespace (None: the engine's own)."""

        async def serve(request: Request) -> None:
            await serve_port_forward(request, lambda port: dial(namespace, port))

        return self._address("portforward", serve)


async def _carry(command: RemoteCommand, io: Attachment, resize: Callable[[int, int], None]) -> None:
    """Carry a session's streams until its output ends. Raises ConnectionError when the client goes before."""

    async def inward() -> None:
        if command.stdin is None:
            return
        try:
            async for data in command.stdin:
                await io.write(data)
            io.close_input()
        except (BrokenPipeError, ConnectionError):
            return

    async def sizes() -> None:
        async for columns, rows in command.resize:
            with contextlib.suppress(Exception):
                resize(rows, columns)

    async def outward() -> None:
        while (piece := await io.read()) is not None:
            stream, data = piece
            target = command.stderr if stream == STDERR else command.stdout
            if target is not None:
                target.write(data)
                await target.drain()

    feeding = [asyncio.create_task(inward()), asyncio.create_task(sizes())]
    draining = asyncio.create_task(outward())
    gone = asyncio.create_task(command.closed())
    try:
        await asyncio.wait((draining, gone), return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            raise ConnectionResetError("the client has gone")
        draining.result()
    finally:
        for task in (*feeding, draining, gone):
            task.cancel()


async def dial(namespace: Path | None, port: int) -> Any:
    """A connection to localhost:port inside a network namespace, as a byte stream. Raises OSError."""
    loop = asyncio.get_running_loop()
    problem: OSError | None = None
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        made = await asyncio.to_thread(netns.make_socket, namespace, family, socket.SOCK_STREAM)
        made.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.sock_connect(made, (host, port))
            reader, writer = await asyncio.open_connection(sock=made)
            return _Connection(reader, writer)
        except (OSError, TimeoutError) as error:
            made.close()
            if problem is None:
                problem = error if isinstance(error, OSError) else OSError(str(error))
    assert problem is not None
    raise OSError(
        problem.errno, f"failed to connect to localhost:{port} inside the pod's namespace: {problem.strerror}"
    )


class _Connection:
    """A TCP connection as the streams machinery wants it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, n: int = 65536) -> bytes:
        return await self._reader.read(n)

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def writelines(self, data: list[bytes]) -> None:
        self._writer.writelines(data)

    async def drain(self) -> None:
        await self._writer.drain()

    def write_eof(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()

    async def closed(self) -> None:
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
