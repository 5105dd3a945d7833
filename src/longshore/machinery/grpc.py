"""gRPC over unix sockets and TCP: serve an object's methods, call another's, both from a `wire.protobuf.Service`.

Errors are `RpcError(Status.NOT_FOUND, "text")` on both sides. Source: gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md),
spoken by grpclib.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import ssl as ssl_module
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

from grpclib import GRPCError as RpcError
from grpclib import Status
from grpclib.client import Channel, Stream
from grpclib.config import Configuration
from grpclib.const import Cardinality, Handler
from grpclib.exceptions import StreamTerminatedError
from grpclib.protocol import H2Protocol
from grpclib.server import Server as GrpcServer
from h2.connection import H2Connection

from longshore.wire.protobuf import Method, Service

__all__ = ["Client", "RpcError", "Server", "Status", "snake"]

log = logging.getLogger("longshore.grpc")
_WINDOW = 4 * 2**20
# A connection remembers how its last streams ended, for frames that come late; the library's 65,536 of them, a call
# each, are 10 MB for every connection that lives long.
H2Connection.MAX_CLOSED_STREAMS = 1024


def snake(name: str) -> str:
    """The Python method that serves an RPC: "RunPodSandbox" -> "run_pod_sandbox"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _cardinality(method: Method) -> Any:
    return {
        (False, False): Cardinality.UNARY_UNARY,
        (False, True): Cardinality.UNARY_STREAM,
        (True, False): Cardinality.STREAM_UNARY,
        (True, True): Cardinality.STREAM_STREAM,
    }[method.client_streaming, method.server_streaming]


class Server:
    """Serves objects over gRPC.

    Each RPC calls the object's method of that name in snake case: unary `async def m(request) -> reply`; a streaming
    reply is an async generator; a streaming request is an async iterator of messages. A method that takes a second
    parameter gets the call's metadata (lower-case keys). A missing one answers Unimplemented. An exception other than
    `RpcError` is logged and answered as Unknown with its text (`translate` may turn it into another first).
    """

    def __init__(
        self,
        *services: tuple[Service, object],
        translate: Callable[[Exception], RpcError | None] = lambda _: None,
    ) -> None:
        self._translate = translate
        mapping: dict[str, Any] = {}
        for service, implementation in services:
            for method in service.methods.values():
                mapping[method.path] = self._handler(method, getattr(implementation, snake(method.name), None))
        self._server = GrpcServer(
            [_Mapped(mapping)],
            config=Configuration(http2_connection_window_size=_WINDOW, http2_stream_window_size=_WINDOW),
        )
        # Its connections, so that their clients see the server's end.
        self._protocols: WeakSet[H2Protocol] = WeakSet()
        make = self._server._protocol_factory

        def tracked() -> H2Protocol:
            protocol = make()
            self._protocols.add(protocol)
            return protocol

        self._server._protocol_factory = tracked
        self._path: Path | None = None

    def _handler(self, method: Method, function: Callable[..., Any] | None) -> Any:
        wants_metadata = function is not None and _positional(function) > 1

        async def call(stream: Any) -> None:
            try:
                if function is None:
                    raise RpcError(Status.UNIMPLEMENTED, f"method {method.name} not implemented")
                extra = (stream.metadata,) if wants_metadata else ()
                if method.client_streaming:
                    argument = stream
                else:
                    argument = await stream.recv_message()
                    if argument is None:
                        raise RpcError(Status.INTERNAL, "the call ended before its message")
                if method.server_streaming:
                    await stream.send_initial_metadata()
                    async with contextlib.aclosing(function(argument, *extra)) as replies:
                        async for reply in replies:
                            await stream.send_message(reply)
                else:
                    await stream.send_message(await function(argument, *extra))
            except (RpcError, StreamTerminatedError):
                raise
            except Exception as error:
                known = self._translate(error)
                if known is not None:
                    raise known from error
                log.exception("%s failed", method.path)
                raise RpcError(Status.UNKNOWN, str(error) or type(error).__name__) from error

        return Handler(call, _cardinality(method), method.request, method.reply)

    async def listen_unix(self, path: Path, *, mode: int = 0o660) -> None:
        """Listen on a socket file; a stale one of a killed predecessor is replaced."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.stat().st_mode):
                path.unlink()
        await self._server.start(path=str(path))
        os.chmod(path, mode)
        self._path = path

    async def listen_tcp(self, host: str, port: int, *, ssl: ssl_module.SSLContext | None = None) -> int:
        """Listen on an address (TLS contexts need ALPN "h2"); returns the port."""
        if ssl is not None:
            ssl.set_alpn_protocols(["h2"])
        await self._server.start(host, port, ssl=ssl)
        return int(self._server._server.sockets[0].getsockname()[1])

    async def close(self, grace: float = 0.5) -> None:
        """Stop listening, cancel the calls under way, which get `grace` seconds to end, and close every connection."""
        self._server.close()
        ending = [asyncio.create_task(handler.wait_closed()) for handler in list(self._server._handlers)]
        if ending:
            _, late = await asyncio.wait(ending, timeout=grace)
            for task in late:
                task.cancel()
        for protocol in list(self._protocols):
            protocol.processor.close("the server is closing")
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()


class _Mapped:
    def __init__(self, mapping: Mapping[str, Any]) -> None:
        self._mapping = mapping

    def __mapping__(self) -> Mapping[str, Any]:
        return self._mapping


def _positional(function: Callable[..., Any]) -> int:
    code = getattr(function, "__code__", None) or getattr(getattr(function, "__func__", None), "__code__", None)
    if code is None:
        return 1
    return int(code.co_argcount) - (1 if hasattr(function, "__self__") else 0)


class Client:
    """A channel to one or more services of a server; connects on first use and again after a break."""

    def __init__(
        self,
        *services: Service,
        path: Path | str | None = None,
        host: str | None = None,
        port: int | None = None,
        ssl: ssl_module.SSLContext | None = None,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> None:
        """path: a unix socket; or host and port. metadata: sent with every call."""
        self._methods = {name: method for service in services for name, method in service.methods.items()}
        self._metadata = list(metadata)
        config = Configuration(http2_connection_window_size=_WINDOW, http2_stream_window_size=_WINDOW)
        where: dict[str, Any] = {"path": str(path)} if path is not None else {"host": host, "port": port}
        self._channel = Channel(**where, ssl=ssl, config=config)

    def _stream(self, method: Method, timeout: float | None) -> Any:
        return self._channel.request(
            method.path, _cardinality(method), method.request, method.reply, timeout=timeout, metadata=self._metadata
        )

    async def call(self, name: str, request: Any = None, *, deadline: float | None = None, **fields: Any) -> Any:
        """One unary RPC: a ready message, or the request's fields as keywords.

        deadline: seconds from now. Raises RpcError (Status.UNAVAILABLE when the server cannot be reached or went away,
        Status.DEADLINE_EXCEEDED past the deadline).
        """
        method = self._methods[name]
        message = method.request(**fields) if request is None else request
        try:
            async with self._stream(method, deadline) as stream:
                await stream.send_message(message, end=True)
                return await stream.recv_message()
        except TimeoutError as error:
            raise RpcError(Status.DEADLINE_EXCEEDED, f"{name}: deadline exceeded") from error
        except (OSError, StreamTerminatedError) as error:
            raise RpcError(Status.UNAVAILABLE, f"{name}: {error}") from error

    async def stream(self, name: str, request: Any = None, **fields: Any) -> AsyncIterator[Any]:
        """One RPC whose reply streams; ends with the server's end. Raises RpcError like `call`."""
        method = self._methods[name]
        message = method.request(**fields) if request is None else request
        try:
            async with self._stream(method, None) as stream:
                await stream.send_message(message, end=True)
                async for reply in stream:
                    yield reply
        except (OSError, StreamTerminatedError) as error:
            raise RpcError(Status.UNAVAILABLE, f"{name}: {error}") from error

    def open(self, name: str) -> Stream[Any, Any]:
        """A bidirectional RPC as grpclib's client stream: an async context with send_message and recv_message."""
        return self._stream(self._methods[name], None)

    def close(self) -> None:
        self._channel.close()
