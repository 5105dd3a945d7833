"""The gelf log driver: options and what carries lines to a Graylog (GELF) receiver.

Source: GELF 1.1 payload specification (UDP chunks of 1420 bytes, TCP messages that end with a zero byte); the fields, options
and errors are those of moby's driver.
"""

from __future__ import annotations

import gzip
import os
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson

from longshore.wire.crilog import Line

from .logoptions import Address, OptionError
from .logsenders import SendFailed, Wire

_CHUNK, _CHUNK_HEAD, _MOST_CHUNKS = 1420, 12, 128
_MAGIC = b"\x1e\x0f"


@dataclass(frozen=True, slots=True)
class Gelf:
    """Parsed options. compression: gzip, zlib or none (UDP alone). retries: of a batch over TCP; delay: seconds between."""

    address: Address
    compression: str
    level: int
    retries: int
    delay: float


def parse(options: Mapping[str, str]) -> Gelf:
    """Raises OptionError."""
    text = options.get("gelf-address", "")
    if not text:
        raise OptionError("gelf-address is a required parameter")
    parts = urlsplit(text)
    if parts.scheme not in ("udp", "tcp"):
        raise OptionError("gelf: endpoint needs to be TCP or UDP")
    try:
        port = parts.port
    except ValueError:
        port = None
    if port is None:
        raise OptionError("gelf: please provide gelf-address as proto://host:port")
    for name in ("gelf-compression-type", "gelf-compression-level"):
        if name in options and parts.scheme != "udp":
            raise OptionError("compression is only supported on UDP")
    kind, level = options.get("gelf-compression-type", "gzip"), options.get("gelf-compression-level", "1")
    if kind not in ("gzip", "zlib", "none"):
        raise OptionError(f'unknown value "{kind}" for log opt "gelf-compression-type" for gelf log driver')
    if level not in map(str, range(-1, 10)):
        raise OptionError(f'unknown value "{level}" for log opt "gelf-compression-level" for gelf log driver')
    numbers = []
    for name, default in (("gelf-tcp-max-reconnect", str(2**31 - 1)), ("gelf-tcp-reconnect-delay", "1")):
        if name in options and parts.scheme != "tcp":
            raise OptionError(f'"{name}" is only valid for TCP')
        value = options.get(name, default)
        if not value.isdigit():
            raise OptionError(f'"{name}" must be a positive integer')
        numbers.append(int(value))
    return Gelf(Address(parts.scheme, parts.hostname or "localhost", port), kind, int(level), numbers[0], numbers[1])


class GelfSender:
    """A container's way to its receiver. fields: the record's additional fields, without their underscore."""

    def __init__(self, options: Gelf, fields: Mapping[str, str]) -> None:
        self._options = options
        self._wire = Wire(options.address)
        self._fields = {(name if name.startswith("_") else "_" + name): value for name, value in fields.items()}
        self._host = socket.gethostname()

    async def connect(self) -> None:
        try:
            await self._wire.connect()
        except SendFailed as error:
            address = self._options.address
            raise SendFailed(f"gelf: cannot connect to GELF endpoint: {address.host}:{address.port} {error}") from None

    async def send(self, lines: list[Line]) -> None:
        pieces: list[bytes] = []
        for line in lines:
            if line.message:
                pieces += self._packed(self._record(line))
        if pieces:
            await self._wire.write(pieces)

    def _record(self, line: Line) -> bytes:
        record = {
            "version": "1.1",
            "host": self._host,
            "short_message": line.message.decode("utf-8", "replace"),
            "timestamp": line.time // 1_000_000 / 1000,
            "level": 3 if line.stream == b"stderr" else 6,
            **self._fields,
        }
        return orjson.dumps(record)

    def _packed(self, record: bytes) -> list[bytes]:
        options = self._options
        if options.address.scheme == "tcp":
            return [record + b"\0"]
        if options.compression == "gzip":
            record = gzip.compress(record, options.level if options.level >= 0 else 6, mtime=0)
        elif options.compression == "zlib":
            record = zlib.compress(record, options.level)
        return chunks(record)

    def close(self) -> None:
        self._wire.close()


def chunks(record: bytes) -> list[bytes]:
    """A record as datagrams; none for one that would need more than the 128 that the specification allows."""
    if len(record) <= _CHUNK:
        return [record]
    size = _CHUNK - _CHUNK_HEAD
    count = -(-len(record) // size)
    if count > _MOST_CHUNKS:
        return []
    id = os.urandom(8)
    return [
        _MAGIC + id + bytes([number, count]) + record[number * size : (number + 1) * size] for number in range(count)
    ]
