"""Outputs. Source: docs.fluentd.org "Output Plugins"."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.node.logs.fluentd.buffer import Buffer, Chunk, Unwritable
from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.formatters import make_formatter
from longshore.node.logs.fluentd.plugin import Output
from longshore.node.logs.fluentd.settings import Field, array, boolean, choice, integer, mapping, seconds, string
from longshore.node.logs.inputs.emit import StoreEmit
from longshore.wire import forward
from longshore.wire.forward import Event

if TYPE_CHECKING:
    from longshore.node.logs.fluentd.pipeline import Context

log = logging.getLogger("longshore.fluentd.outputs")
_TIME_PLACES = re.compile(r"%[YmdHMS]")


class Buffered(Output):
    """An output that writes whole chunks: subclasses have `write(chunk)`. BY_TIME: its default chunk key is time."""

    SECTIONS = frozenset({"buffer", "secondary", "format"})
    BY_TIME = False

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        second = element.one("secondary")
        self._second: Buffered | None = None
        if second is not None:
            made = context.output(second, element.text("@type"))
            if not isinstance(made, Buffered):
                raise second.error("a secondary output must be a buffered one")
            self._second = made
        section = element.one("buffer")
        folder = context.folder / "buffer" / re.sub(r"[^\w.-]", "_", self.id)
        self.buffer = Buffer(
            element,
            section,
            folder,
            self.write,
            self._second.write if self._second else None,
            by_time=self.BY_TIME,
            workers=context.workers,
        )

    async def start(self) -> None:
        self.buffer.start()

    async def take(self, tag: str, events: Sequence[Event], *, durable: bool) -> None:
        await self.buffer.append(tag, events, durable)
        self.records += len(events)

    async def write(self, chunk: Chunk) -> None:
        """Bring one chunk where it belongs. Raises OSError to be asked again, Unwritable to be asked no more."""
        raise NotImplementedError

    async def close(self) -> None:
        await self.buffer.close()

    def figures(self) -> dict[str, Any]:
        return self.buffer.figures()


class FileOutput(Buffered):
    """Files with time, tag and record keys in their paths; a chunk is one file, or appended where `append` says so."""

    NAME = "file"
    BY_TIME = True
    FIELDS = {
        "path": Field(string, None, True),
        "append": Field(boolean, False),
        "compress": Field(choice("text", "gzip", "gz"), "text"),
        "add_path_suffix": Field(boolean, True),
        "path_suffix": Field(string, ".log"),
        "recompress": Field(boolean, False),
        "symlink_path": Field(string, ""),
    }

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        self._format = make_formatter(element.one("format"))

    async def write(self, chunk: Chunk) -> None:
        data = b"".join(self._format(chunk.tag, when, record) for when, record in chunk.events())
        await asyncio.to_thread(self._write, chunk, data)

    def _write(self, chunk: Chunk, data: bytes) -> None:
        path = place(self.set["path"], chunk, self.buffer.zone)
        if chunk.slot and not _TIME_PLACES.search(self.set["path"]):
            path = path.removesuffix("*") + "." + _local(chunk.slot, self.buffer.zone).strftime("%Y%m%d")
        suffix = self.set["path_suffix"] if self.set["add_path_suffix"] else ""
        if self.set["compress"] != "text":
            data, suffix = gzip.compress(data), suffix + ".gz"
        number = 0
        while True:
            final = Path(path + ("" if self.set["append"] else f"_{number}") + suffix)
            if self.set["append"] or not final.exists():
                break
            number += 1
        final.parent.mkdir(parents=True, exist_ok=True)
        if self.set["append"]:
            with final.open("ab") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
        else:
            partial = final.with_name(f".{final.name}.{chunk.id}")
            with partial.open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            partial.rename(final)
        if self.set["symlink_path"]:
            link = Path(self.set["symlink_path"])
            fresh = link.with_name(f".{link.name}.new")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(final.absolute())
            fresh.rename(link)


def _local(when: float, zone: datetime.tzinfo | None) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(when, zone)


def place(text: str, chunk: Chunk, zone: datetime.tzinfo | None = None) -> str:
    """`${tag}`, `${tag[N]}`, `${key}`, `${chunk_id}` and strftime's letters filled in; nothing leads out of the folder."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name == "tag":
            found = chunk.tag
        elif number := re.fullmatch(r"tag\[(-?\d+)\]", name):
            parts = chunk.tag.split(".")
            found = parts[int(number[1])] if -len(parts) <= int(number[1]) < len(parts) else ""
        elif name == "chunk_id":
            found = chunk.id.removesuffix(".sent")
        else:
            found = chunk.keys.get(name, "")
        return re.sub(r"[/\0]", "_", found).replace("..", "_").replace("%", "%%")

    filled = re.sub(r"\$\{([^}]*)\}", value, text)
    return _local(chunk.slot or chunk.created, zone).strftime(filled)


class StoreOutput(Output):
    """Longshore's own store: queries find the records in `{job="fluentd", tag=...}`."""

    NAME = "store"
    FIELDS = {"job": Field(string, "fluentd")}

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        if context.store is None:
            raise element.error("@type store is there on a node only, where a log store is")
        self._emit = StoreEmit(context.store, context.node, self.set["job"])

    async def take(self, tag: str, events: Sequence[Event], *, durable: bool) -> None:
        await self._emit(tag, events, durable=durable)
        self.records += len(events)


class ForwardOutput(Buffered):
    """To other Fluentds: weighed servers in turn, standby ones when the others are away, chunks acknowledged."""

    NAME = "forward"
    FIELDS = {
        "require_ack_response": Field(boolean, False),
        "ack_response_timeout": Field(seconds, 190.0),
        "send_timeout": Field(seconds, 60.0),
        "connect_timeout": Field(seconds, 10.0),
        "recover_wait": Field(seconds, 10.0),
        "compress": Field(choice("text", "gzip", "zstd"), "text"),
        "transport": Field(choice("tcp", "tls"), "tcp"),
        "tls_cert_path": Field(array, []),
        "tls_insecure_mode": Field(boolean, False),
        "heartbeat_type": Field(choice("transport", "tcp", "udp", "none"), "none"),
    }
    SECTIONS = Buffered.SECTIONS | {"server", "security"}
    _SERVER = {
        "host": Field(string, None, True),
        "port": Field(integer, 24224),
        "name": Field(string, ""),
        "weight": Field(integer, 60),
        "standby": Field(boolean, False),
        "shared_key": Field(string, ""),
        "username": Field(string, ""),
        "password": Field(string, ""),
    }

    def __init__(self, element: Element, context: Context) -> None:
        from longshore.node.logs.fluentd.settings import settings

        super().__init__(element, context)
        security = element.one("security")
        own = (
            settings(security, {"self_hostname": Field(string, None, True), "shared_key": Field(string, "")})
            if security
            else {}
        )
        self._hostname, self._key = own.get("self_hostname", ""), own.get("shared_key", "")
        self._servers = [settings(child, self._SERVER) for child in element.all("server")]
        if not self._servers:
            raise element.error("forward output plugin requires at least one <server> is required")
        self._away: dict[int, float] = {}
        self._turn = 0

    def _order(self) -> list[int]:
        """Which servers to try: those that were reached, by weight in turn, then standbys, then those that were away."""
        now = time.monotonic()
        wheel = [n for n, s in enumerate(self._servers) if not s["standby"] for _ in range(max(1, s["weight"] // 20))]
        self._turn += 1
        first = wheel[self._turn % len(wheel) :] + wheel[: self._turn % len(wheel)] if wheel else []
        order = list(dict.fromkeys(first)) + [n for n, s in enumerate(self._servers) if s["standby"]]
        return sorted(order, key=lambda n: self._away.get(n, 0) > now)

    async def write(self, chunk: Chunk) -> None:
        identity = forward.chunk_id() if self.set["require_ack_response"] else None
        data = forward.encode_batch(
            chunk.tag,
            chunk.entries(),
            size=chunk.records,
            chunk=identity,
            compressed=self.set["compress"].removeprefix("text"),
        )
        last: Exception = OSError("no nodes are available")
        for number in self._order():
            try:
                await self._send(self._servers[number], data, identity)
            except (OSError, ValueError, TimeoutError) as error:
                self._away[number] = time.monotonic() + self.set["recover_wait"]
                log.warning("%s:%d: %s", self._servers[number]["host"], self._servers[number]["port"], error)
                last = error
                continue
            self._away.pop(number, None)
            return
        raise last if isinstance(last, OSError) else OSError(str(last) or "timed out")

    async def _send(self, server: dict[str, Any], data: bytes, identity: str | None) -> None:
        tls = None
        if self.set["transport"] == "tls":
            from longshore.machinery.http import client_context

            paths = self.set["tls_cert_path"]
            tls = client_context(ca=paths[0] if paths else None, verify=not self.set["tls_insecure_mode"])
            tls.set_alpn_protocols([])
        async with asyncio.timeout(self.set["connect_timeout"]):
            reader, writer = await asyncio.open_connection(server["host"], server["port"], ssl=tls)
        key = server["shared_key"] or self._key
        session = forward.Client(
            self._hostname, shared_key=key or None, username=server["username"], password=server["password"]
        )
        try:
            async with asyncio.timeout(self.set["send_timeout"]):
                while not session.ready:
                    session.feed(await self._read(reader))
                    writer.write(session.output())
                writer.write(data)
                await writer.drain()
            if identity is not None:
                async with asyncio.timeout(self.set["ack_response_timeout"]):
                    acknowledged: list[str] = []
                    while identity not in acknowledged:
                        acknowledged = session.feed(await self._read(reader))
            writer.close()
            await writer.wait_closed()
        finally:
            writer.close()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> bytes:
        data = await reader.read(65536)
        if not data:
            raise ConnectionError("the peer closed the connection")
        return data


class HTTPOutput(Buffered):
    """POSTs chunks; 5xx and the listed statuses are tried again, other refusals give the chunk up."""

    NAME = "http"
    FIELDS = {
        "endpoint": Field(string, None, True),
        "http_method": Field(choice("post", "put"), "post"),
        "content_type": Field(string, ""),
        "json_array": Field(boolean, False),
        "headers": Field(mapping, {}),
        "open_timeout": Field(seconds, 60.0),
        "read_timeout": Field(seconds, 60.0),
        "retryable_response_codes": Field(array, ["503"]),
        "error_response_as_unrecoverable": Field(boolean, True),
    }

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        self._format = make_formatter(element.one("format"), "json")

    async def write(self, chunk: Chunk) -> None:
        from longshore.machinery.http import Client, ClientError

        parts = [self._format(chunk.tag, when, record) for when, record in chunk.events()]
        body = (
            b"[" + b",".join(part.rstrip(b"\n") for part in parts) + b"]" if self.set["json_array"] else b"".join(parts)
        )
        kind = self.set["content_type"] or ("application/json" if self.set["json_array"] else "application/x-ndjson")
        client = Client()
        try:
            answer = await client.request(
                self.set["http_method"].upper(), place(self.set["endpoint"], chunk, self.buffer.zone), body=body,
                headers=[("content-type", kind), *((k, str(v)) for k, v in self.set["headers"].items())],
                timeout=self.set["read_timeout"],
            )  # fmt: skip
            await answer.read(2**20)
        except ClientError as error:
            raise OSError(str(error)) from error
        finally:
            await client.close()
        if answer.status >= 300:
            message = f"{answer.status} from {self.set['endpoint']}"
            if (
                str(answer.status) in self.set["retryable_response_codes"]
                or not self.set["error_response_as_unrecoverable"]
            ):
                raise OSError(message)
            raise Unwritable(message)


class StdoutOutput(Output):
    """Shows what comes."""

    NAME = "stdout"
    SECTIONS = frozenset({"format"})

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        self._format = make_formatter(element.one("format"))

    async def take(self, tag: str, events: Sequence[Event], *, durable: bool) -> None:
        sys.stdout.buffer.write(b"".join(self._format(tag, when, record) for when, record in events))
        sys.stdout.buffer.flush()
        self.records += len(events)


class NullOutput(Output):
    """Forgets what comes."""

    NAME = "null"

    async def take(self, tag: str, events: Sequence[Event], *, durable: bool) -> None:
        self.records += len(events)


class CopyOutput(Output):
    """Gives events to each of its <store>s; one that `ignore_error`s does not keep them from the others."""

    NAME = "copy"
    FIELDS = {"copy_mode": Field(choice("no_copy", "shallow", "deep", "marshal"), "no_copy")}
    SECTIONS = frozenset({"store"})

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        self.stores = [(context.output(child), "ignore_error" in child.argument) for child in element.all("store")]
        if not self.stores:
            raise element.error("one or more <store> are required")

    async def start(self) -> None:
        for output, _ in self.stores:
            await output.start()

    async def take(self, tag: str, events: Sequence[Event], *, durable: bool) -> None:
        for output, ignore in self.stores:
            try:
                await output.take(tag, events, durable=durable)
            except OSError as error:
                if not ignore:
                    raise
                log.warning("%s is passed over: %s", output.id, error)
        self.records += len(events)

    async def close(self) -> None:
        for output, _ in self.stores:
            await output.close()


class RelabelOutput(Output):
    """On to another label."""

    NAME = "relabel"

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        if not element.text("@label"):
            raise element.error("@label is required")

    async def take(self, tag: str, events: Sequence[Event], *, durable: bool) -> None:
        await self.context.emit(self.element.text("@label"), tag, events, durable=durable)
        self.records += len(events)
