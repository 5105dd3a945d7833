"""Events over HTTP, as Fluentd's in_http takes them: POST /TAG with JSON, msgpack or a form; arrays are many events."""

from __future__ import annotations

import ssl
import time
from typing import Any

import orjson

from longshore.machinery.http import BodyTooLarge, Request, Response, Server
from longshore.node.logs.inputs.emit import Emit
from longshore.node.logs.inputs.stream import shared_socket
from longshore.wire import forward
from longshore.wire.forward import Event

BODY_LIMIT = 32 * 2**20
SECOND = 1_000_000_000
_TEXT = "text/plain; charset=utf-8"


class HTTPInput:
    """Answers 200 after the events are kept; 400 to what cannot be read, 413 past the limit, 503 when the disk is full."""

    def __init__(
        self,
        emit: Emit,
        *,
        host: str = "127.0.0.1",
        port: int = 9880,
        tls: ssl.SSLContext | None = None,
        limit: int = BODY_LIMIT,
        shared: bool = False,
    ) -> None:
        self._emit = emit
        self._host = host
        self.port = port
        self._tls = tls
        self._limit = limit
        self._shared = shared
        self._server = Server(self._handle)

    async def start(self) -> None:
        """Listen. Raises OSError."""
        sock = shared_socket(self._host, self.port) if self._shared else None
        self.port = await self._server.listen_tcp(self._host, self.port, ssl=self._tls, sock=sock)

    async def _handle(self, request: Request) -> Response:
        tag = request.path.strip("/").replace("/", ".")
        if request.method != "POST" or not tag:
            return Response(400, b"400 Bad Request\ntag is missing in the path\n", content_type=_TEXT)
        try:
            body = await request.read(self._limit)
            records = _records(request, decoded(body, request.headers.get("content-encoding") or "", self._limit))
            when = request.param("time")
            now = int(float(when) * SECOND) if when else time.time_ns()
        except BodyTooLarge:
            return Response(413, b"413 Request Entity Too Large\n", content_type=_TEXT)
        except (ValueError, OverflowError) as error:
            return Response(400, f"400 Bad Request\n{error}\n".encode(), content_type=_TEXT)
        events: list[Event] = [(now, record) for record in records]
        try:
            await self._emit(tag, events)
        except OSError as error:
            return Response(503, f"503 Service Unavailable\n{error}\n".encode(), content_type=_TEXT)
        return Response(200, b"", content_type=_TEXT)

    async def close(self) -> None:
        await self._server.close()


def decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """A body freed of its content encoding, bounded. Raises ValueError."""
    if encoding.lower() in ("", "identity"):
        return body
    if encoding.lower() in ("gzip", "deflate"):
        import zlib

        inflater = zlib.decompressobj(31 if encoding.lower() == "gzip" else 15)
        try:
            plain = inflater.decompress(body, limit + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if len(plain) > limit or not inflater.eof:
            raise ValueError("the body is too large, or cut short")
        return plain
    raise ValueError(f"Content-Encoding {encoding!r} not supported")


def _records(request: Request, body: bytes) -> list[dict[Any, Any]]:
    kind = (request.headers.get("content-type") or "").partition(";")[0].strip().lower()
    value: Any
    if kind == "application/json":
        value = orjson.loads(body)
    elif kind == "application/x-ndjson":
        value = [orjson.loads(line) for line in body.split(b"\n") if line.strip()]
    elif kind in ("application/msgpack", "application/x-msgpack"):
        value = forward.unpack_value(body, BODY_LIMIT)
    elif kind == "application/x-www-form-urlencoded":
        from longshore.machinery.http.message import parse_query

        form = parse_query(body.decode("utf-8", "replace"))
        if "json" in form:
            value = orjson.loads(form["json"][0])
        else:
            value = {key: values[0] for key, values in form.items()}
    else:
        raise ValueError(f"Content-Type {kind!r} is not supported")
    records = value if isinstance(value, list) else [value]
    if not all(isinstance(record, dict) for record in records):
        raise ValueError("Received event is not json: a record is an object")
    return records
