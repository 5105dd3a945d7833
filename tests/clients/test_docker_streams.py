"""Streams as bare bytes: connections taken over with and without Upgrade, WebSockets, clients that vanish, many at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.docker_engine import DockerEngine

from longshore.wire import rawstream, websocket

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]
UPGRADE = {"Connection": "Upgrade", "Upgrade": "tcp"}


class Stream:
    """One request on a connection of its own, and the raw bytes after its answer's head."""

    def __init__(
        self, engine: DockerEngine, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(90)
        self.socket.connect(str(engine.socket))
        data = json.dumps(body).encode() if body is not None else b""
        fields = {"Host": "x", "Content-Length": str(len(data)), **(headers or {})}
        if data:
            fields["Content-Type"] = "application/json"
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        self.socket.sendall("\r\n".join(lines).encode() + data)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(65536)
        head, _, self._early = answer.partition(b"\r\n\r\n")
        self.head = head.decode()

    def read(self) -> bytes:
        """What comes next; b"" at the end."""
        early, self._early = self._early, b""
        return early or self.socket.recv(65536)

    def rest(self) -> bytes:
        return b"".join(iter(self.read, b""))

    def send(self, data: bytes, *, last: bool = False) -> None:
        self.socket.sendall(data)
        if last:
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def stream(engine: DockerEngine) -> Iterator[Any]:
    made: list[Stream] = []

    def open_one(*args: Any, **options: Any) -> Stream:
        made.append(Stream(engine, *args, **options))
        return made[-1]

    yield open_one
    for one in made:
        with contextlib.suppress(OSError):
            one.close()


def plain(data: bytes) -> bytes:
    return b"".join(piece for _, piece in rawstream.Decoder().feed(data))


@pytest.mark.parametrize(
    ("version", "headers", "status", "kind"),
    [
        ("1.24", {}, "200 OK", "raw-stream"),
        ("1.51", {}, "200 OK", "raw-stream"),
        ("1.41", UPGRADE, "101", "raw-stream"),
        ("1.42", UPGRADE, "101", "multiplexed-stream"),
    ],
)
def test_connections_are_taken_over(
    engine: DockerEngine, stream: Any, version: str, headers: dict[str, str], status: str, kind: str
) -> None:
    script = "while read line; do echo got $line; done; echo end >&2"
    engine.docker("create", "-i", "--name", "echo", "busybox", "sh", "-c", script)
    attached = stream("POST", f"/v{version}/containers/echo/attach?stream=1&stdin=1&stdout=1&stderr=1", headers=headers)
    assert status in attached.head and f"Content-Type: application/vnd.docker.{kind}" in attached.head
    engine.docker("start", "echo")
    attached.send(b"a\nb\n", last=True)
    frames = rawstream.Decoder().feed(attached.rest())
    assert b"".join(data for number, data in frames if number == 1) == b"got a\ngot b\n"
    assert b"".join(data for number, data in frames if number == 2) == b"end\n"


def web_socket(stream: Any, path: str) -> Stream:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    opened: Stream = stream("GET", path, headers={**headers, "Sec-WebSocket-Key": websocket.new_key()})
    assert " 101 " in opened.head
    return opened


def until(opened: Stream, events: list[websocket.Event], receiver: websocket.Receiver, text: bytes) -> None:
    while text not in b"".join(e.data for e in events if isinstance(e, websocket.Message)):
        events.extend(receiver.feed(opened.read()))


def test_a_web_socket_carries_the_log_and_both_directions(engine: DockerEngine, stream: Any) -> None:
    script = "echo before; while read line; do echo got $line; echo err >&2; done"
    engine.docker("run", "-di", "--name", "echo", "busybox", "sh", "-c", script)
    engine.until("logs", "echo", shows="before")
    opened = web_socket(stream, "/v1.51/containers/echo/attach/ws?logs=1&stream=1&stdin=1&stdout=1&stderr=1")
    receiver, events = websocket.Receiver(client=True), list[websocket.Event]()
    until(opened, events, receiver, b"before\n")
    opened.send(websocket.frame(websocket.PING, b"p", client=True))
    opened.send(websocket.frame(websocket.TEXT, b"one\n", client=True))
    until(opened, events, receiver, b"got one\n")
    until(opened, events, receiver, b"err\n")
    assert websocket.Pong(b"p") in events and not any(isinstance(e, websocket.Message) and e.text for e in events)
    engine.docker("kill", "echo")
    while not any(isinstance(e, websocket.Close) for e in events):
        events.extend(receiver.feed(opened.read()))


def test_old_web_sockets_have_text_and_every_stream(engine: DockerEngine, stream: Any) -> None:
    engine.docker("run", "-dit", "--name", "echo", "busybox", "sh", "-c", "read line; echo got $line; sleep 1000")
    opened = web_socket(stream, "/v1.27/containers/echo/attach/ws?stream=1")
    receiver, events = websocket.Receiver(client=True), list[websocket.Event]()
    opened.send(websocket.frame(websocket.TEXT, b"one\n", client=True))
    until(opened, events, receiver, b"got one")
    assert all(e.text for e in events if isinstance(e, websocket.Message))
    # The detach keys end the connection, not the container.
    opened.send(websocket.frame(websocket.TEXT, b"\x10\x11", client=True))
    while not any(isinstance(e, websocket.Close) for e in events):
        events.extend(receiver.feed(opened.read()))
    assert engine.docker("inspect", "-f", "{{.State.Running}}", "echo").stdout == "true\n"


def descriptors(engine: DockerEngine) -> int:
    return len(os.listdir(Path("/proc") / str(engine.pid) / "fd"))


VANISHING = [
    ("POST", "/containers/created/attach?stream=1&stdout=1", UPGRADE),
    ("POST", "/containers/silent/attach?stream=1&stdout=1&stdin=1", UPGRADE),
    ("GET", "/containers/silent/logs?follow=1&stdout=1", {}),
    ("GET", "/containers/silent/stats", {}),
    ("GET", "/events", {}),
    ("POST", "/containers/silent/wait", {}),
]


def test_vanished_clients_leave_nothing(engine: DockerEngine, stream: Any) -> None:
    engine.docker("create", "--name", "created", "busybox", "true")
    engine.docker("run", "-di", "--name", "silent", "busybox", "sleep", "1000")

    def cycle() -> None:
        for method, path, headers in VANISHING:
            stream(method, path, headers=headers).close()

    cycle()
    time.sleep(0.5)
    before = descriptors(engine)
    for _ in range(10):
        cycle()
    deadline = time.monotonic() + 20
    while descriptors(engine) > before + 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert descriptors(engine) <= before + 3


def test_everybody_attached_sees_everything(engine: DockerEngine, stream: Any) -> None:
    script = "read go; i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done"
    engine.docker("create", "-i", "--name", "many", "busybox", "sh", "-c", script)
    path = "/containers/many/attach?stream=1&stdout=1"
    readers = [stream("POST", path, headers=UPGRADE) for _ in range(100)]
    got: dict[int, bytes] = {}

    def read(number: int) -> None:
        got[number] = plain(readers[number].rest())

    threads = [threading.Thread(target=read, args=(number,)) for number in range(len(readers))]
    for thread in threads:
        thread.start()
    writer = stream("POST", f"{path}&stdin=1", headers=UPGRADE)
    engine.docker("start", "many")
    writer.send(b"go\n")
    for thread in threads:
        thread.join(60)
    assert set(got.values()) == {b"".join(b"line %d\n" % i for i in range(500))} and len(got) == len(readers)


def test_megabytes_of_input_wait_for_a_slow_reader(engine: DockerEngine) -> None:
    engine.docker("run", "-d", "--name", "slow", "busybox", "sleep", "1000")
    data = os.urandom(8 << 20)
    done = engine.docker("exec", "-i", "slow", "sh", "-c", "sleep 1; sha256sum", input=data)
    assert done.stdout.split()[0] == hashlib.sha256(data).hexdigest()
