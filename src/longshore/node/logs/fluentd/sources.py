"""Sources. Source: docs.fluentd.org "Input Plugins"."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from typing import TYPE_CHECKING, Any

import orjson

from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.parsers import make_parser
from longshore.node.logs.fluentd.plugin import Source
from longshore.node.logs.fluentd.settings import Field, boolean, choice, integer, settings, string
from longshore.node.logs.inputs.forward import ForwardInput
from longshore.node.logs.inputs.http import HTTPInput
from longshore.node.logs.inputs.lines import SyslogInput, TCPInput
from longshore.node.logs.inputs.stream import Backlog, Listener
from longshore.wire.forward import Event

if TYPE_CHECKING:
    from longshore.node.logs.fluentd.pipeline import Context

log = logging.getLogger("longshore.fluentd.sources")


class Network(Source):
    """What the network sources share: `self.input` is started and closed with them."""

    SECTIONS = frozenset({"transport"})
    input: ForwardInput | HTTPInput | SyslogInput | TCPInput

    def tls(self) -> ssl.SSLContext | None:
        """The context of <transport tls>, or None."""
        section = self.element.one("transport")
        if section is None or section.argument in ("", "tcp", "udp"):
            return None
        fields = {"cert_path": Field(string, None, True), "private_key_path": Field(string, None, True), "ca_path": Field(string, ""), "client_cert_auth": Field(boolean, False)}  # fmt: skip
        found = settings(section, fields)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(found["cert_path"], found["private_key_path"])
            if found["ca_path"]:
                context.load_verify_locations(found["ca_path"])
        except OSError as error:
            raise section.error(f"cannot load certificates: {error}") from None
        if found["client_cert_auth"]:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def start(self) -> None:
        await self.input.start()

    async def close(self) -> None:
        await self.input.close()


class ForwardSource(Network):
    """The forward protocol."""

    NAME = "forward"
    FIELDS = {
        "port": Field(integer, 24224),
        "bind": Field(string, "0.0.0.0"),
        "tag": Field(string, ""),
        "add_tag_prefix": Field(string, ""),
    }
    SECTIONS = frozenset({"transport", "security"})

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        security = element.one("security")
        key: str | None = None
        users: dict[str, str] | None = None
        name = ""
        if security is not None:
            found = settings(
                security,
                {
                    "self_hostname": Field(string, None, True),
                    "shared_key": Field(string, None, True),
                    "user_auth": Field(boolean, False),
                },
                frozenset({"user"}),
            )
            key, name = found["shared_key"], found["self_hostname"]
            if found["user_auth"]:
                users = {child.text("username"): child.text("password") for child in security.all("user")}
        self.input = ForwardInput(
            self._tagged, host=self.set["bind"], port=self.set["port"], tls=self.tls(), shared=context.workers > 1, shared_key=key, users=users, hostname=name
        )  # fmt: skip

    async def _tagged(self, tag: str, events: Any, *, durable: bool = True) -> None:
        prefix = self.set["add_tag_prefix"]
        tag = self.set["tag"] or (f"{prefix}.{tag}" if prefix else tag)
        await self.emit(tag, events, durable=durable)


class HTTPSource(Network):
    """Events over HTTP."""

    NAME = "http"
    FIELDS = {
        "port": Field(integer, 9880),
        "bind": Field(string, "0.0.0.0"),
        "body_size_limit": Field(integer, 32 * 2**20),
    }

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        self.input = HTTPInput(
            self.emit,
            host=self.set["bind"],
            port=self.set["port"],
            tls=self.tls(),
            shared=context.workers > 1,
            limit=self.set["body_size_limit"],
        )


class SyslogSource(Network):
    """Syslog in both forms."""

    NAME = "syslog"
    FIELDS = {
        "port": Field(integer, 5140),
        "bind": Field(string, "0.0.0.0"),
        "tag": Field(string, None, True),
        "protocol_type": Field(choice("udp", "tcp"), "udp"),
    }

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        transport = element.one("transport")
        tcp = (transport.argument if transport else self.set["protocol_type"]) in ("tcp", "tls")
        self.input = SyslogInput(
            self.emit, tag=self.set["tag"], host=self.set["bind"], port=self.set["port"], udp=not tcp, tcp=tcp, tls=self.tls(), shared=context.workers > 1
        )  # fmt: skip


class TCPSource(Network):
    """Lines over TCP."""

    NAME = "tcp"
    FIELDS = {
        "port": Field(integer, 5170),
        "bind": Field(string, "0.0.0.0"),
        "tag": Field(string, None, True),
        "delimiter": Field(string, "\n"),
    }
    SECTIONS = frozenset({"transport", "parse"})

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        section = element.one("parse")
        if section is None:
            raise element.error("<parse> section is required")
        parse, _ = make_parser(section)
        self.input = TCPInput(
            self.emit, tag=self.set["tag"], host=self.set["bind"], port=self.set["port"],
            delimiter=self.set["delimiter"].replace("\\n", "\n").encode(), tls=self.tls(), shared=context.workers > 1,
            parse=lambda raw: parse(raw.decode("utf-8", "replace")),
        )  # fmt: skip


class UDPSource(Source):
    """A line a datagram."""

    NAME = "udp"
    FIELDS = {"port": Field(integer, 5160), "bind": Field(string, "0.0.0.0"), "tag": Field(string, None, True)}
    SECTIONS = frozenset({"parse"})

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        section = element.one("parse")
        if section is None:
            raise element.error("<parse> section is required")
        self._parse, _ = make_parser(section)
        self._listener = Listener(shared=context.workers > 1)
        self._backlog = Backlog(self._emit)
        self.port = self.set["port"]

    async def start(self) -> None:
        socket = await self._listener.udp(self._received, self.set["bind"], self.set["port"])
        self.port = int(socket.get_extra_info("sockname")[1])

    def _received(self, data: bytes, _peer: tuple[str, int]) -> None:
        event = self._parse(data.decode("utf-8", "replace").rstrip("\r\n"))
        if event is not None:
            self._backlog.add(event)

    async def _emit(self, events: list[Event]) -> None:
        await self.emit(self.set["tag"], events, durable=False)

    async def close(self) -> None:
        await self._listener.close()
        await self._backlog.close()


class SampleSource(Source):
    """The same records again and again."""

    NAME = "sample"
    FIELDS = {
        "tag": Field(string, None, True),
        "rate": Field(integer, 1),
        "size": Field(integer, 1),
        "sample": Field(orjson.loads, {"message": "sample"}),
        "dummy": Field(orjson.loads, None),
        "auto_increment_key": Field(string, ""),
    }
    _task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        sample = self.set["dummy"] or self.set["sample"]
        records, number = sample if isinstance(sample, list) else [sample], 0
        while True:
            events: list[Event] = []
            for _ in range(self.set["size"]):
                record = dict(records[number % len(records)])
                if self.set["auto_increment_key"]:
                    record[self.set["auto_increment_key"]] = number
                number += 1
                events.append((time.time_ns(), record))
            try:
                await self.emit(self.set["tag"], events, durable=False)
            except OSError as error:
                log.warning("%s: %s", self.id, error)
            await asyncio.sleep(1 / max(1, self.set["rate"]))

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class DummySource(SampleSource):
    """The older name of sample."""

    NAME = "dummy"
