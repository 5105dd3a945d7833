"""Inputs over the network with real senders: msgpack peers, util-linux's logger, HTTP, raw sockets, a kill."""

import asyncio
import base64
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import msgpack
import orjson
import pytest

from longshore.machinery import pki
from longshore.machinery.http import Client, Server, client_context, server_context
from longshore.node.logs.inputs.emit import StoreEmit
from longshore.node.logs.inputs.forward import ForwardInput
from longshore.node.logs.inputs.http import HTTPInput
from longshore.node.logs.inputs.lines import SyslogInput, TCPInput
from longshore.node.logs.logql.parser import parse_log_query
from longshore.node.logs.loki import LokiAPI
from longshore.node.logs.query import LogQuerier
from longshore.node.logs.store.store import LogStore
from longshore.wire import forward

EVERYBODY = lambda _namespace: True  # noqa: E731


@pytest.fixture
async def store(tmp_path):
    store = LogStore(tmp_path / "store")
    yield store
    await store.close()


def entries(store, query):
    return LogQuerier(store).entries(parse_log_query(query), 0, 2**62, EVERYBODY)


def records(store, query):
    return [json.loads(entry.line) for entry in entries(store, query)]


async def settle(check, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "did not come to pass"
        await asyncio.sleep(0.01)


async def test_a_msgpack_peer_in_every_mode_and_its_acknowledgement(store):
    peer = ForwardInput(StoreEmit(store, "n1", "forward"), port=0)
    await peer.start()
    now = int(time.time())
    entry = msgpack.packb([now, {"log": "packed"}])
    reader, writer = await asyncio.open_connection("127.0.0.1", peer.port)
    chunk = base64.b64encode(os.urandom(16)).decode()
    writer.write(msgpack.packb(["app.a", now, {"log": "message", "source": "stderr", "octets": b"\xff", 5: 2**63}]))
    writer.write(msgpack.packb(["app.b", [[now, {"log": "forward"}]]]))
    writer.write(msgpack.packb(["app.b", entry]))
    writer.write(msgpack.packb(["app.b", gzip.compress(entry), {"compressed": "gzip", "chunk": chunk}]))
    unpacker = msgpack.Unpacker()
    while not (found := list(unpacker)):
        unpacker.feed(await reader.read(1000))
    assert found == [{"ack": chunk}]
    assert [r["log"] for r in records(store, '{job="forward", tag="app.b"}')] == ["forward", "packed", "packed"]
    (message,) = entries(store, '{tag="app.a", stream="stderr"}')
    assert json.loads(message.line) == {"log": "message", "source": "stderr", "octets": "\ufffd", "5": 2**63}
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert await reader.read() == b""
    writer.close()
    await peer.close()


async def test_tls_with_shared_key(store, tmp_path):
    ca = pki.make_ca("test")
    pki.issue(ca, "receiver", names=["127.0.0.1"], server=True).write(tmp_path / "crt", tmp_path / "key")
    tls = server_context(tmp_path / "crt", tmp_path / "key")
    peer = ForwardInput(StoreEmit(store, "n1", "forward"), port=0, tls=tls, shared_key="secret", hostname="receiver")
    await peer.start()
    trust = client_context(ca_data=ca.certificate.decode())
    for key, known in (("secret", True), ("wrong", False)):
        reader, writer = await asyncio.open_connection("127.0.0.1", peer.port, ssl=trust)
        client = forward.Client("sender", shared_key=key)
        try:
            while not client.ready:
                client.feed(await reader.read(1000))
                writer.write(client.output())
        except forward.AuthenticationFailed as error:
            assert not known and "shared_key mismatch" in str(error)
        else:
            assert known
            packed = forward.pack_entries([(time.time_ns(), {"a": 1})])
            writer.write(forward.encode_batch("t", packed, size=1, chunk="c", compressed="gzip"))
            assert client.feed(await reader.read(1000)) == ["c"]
        writer.close()
    assert records(store, '{tag="t"}') == [{"a": 1}]
    await peer.close()


SEND = """
import asyncio, sys
from pathlib import Path
from longshore.node.logs.inputs.emit import StoreEmit
from longshore.node.logs.inputs.forward import ForwardInput
from longshore.node.logs.store.store import LogStore

async def main():
    store = LogStore(Path(sys.argv[1]))
    peer = ForwardInput(StoreEmit(store, "n1", "forward"), port=0)
    await peer.start()
    print(peer.port, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_kill_loses_and_repeats_nothing_that_was_acknowledged(tmp_path):
    sent = 0
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", SEND, str(tmp_path / "store")], stdout=subprocess.PIPE)
        port = int(child.stdout.readline())
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        client = forward.Client()
        for _ in range(20):
            packed = forward.pack_entries([(time.time_ns(), {"n": sent + n}) for n in range(10)])
            writer.write(forward.encode_batch("t", packed, size=10, chunk="c"))
            assert client.feed(await reader.read(1000)) == ["c"]
            sent += 10
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        writer.close()
    for _ in range(2):  # and once more from blocks
        store = LogStore(tmp_path / "store")
        assert [r["n"] for r in records(store, '{tag="t"}')] == list(range(sent))
        await store.close()


@pytest.mark.skipif(shutil.which("logger") is None, reason="no logger")
@pytest.mark.parametrize("how", [["--udp"], ["--tcp"], ["--udp", "--rfc3164"], ["--tcp", "--octet-count", "--rfc5424"]])
async def test_logger_reaches_the_syslog_input(store, how):
    peer = SyslogInput(StoreEmit(store, "n1", "syslog"), port=0, tag="sys")
    await peer.start()
    run = await asyncio.create_subprocess_exec(
        "logger",
        "--server",
        "127.0.0.1",
        "--port",
        str(peer.port),
        *how,
        "-t",
        "shop",
        "-p",
        "local3.warn",
        "hello you",
    )
    assert await run.wait() == 0
    await settle(lambda: records(store, '{job="syslog"}'))
    (record,) = records(store, '{job="syslog", tag="sys.local3.warn"}')
    assert record["message"] == "hello you" and record["ident"] == "shop" and record["host"]
    await peer.close()


async def test_lines_over_tcp(store):
    peer = TCPInput(StoreEmit(store, "n1", "tcp"), port=0)
    await peer.start()
    _, writer = await asyncio.open_connection("127.0.0.1", peer.port)
    writer.write(b"one\r\ntwo\nthree")
    writer.write_eof()
    await settle(lambda: len(records(store, '{job="tcp"}')) == 3)
    assert [r["message"] for r in records(store, '{job="tcp"}')] == ["one", "two", "three"]
    writer.close()
    await peer.close()


async def test_events_over_http(store):
    peer = HTTPInput(StoreEmit(store, "n1", "http"), port=0)
    await peer.start()
    client = Client()
    url = f"http://127.0.0.1:{peer.port}"

    async def post(path, body, kind, *more):
        answer = await client.request("POST", url + path, headers=[("content-type", kind), *more], body=body)
        await answer.read()
        return answer.status

    assert await post("/a/b", b'{"n":1}', "application/json") == 200
    assert (
        await post("/a.b", gzip.compress(b'[{"n":2},{"n":3}]'), "application/json", ("content-encoding", "gzip")) == 200
    )
    assert await post("/a.b", msgpack.packb({"n": 4}), "application/msgpack") == 200
    assert await post("/a.b", b"json=%7B%22n%22%3A5%7D", "application/x-www-form-urlencoded") == 200
    assert [r["n"] for r in records(store, '{tag="a.b"}')] == [1, 2, 3, 4, 5]
    assert await post("/a.b", b"{", "application/json") == 400
    assert await post("/a.b", b"[1]", "application/json") == 400
    assert await post("/a.b", b"\xc1", "application/msgpack") == 400
    assert await post("/a.b", b"x", "text/plain") == 400
    assert await post("/", b"{}", "application/json") == 400
    await client.close()
    await peer.close()


@pytest.fixture
async def loki(store):
    server = Server(LokiAPI(LogQuerier(store), None, store, "n1").handle)
    port = await server.listen_tcp("127.0.0.1", 0)
    client = Client()
    yield client, f"http://127.0.0.1:{port}/loki/api/v1"
    await client.close()
    await server.close()


async def push(loki, streams, *, zip=False):
    client, url = loki
    body = orjson.dumps({"streams": streams})
    headers = [("content-type", "application/json")]
    if zip:
        body, headers = gzip.compress(body), [*headers, ("content-encoding", "gzip")]
    answer = await client.request("POST", f"{url}/push", headers=headers, body=body)
    return answer.status, (await answer.read()).decode()


async def test_push_is_found_again(store, loki):
    now = time.time_ns()
    labels = {"app": "till", "namespace": "../../shop", "stream": "stderr"}
    values = [[str(now + 2), "third"], [str(now), "first"], [str(now + 1), "two\nlines \\n", {"k": "v"}]]
    assert (await push(loki, [{"stream": labels, "values": values}]))[0] == 204
    assert (await push(loki, [{"stream": {"app": "x"}, "values": [[str(now), "y"]]}], zip=True))[0] == 204
    for _ in range(2):
        found = entries(store, '{app="till", stream="stderr"}')
        assert [e.line for e in found] == ["first", "two\nlines \\n", "third"]
        assert [e.line for e in entries(store, '{app="till"} |= "lines \\\\n"')] == ["two\nlines \\n"]
        for number in list(store.index.streams):
            store.flush(number)
        await settle(lambda: store.index.totals()[0] == 4)
    assert {p.name for p in store.folder.iterdir() if p.is_dir()} == {"journal", "_node"}


async def test_push_in_protobuf_and_snappy(store, loki):
    from longshore.node.logs.push import _schema

    client, url = loki
    now = time.time_ns()
    request = _schema().PushRequest()
    stream = request.streams.add(labels='{app="till", job="x"}')
    for number in range(3):
        entry = stream.entries.add(line=f"line {number}")
        entry.timestamp.seconds, entry.timestamp.nanos = divmod(now + number, 10**9)
        entry.structuredMetadata.add(name="trace", value="1")
    body = request.SerializeToString()
    # A Snappy block of literals alone: its length, then pieces of at most 60 octets.
    size, length = len(body), b""
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    length += bytes([size])
    pieces = [body[at : at + 60] for at in range(0, len(body), 60)]
    packed = length + b"".join(bytes([len(piece) - 1 << 2]) + piece for piece in pieces)
    headers = [("content-type", "application/x-protobuf")]
    answer = await client.request("POST", f"{url}/push", headers=headers, body=packed)
    assert (answer.status, await answer.read()) == (204, b"")
    found = entries(store, '{app="till", job="x"}')
    assert [(e.line, e.time) for e in found] == [(f"line {number}", now + number) for number in range(3)]
    for wrong in (b"", packed[:-3], b"\x03\x08abc"):
        answer = await client.request("POST", f"{url}/push", headers=headers, body=wrong)
        assert answer.status == 400 and await answer.read()


@pytest.mark.parametrize(
    "streams",
    [
        None,
        [{"stream": {}, "values": []}],
        [{"stream": {"a b": "c"}, "values": []}],
        [{"stream": {"a": "c"}, "values": [["x", "y"]]}],
        [{"stream": {"a": "c"}, "values": [["1", "y"]]}],
        [{"stream": {"a": "c"}, "values": [[str(2**62), "y"]]}],
        [{"stream": {str(f"l{n}"): "c" for n in range(20)}, "values": []}],
    ],
)
async def test_push_that_cannot_be_taken(store, loki, streams):
    assert (await push(loki, streams))[0] == 400
    assert entries(store, '{a=~".+"}') == []


async def test_tail_gives_the_past_and_what_comes(store, loki):
    from longshore.machinery.streams.websocket import WebSocket
    from longshore.wire import websocket as wire

    client, url = loki
    now = time.time_ns()
    await push(loki, [{"stream": {"app": "till"}, "values": [[str(now), "past"]]}])
    key = wire.new_key()
    answer, duplex = await client.upgrade(
        "GET",
        f"{url}/tail?query=%7Bapp%3D%22till%22%7D%20!%3D%20%22no%22",
        headers=[
            ("Upgrade", "websocket"), ("Connection", "Upgrade"),
            ("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", key),
        ],
    )  # fmt: skip
    assert duplex is not None, answer.status
    socket = WebSocket(duplex, client=True)
    first = orjson.loads((await socket.receive()).data)
    assert first["streams"][0]["values"] == [[str(now), "past"]]
    await push(loki, [{"stream": {"app": "till"}, "values": [[str(now + 1), "no"], [str(now + 2), "new"]]}])
    second = orjson.loads((await socket.receive()).data)
    assert second["streams"][0]["values"] == [[str(now + 2), "new"]]
    socket.close()
    assert await socket.receive() is None
    duplex.close()
    await settle(lambda: not store.followers)
    bad = await client.request("GET", f"{url}/tail?query=%7Bapp%3D%22till%22%7D")
    assert bad.status == 400
