"""Log drivers that send lines elsewhere, through the docker command."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from tests.support.docker_engine import DockerEngine

from longshore.machinery import pki
from longshore.wire import forward, syslog

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


class Receiver:
    """Keeps what comes over TCP, a unix stream, or as datagrams; `events` reads it as Fluent's forward protocol."""

    def __init__(
        self, family: int, kind: int, address: Any, acknowledge: bool = False, context: ssl.SSLContext | None = None
    ) -> None:
        self.data = b""
        self.events: list[list[Any]] = []
        self._acknowledge, self._context = acknowledge, context
        self._socket = socket.socket(family, kind)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(address)
        self._open: list[socket.socket] = []
        if kind == socket.SOCK_STREAM:
            self._socket.listen()
            threading.Thread(target=self._accept, daemon=True).start()
        else:
            threading.Thread(target=self._read, args=(self._socket,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if self._context is not None:
                try:
                    connection = self._context.wrap_socket(connection, server_side=True)
                except OSError:
                    continue
            self._open.append(connection)
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        unpacker = msgpack.Unpacker(raw=False, ext_hook=lambda *found: found)
        while True:
            try:
                data = connection.recv(65536)
            except OSError:
                return
            if not data:
                return
            self.data += data
            if self._context is None and data[:1] != b"<":
                unpacker.feed(data)
                for event in unpacker:
                    self.events.append(event)
                    if self._acknowledge:
                        connection.sendall(msgpack.packb({"ack": event[3]["chunk"]}))

    def close(self) -> None:
        for each in (self._socket, *self._open):
            each.close()


@pytest.fixture
def fluentd() -> Iterator[Receiver]:
    receiver = Receiver(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
    yield receiver
    receiver.close()


def test_fluentd_gets_each_line_with_its_container(engine: DockerEngine, fluentd: Receiver) -> None:
    done = engine.docker(
        "run", "--rm", "--name", "teller", "--label", "shop=north", "--log-driver=fluentd",
        "--log-opt", f"fluentd-address=127.0.0.1:{fluentd.port}", "--log-opt", "tag=docker.{{.Name}}.{{.ID}}",
        "--log-opt", "labels=shop", "--log-opt", "fluentd-sub-second-precision=true",
        "busybox", "sh", "-c", "echo out; echo err >&2; printf half",
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("out\nhalf", "err\n")
    # What --rm removes was sent before.
    assert len(fluentd.events) == 3
    by_text = {event[2]["log"]: event for event in fluentd.events}
    tag, when, record, _ = by_text["out"]
    assert tag == f"docker.teller.{record['container_id'][:12]}"
    assert record == {
        "container_id": record["container_id"], "container_name": "/teller", "source": "stdout", "log": "out", "shop": "north",
    }  # fmt: skip
    assert abs(forward.event_time(when) / 1e9 - time.time()) < 60
    assert by_text["err"][2]["source"] == "stderr" and by_text["half"][2]["source"] == "stdout"


def test_docker_logs_works_beside_a_remote_driver(engine: DockerEngine, fluentd: Receiver) -> None:
    where = f"fluentd-address=127.0.0.1:{fluentd.port}"
    engine.docker("run", "--name", "dual", "--log-driver=fluentd", "--log-opt", where, "busybox", "seq", "3")
    assert engine.docker("logs", "dual").stdout == "1\n2\n3\n"
    engine.docker(
        "run", "--name", "single", "--log-driver=fluentd", "--log-opt", where, "--log-opt", "cache-disabled=true",
        "busybox", "seq", "3",
    )  # fmt: skip
    refused = engine.docker("logs", "single", check=False)
    assert "configured logging driver does not support reading" in refused.stderr
    until(lambda: len(fluentd.events) == 6)
    assert all(isinstance(event[1], int) for event in fluentd.events)


def test_long_lines_come_in_marked_pieces_and_are_acknowledged(engine: DockerEngine) -> None:
    receiver = Receiver(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0), acknowledge=True)
    engine.docker(
        "run", "--rm", "--log-driver=fluentd", "--log-opt", f"fluentd-address=tcp://127.0.0.1:{receiver.port}",
        "--log-opt", "fluentd-request-ack=true", "busybox", "sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x; echo; echo end",
    )  # fmt: skip
    *pieces, last = [event[2] for event in receiver.events]
    assert last["log"] == "end" and "partial_id" not in last
    assert "".join(piece["log"] for piece in pieces) == "x" * 40000
    assert [piece["partial_ordinal"] for piece in pieces] == [str(n + 1) for n in range(len(pieces))]
    assert [piece["partial_last"] for piece in pieces] == ["false"] * (len(pieces) - 1) + ["true"]
    assert len({piece["partial_id"] for piece in pieces}) == 1
    receiver.close()


def test_a_receiver_that_is_away_refuses_a_start_unless_asynchronous(engine: DockerEngine) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--log-driver=fluentd", "--log-opt", f"fluentd-address=127.0.0.1:{port}")
    refused = engine.docker("run", "--rm", *options, "busybox", "true", check=False)
    assert refused.returncode == 125
    assert (
        "failed to create task for container: failed to initialize logging driver: "
        f"dial tcp 127.0.0.1:{port}: connect: connection refused" in refused.stderr
    )
    engine.docker(
        "run", "-d", "--name", "early", *options, "--log-opt", "fluentd-async=true", "--log-opt", "fluentd-retry-wait=100ms",
        "busybox", "sh", "-c", "seq 100; sleep 1000",
    )  # fmt: skip
    until(lambda: engine.docker("logs", "early").stdout.endswith("100\n"))
    receiver = Receiver(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port))
    until(lambda: len(receiver.events) >= 100)
    assert [event[2]["log"] for event in receiver.events] == [str(n) for n in range(1, 101)]
    receiver.close()


def test_nothing_is_lost_when_the_engine_is_killed(engine: DockerEngine, fluentd: Receiver) -> None:
    count = 3000
    engine.docker(
        "run", "-d", "--name", "steady", "--log-driver=fluentd", "--log-opt", f"fluentd-address=127.0.0.1:{fluentd.port}",
        "--log-opt", "cache-max-size=20k", "--log-opt", "cache-max-file=2",
        "busybox", "sh", "-c", f"for i in $(seq {count}); do echo line $i; [ $((i % 50)) = 0 ] && sleep 0.03; done; printf end",
    )  # fmt: skip
    for wanted in (300, 900):
        until(lambda n=wanted: len(fluentd.events) > n)  # type: ignore[misc]
        engine.kill()
        time.sleep(0.2)
        engine.start()
    engine.docker("wait", "steady")
    wanted_lines = [f"line {n}" for n in range(1, count + 1)] + ["end"]
    until(lambda: fluentd.events[-1][2]["log"] == "end")
    seen = list(dict.fromkeys(event[2]["log"] for event in fluentd.events))
    assert seen == wanted_lines
    # Only what was under way at a kill came twice.
    assert len(fluentd.events) < count * 1.5


def test_a_full_buffer_drops_the_newest_lines(engine: DockerEngine) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine.docker(
        "run", "--name", "flood", "--log-driver=fluentd", "--log-opt", f"fluentd-address=127.0.0.1:{port}",
        "--log-opt", "fluentd-async=true", "--log-opt", "fluentd-retry-wait=1s", "--log-opt", "mode=non-blocking",
        "--log-opt", "max-buffer-size=10k", "busybox", "seq", "20000",
    )  # fmt: skip
    receiver = Receiver(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port))
    until(lambda: receiver.events)
    time.sleep(0.5)
    numbers = [int(event[2]["log"]) for event in receiver.events]
    assert numbers[:1000] == list(range(1, 1001)) and len(numbers) < 5000
    assert engine.docker("logs", "--tail", "1", "flood").stdout == "20000\n"
    receiver.close()


@pytest.mark.parametrize("form", ["", "rfc3164", "rfc5424", "rfc5424micro"])
@pytest.mark.parametrize("scheme", ["udp", "tcp", "unix", "unixgram"])
def test_syslog_in_each_form_over_each_way(engine: DockerEngine, tmp_path: Path, scheme: str, form: str) -> None:
    kind = socket.SOCK_STREAM if scheme in ("tcp", "unix") else socket.SOCK_DGRAM
    if scheme.startswith("unix"):
        path = tmp_path / "s"
        receiver = Receiver(socket.AF_UNIX, kind, str(path))
        address = f"{scheme}://{path}"
    else:
        receiver = Receiver(socket.AF_INET, kind, ("127.0.0.1", 0))
        address = f"{scheme}://127.0.0.1:{receiver.port}"
    engine.docker(
        "run", "--rm", "--name", "sys", "--log-driver=syslog", "--log-opt", f"syslog-address={address}",
        "--log-opt", f"syslog-format={form}", "--log-opt", "syslog-facility=local3", "--log-opt", "tag={{.Name}}/{{upper .ImageName}}",
        "busybox", "sh", "-c", "echo out; echo err >&2",
    )  # fmt: skip
    until(lambda: receiver.data.count(b"\n") == 2)
    messages = {m.message.strip(): m for m in map(syslog.parse, receiver.data.splitlines())}
    assert set(messages) == {"out", "err"}
    assert (messages["out"].facility, messages["out"].severity) == ("local3", "info")
    assert messages["err"].severity == "err"
    assert messages["out"].ident == "sys/BUSYBOX"
    if form.startswith("rfc"):
        assert messages["out"].host == socket.gethostname()
    if form == "rfc5424micro":
        assert b"." in receiver.data.split()[1]
    receiver.close()


@pytest.mark.parametrize(
    "driver, options, words",
    [
        ("nosuch", (), 'error looking up logging plugin nosuch: plugin "nosuch" not found'),
        ("fluentd", ("nosuch=1",), "unknown log opt 'nosuch' for fluentd log driver"),
        ("syslog", ("fluentd-address=x",), "unknown log opt 'fluentd-address' for syslog log driver"),
        ("syslog", ("syslog-address=x",), "syslog-address should be in form proto://address, got x"),
        ("syslog", ("syslog-facility=x",), "invalid syslog facility"),
        ("syslog", ("syslog-format=x",), "Invalid syslog format"),
        ("fluentd", ("fluentd-address=udp://x",), "invalid fluentd-address (udp://x): unsupported scheme: 'udp'"),
        ("fluentd", ("fluentd-async=x",), 'strconv.ParseBool: parsing "x": invalid syntax'),
        ("fluentd", ("fluentd-retry-wait=5",), 'time: missing unit in duration "5"'),
        ("json-file", ("mode=x",), "logger: logging mode not supported: x"),
        ("json-file", ("max-buffer-size=1m",), "logger: max-buffer-size option is only supported with 'mode=non-blocking'"),
        ("fluentd", ("mode=non-blocking", "max-buffer-size=x"), "error parsing option max-buffer-size: invalid size: 'x'"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_in_dockerds_words(
    engine: DockerEngine, driver: str, options: tuple[str, ...], words: str
) -> None:
    more = [part for option in options for part in ("--log-opt", option)]
    done = engine.docker("create", f"--log-driver={driver}", *more, "busybox", check=False)
    assert done.returncode == 1 and words in done.stderr


def test_a_wrong_tag_refuses_the_start(engine: DockerEngine, fluentd: Receiver) -> None:
    done = engine.docker(
        "run", "--rm", "--log-driver=fluentd", "--log-opt", f"fluentd-address=127.0.0.1:{fluentd.port}",
        "--log-opt", "tag={{.Nosuch}}", "busybox", "true", check=False,
    )  # fmt: skip
    assert done.returncode == 125 and "can't evaluate field Nosuch in type *logger.Info" in done.stderr


def test_syslog_over_tls_checks_the_receiver(engine: DockerEngine, tmp_path: Path) -> None:
    authority = pki.make_ca("test")
    authority.write(tmp_path / "ca.pem", tmp_path / "ca-key.pem")
    pki.issue(authority, "receiver", names=["127.0.0.1"], server=True).write(
        tmp_path / "cert.pem", tmp_path / "key.pem"
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    receiver = Receiver(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0), context=context)
    options = (
        "--log-driver=syslog", "--log-opt", f"syslog-address=tcp+tls://127.0.0.1:{receiver.port}",
        "--log-opt", "syslog-format=rfc5424",
    )  # fmt: skip
    refused = engine.docker("run", "--rm", *options, "busybox", "echo", "never", check=False)
    assert refused.returncode == 125 and "x509: unable to get local issuer" in refused.stderr
    engine.docker(
        "run", "--rm", *options, "--log-opt", f"syslog-tls-ca-cert={tmp_path}/ca.pem", "busybox", "echo", "safe"
    )
    until(lambda: b"safe\n" in receiver.data)
    length, _, rest = receiver.data.partition(b" ")
    assert int(length) == len(rest) and b"never" not in receiver.data
    receiver.close()
