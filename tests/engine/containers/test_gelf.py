"""The gelf driver: options in dockerd's words, records over UDP (in chunks) and TCP."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.engine.containers import gelf, logoptions
from longshore.wire.crilog import Line

FIELDS = {"container_id": "abc", "tag": "t"}


@pytest.mark.parametrize(
    "options, text",
    [
        ({}, "gelf-address is a required parameter"),
        ({"gelf-address": "http://h:1"}, "gelf: endpoint needs to be TCP or UDP"),
        ({"gelf-address": "udp://h"}, "gelf: please provide gelf-address as proto://host:port"),
        ({"gelf-address": "tcp://h:1", "gelf-compression-type": "gzip"}, "compression is only supported on UDP"),
        ({"gelf-address": "udp://h:1", "gelf-compression-level": "10"}, 'unknown value "10" for log opt "gelf-compression-level"'),
        ({"gelf-address": "udp://h:1", "gelf-tcp-max-reconnect": "1"}, '"gelf-tcp-max-reconnect" is only valid for TCP'),
        ({"gelf-address": "tcp://h:1", "gelf-tcp-reconnect-delay": "x"}, '"gelf-tcp-reconnect-delay" must be a positive integer'),
    ],
)  # fmt: skip
def test_options(options: dict[str, str], text: str) -> None:
    with pytest.raises(logoptions.OptionError, match=text):
        logoptions.check("gelf", options)


def test_services_without_a_client_say_what_upstream_says() -> None:
    with pytest.raises(logoptions.OptionError, match="must specify a value for log opt 'awslogs-group'"):
        logoptions.check("awslogs", {})
    assert logoptions.unreachable("splunk", {}) == "splunk: splunk-url is expected"
    assert logoptions.unreachable("splunk", {"splunk-url": "u"}) == "splunk: splunk-token is expected"
    assert "No project was specified" in logoptions.unreachable("gcplogs", {})


@given(st.binary(min_size=1, max_size=200_000))
def test_chunks(record: bytes) -> None:
    pieces = gelf.chunks(record)
    if len(record) <= 1420:
        assert pieces == [record]
    elif len(record) > 128 * 1408:
        assert pieces == []
    else:
        assert all(p[:2] == b"\x1e\x0f" and len(p) <= 1420 and p[11] == len(pieces) for p in pieces)
        assert len({p[2:10] for p in pieces}) == 1 and [p[10] for p in pieces] == list(range(len(pieces)))
        assert b"".join(p[12:] for p in pieces) == record


@pytest.mark.parametrize("kind, unpack", [("gzip", gzip.decompress), ("zlib", zlib.decompress), ("none", bytes)])
async def test_datagrams(kind: str, unpack: Any) -> None:
    loop = asyncio.get_running_loop()
    came: asyncio.Queue[bytes] = asyncio.Queue()

    class Receiver(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, address: Any) -> None:
            came.put_nowait(data)

    transport, _ = await loop.create_datagram_endpoint(Receiver, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    options = gelf.parse({"gelf-address": f"udp://127.0.0.1:{port}", "gelf-compression-type": kind})
    sender = gelf.GelfSender(options, FIELDS)
    await sender.connect()
    await sender.send([Line(1_500_000_000_123_456_789, b"stderr", True, b"went wrong"), Line(0, b"stdout", True, b"")])
    async with asyncio.timeout(10):
        record = json.loads(unpack(await came.get()))
    assert record.pop("host")
    assert record == {
        "version": "1.1", "short_message": "went wrong", "timestamp": 1500000000.123, "level": 3, "_container_id": "abc",
        "_tag": "t",
    }  # fmt: skip
    sender.close()
    transport.close()


async def test_a_stream_of_records() -> None:
    data: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data.set_result(await reader.readuntil(b"\0"))
        writer.close()

    server = await asyncio.start_server(receive, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sender = gelf.GelfSender(gelf.parse({"gelf-address": f"tcp://127.0.0.1:{port}"}), FIELDS)
    await sender.send([Line(0, b"stdout", True, b"line")])
    async with asyncio.timeout(10):
        assert json.loads((await data)[:-1])["short_message"] == "line"
    sender.close()
    server.close()
