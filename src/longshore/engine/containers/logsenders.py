"""What carries log lines to a fluentd, a syslog server or the journal. A sender is told lines and returns when the kernel
(or the peer, where it acknowledges) has them; it raises OSError when that cannot be and is then connected anew.

Source: Fluent forward protocol v1 (message mode), RFC 3164, RFC 5424, RFC 5425 and RFC 6587, systemd's native journal
protocol; the fields and forms are those of moby's drivers.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import os
import socket
import ssl
import struct
import time
from typing import Protocol

from longshore.wire import forward
from longshore.wire.crilog import Line, format_time

from .logoptions import Address, Fluentd, Syslog

_DIAL = 10.0
_LOCAL_SYSLOG = ("/dev/log", "/var/run/syslog", "/var/run/log")
_JOURNAL = "/run/systemd/journal/socket"


class SendFailed(OSError):
    """The way to the receiver cannot be opened; the text is what Go's net package says."""


class Sender(Protocol):
    """One container's way to its receiver."""

    async def connect(self) -> None:
        """Raises SendFailed."""

    async def send(self, lines: list[Line]) -> None:
        """Raises OSError: nothing is known of the lines' fate."""

    def close(self) -> None: ...


def go_error(error: OSError) -> str:
    """An OSError as Go's net package words it."""
    if isinstance(error, TimeoutError):
        return "i/o timeout"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"tls: failed to verify certificate: x509: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"tls: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if isinstance(error, ConnectionRefusedError):
        return "connect: connection refused"
    text = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error).lower()
    return f"connect: {text}"


class Wire:
    """A connection to an address, made when it is needed; streams and datagrams alike."""

    def __init__(self, address: Address, context: ssl.SSLContext | None = None) -> None:
        self._address, self._context = address, context
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None
        self._socket: socket.socket | None = None

    @property
    def datagrams(self) -> bool:
        return self._address.scheme in ("udp", "unixgram")

    @property
    def connected(self) -> bool:
        if self._socket is not None:
            return True
        return self._writer is not None and not (self._reader is not None and self._reader.at_eof())

    async def connect(self) -> None:
        """Raises SendFailed."""
        self.close()
        address = self._address
        try:
            async with asyncio.timeout(_DIAL):
                if address.scheme == "udp":
                    await self._datagram()
                elif address.scheme == "unixgram":
                    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                    self._socket.setblocking(False)
                    self._socket.connect(address.path)
                elif address.scheme == "unix":
                    self._reader, self._writer = await asyncio.open_unix_connection(address.path)
                else:
                    self._reader, self._writer = await asyncio.open_connection(
                        address.host, address.port, ssl=self._context if address.scheme == "tls" else None
                    )
        except socket.gaierror:
            self.close()
            raise SendFailed(f"dial {address.scheme}: lookup {address.host}: no such host") from None
        except OSError as error:
            self.close()
            raise SendFailed(f"dial {address}: {go_error(error)}") from None
        if self._writer is not None:
            # What is written counts when the kernel has it: a killed engine must not take lines with it.
            self._writer.transport.set_write_buffer_limits(high=0)

    async def _datagram(self) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_DGRAM)
        family, _, _, _, target = found[0]
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.connect(target)

    async def write(self, pieces: list[bytes]) -> None:
        """Raises OSError."""
        if not self.connected:
            await self.connect()
        if self._socket is not None:
            for piece in pieces:
                await asyncio.get_running_loop().sock_sendall(self._socket, piece)
            return
        assert self._writer is not None
        self._writer.write(b"".join(pieces))
        await self._writer.drain()

    async def read(self) -> bytes:
        """What the peer says; b"" when it has gone."""
        assert self._reader is not None
        return await self._reader.read(65536)

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._writer.close()
        if self._socket is not None:
            self._socket.close()
        self._writer = self._reader = self._socket = None


class FluentdSender:
    """Message mode of the forward protocol. name: with its slash, as dockerd sends it."""

    def __init__(self, options: Fluentd, tag: str, id: str, name: str, extra: dict[str, str]) -> None:
        context = ssl.create_default_context() if options.address.scheme == "tls" else None
        self._wire = Wire(options.address, context)
        self._options, self._tag = options, tag
        self._base = {"container_id": id, "container_name": name}
        self._extra = extra
        self._parts: dict[bytes, tuple[str, int]] = {}

    async def connect(self) -> None:
        await self._wire.connect()

    async def send(self, lines: list[Line]) -> None:
        chunks: set[str] = set()
        pieces = []
        parts = dict(self._parts)
        for line in lines:
            record = {
                **self._base,
                "source": line.stream.decode(),
                "log": line.message.decode("utf-8", "replace"),
                **self._extra,
                **_partial(parts, line),
            }
            chunk = None
            if self._options.acknowledge:
                chunk = base64.b64encode(os.urandom(16)).decode()
                chunks.add(chunk)
            pieces.append(
                forward.encode_event(self._tag, line.time, record, chunk=chunk, precise=self._options.precise)
            )
        async with asyncio.timeout(self._options.write_timeout or None):
            await self._wire.write(pieces)
            if chunks:
                await self._acknowledged(chunks)
        self._parts = parts

    async def _acknowledged(self, chunks: set[str]) -> None:
        answers = forward.Acknowledgements()
        while chunks:
            data = await self._wire.read()
            if not data:
                self._wire.close()
                raise ConnectionResetError("the receiver went before it acknowledged")
            try:
                chunks.difference_update(answers.feed(data))
            except forward.ForwardError as error:
                self._wire.close()
                raise ConnectionResetError(str(error)) from None

    def close(self) -> None:
        self._wire.close()


def _partial(parts: dict[bytes, tuple[str, int]], line: Line) -> dict[str, str]:
    """The fields that mark a piece of a line that was too long for one event."""
    held = parts.get(line.stream)
    if held is None and line.full:
        return {}
    id, ordinal = held or (os.urandom(32).hex(), 0)
    ordinal += 1
    if line.full:
        parts.pop(line.stream, None)
    else:
        parts[line.stream] = (id, ordinal)
    return {
        "partial_message": "true",
        "partial_id": id,
        "partial_ordinal": str(ordinal),
        "partial_last": "true" if line.full else "false",
    }


class SyslogSender:
    """Syslog over UDP, TCP, TLS or a unix socket."""

    def __init__(self, options: Syslog, tag: str) -> None:
        self._options, self._tag = options, tag
        self._host = socket.gethostname()
        self._pid = os.getpid()
        self._wire: Wire | None = None
        if options.address is not None:
            self._wire = Wire(options.address, _context(options) if options.address.scheme == "tls" else None)

    async def connect(self) -> None:
        if self._options.address is not None:
            assert self._wire is not None
            await self._wire.connect()
            return
        for scheme in ("unixgram", "unix"):
            for path in _LOCAL_SYSLOG:
                wire = Wire(Address(scheme, path=path))
                with contextlib.suppress(OSError):
                    await wire.connect()
                    self._wire = wire
                    return
        raise SendFailed("Unix syslog delivery error")

    def _message(self, line: Line) -> bytes:
        options, seconds = self._options, line.time // 1_000_000_000
        priority = options.facility << 3 | (3 if line.stream == b"stderr" else 6)
        if options.form in ("rfc5424", "rfc5424micro"):
            stamp = format_time(line.time).decode()
            stamp = stamp[:26] + "Z" if options.form == "rfc5424micro" else stamp[:19] + "Z"
            head = f"<{priority}>1 {stamp} {self._host} {self._tag} {self._pid} {self._tag} - "
        else:
            local = time.localtime(seconds)
            stamp = f"{time.strftime('%b', local)} {local.tm_mday:2d} {time.strftime('%H:%M:%S', local)}"
            host = f"{self._host} " if options.form == "rfc3164" else ""
            head = f"<{priority}>{stamp} {host}{self._tag}[{self._pid}]: "
        whole = head.encode() + line.message + b"\n"
        if options.address is not None and options.address.scheme == "tls" and options.form.startswith("rfc5424"):
            return b"%d %s" % (len(whole), whole)
        return whole

    async def send(self, lines: list[Line]) -> None:
        if self._wire is None:
            await self.connect()
        assert self._wire is not None
        pieces = [self._message(line) for line in lines]
        if not self._wire.datagrams:
            await self._wire.write(pieces)
            return
        for piece in pieces:
            try:
                await self._wire.write([piece])
            except ConnectionRefusedError:
                # The answer to an earlier datagram: UDP promises nothing, but this one has a chance still.
                await self._wire.write([piece])
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                await self._wire.write([piece[:8192]])

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()


def _context(options: Syslog) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca or None)
        if options.certificate:
            context.load_cert_chain(options.certificate, options.key or None)
    except OSError as error:
        raise SendFailed(f"could not read the TLS files: {error}") from None
    if options.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class JournaldSender:
    """The machine's journal, one datagram a line."""

    def __init__(self, tag: str, id: str, name: str, image: str, extra: dict[str, str]) -> None:
        self._wire = Wire(Address("unixgram", path=_JOURNAL))
        fields = {
            "CONTAINER_ID": id[:12],
            "CONTAINER_ID_FULL": id,
            "CONTAINER_NAME": name.lstrip("/"),
            "CONTAINER_TAG": tag,
            "IMAGE_NAME": image,
            "SYSLOG_IDENTIFIER": tag,
            **{_field(name): value for name, value in extra.items()},
        }
        self._head = b"".join(_entry(name, value.encode()) for name, value in fields.items() if name)

    async def connect(self) -> None:
        try:
            await self._wire.connect()
        except SendFailed:
            raise SendFailed("journald is not enabled on this host") from None

    async def send(self, lines: list[Line]) -> None:
        pieces = []
        for line in lines:
            stamp = format_time(line.time)
            priority = b"3" if line.stream == b"stderr" else b"6"
            pieces.append(
                self._head
                + b"PRIORITY=%s\nSYSLOG_TIMESTAMP=%s\n" % (priority, stamp)
                + (b"" if line.full else b"CONTAINER_PARTIAL_MESSAGE=true\n")
                + _entry("MESSAGE", line.message)
            )
        await self._wire.write(pieces)

    def close(self) -> None:
        self._wire.close()


def _field(name: str) -> str:
    """A label's or variable's name as the journal takes it: capitals, digits and underscores."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name.upper()).lstrip("_0123456789")


def _entry(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)
    return b"%s=%s\n" % (name.encode(), value)
