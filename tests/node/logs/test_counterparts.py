"""Real counterparts at either end: Debian's rsyslog, PyPI's fluent-logger, Fluent Bit where it is installed."""

import asyncio
import os
import shutil
import socket
import subprocess
import time

import pytest

from longshore.node.logs.inputs.emit import StoreEmit
from longshore.node.logs.inputs.forward import ForwardInput
from longshore.node.logs.inputs.lines import SyslogInput
from node.logs.fluentd.test_pipeline import OUT, Pipeline, read
from node.logs.test_inputs import entries, records, settle, store

__all__ = ["store"]

FLUENT_BIT = os.environ.get("FLUENT_BIT") or shutil.which("fluent-bit")
needs_fluent_bit = pytest.mark.skipif(not FLUENT_BIT, reason="no fluent-bit in PATH or $FLUENT_BIT")

RSYSLOG = """
global(workDirectory="DIR")
module(load="imuxsock" SysSock.Use="off")
input(type="imuxsock" Socket="DIR/log.sock" CreatePath="on")
action(type="omfwd" target="127.0.0.1" port="PORT" protocol="PROTOCOL" template="TEMPLATE" MORE)
"""


@pytest.mark.skipif(shutil.which("rsyslogd") is None, reason="no rsyslogd")
@pytest.mark.skipif(shutil.which("logger") is None, reason="no logger")
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@pytest.mark.parametrize(
    ("template", "more"),
    [
        ("RSYSLOG_TraditionalForwardFormat", ""),
        ("RSYSLOG_SyslogProtocol23Format", ""),
        ("RSYSLOG_SyslogProtocol23Format", 'TCP_Framing="octet-counted"'),
    ],
    ids=["rfc3164", "rfc5424", "rfc5424-octet-counted"],
)
async def test_rsyslog_sends_to_the_syslog_input(store, tmp_path, protocol, template, more):
    peer = SyslogInput(StoreEmit(store, "n1", "syslog"), port=0, tag="sys")
    await peer.start()
    conf = tmp_path / "rsyslog.conf"
    text = RSYSLOG.replace("DIR", str(tmp_path)).replace("PORT", str(peer.port)).replace("PROTOCOL", protocol)
    conf.write_text(text.replace("TEMPLATE", template).replace("MORE", more))
    child = subprocess.Popen(["rsyslogd", "-n", "-f", str(conf), "-i", str(tmp_path / "pid")])
    try:
        await settle(lambda: (tmp_path / "log.sock").exists())
        for number in range(3):
            command = ["logger", "-u", str(tmp_path / "log.sock"), "-t", "shop", "-p", "local3.warn", f"line {number}"]
            run = await asyncio.create_subprocess_exec(*command)
            assert await run.wait() == 0
        await settle(lambda: len(records(store, '{tag="sys.local3.warn"}')) == 3, 10)
    finally:
        child.terminate()
        await asyncio.to_thread(child.wait, 10)
    found = records(store, '{tag="sys.local3.warn"}')
    assert [r["message"].strip() for r in found] == [f"line {number}" for number in range(3)]
    assert {r["ident"] for r in found} == {"shop"} and all(r["host"] for r in found)
    assert all(abs(e.time / 1e9 - time.time()) < 60 for e in entries(store, '{job="syslog"}'))
    await peer.close()


async def test_fluent_logger_sends_to_the_forward_input(store):
    sender = pytest.importorskip("fluent.sender", reason="no fluent-logger")
    peer = ForwardInput(StoreEmit(store, "n1", "forward"), port=0)
    await peer.start()

    def send():
        for precise in (False, True):
            logger = sender.FluentSender("app", host="127.0.0.1", port=peer.port, nanosecond_precision=precise)
            for number in range(100):
                assert logger.emit("web", {"n": number, "text": "häß", "list": [1, {"a": None}]}), logger.last_error
            logger.close()

    await asyncio.to_thread(send)
    await settle(lambda: len(records(store, '{tag="app.web"}')) == 200)
    found = records(store, '{tag="app.web"}')
    assert sorted(r["n"] for r in found) == sorted([*range(100)] * 2)
    assert found[0]["text"] == "häß" and found[0]["list"] == [1, {"a": None}]
    await peer.close()


def bit(tmp_path, text):
    conf = tmp_path / "fluent-bit.conf"
    conf.write_text("[SERVICE]\n    flush 0.2\n    grace 1\n" + text)
    return subprocess.Popen([FLUENT_BIT, "-q", "-c", str(conf)], stdout=subprocess.PIPE)


@needs_fluent_bit
@pytest.mark.parametrize("compress", ["", "gzip"])
async def test_fluent_bit_sends_with_acknowledgements_and_a_shared_key(store, tmp_path, compress):
    peer = ForwardInput(StoreEmit(store, "n1", "forward"), port=0, shared_key="secret")
    await peer.start()
    child = bit(
        tmp_path,
        '[INPUT]\n    name dummy\n    tag bit.dummy\n    dummy {"hello":"you"}\n    samples 20\n    rate 100\n'
        f"[OUTPUT]\n    name forward\n    match *\n    host 127.0.0.1\n    port {peer.port}\n    shared_key secret\n"
        f"    self_hostname bit\n    require_ack_response true\n" + (f"    compress {compress}\n" if compress else ""),
    )
    try:
        await settle(lambda: len(records(store, '{tag="bit.dummy"}')) == 20, 15)
    finally:
        child.terminate()
        await asyncio.to_thread(child.wait, 10)
    assert records(store, '{tag="bit.dummy"}') == [{"hello": "you"}] * 20
    await peer.close()


@needs_fluent_bit
@pytest.mark.parametrize("compress", ["text", "gzip"])
async def test_our_forward_output_reaches_fluent_bit(tmp_path, compress):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = bit(
        tmp_path,
        f"[INPUT]\n    name forward\n    listen 127.0.0.1\n    port {port}\n"
        "[OUTPUT]\n    name stdout\n    match *\n    format json_lines\n",
    )
    send = f"""
<match **>
  @type forward
  require_ack_response true
  ack_response_timeout 5s
  compress {compress}
  <server>
    host 127.0.0.1
    port {port}
  </server>
  <buffer>
    flush_mode immediate
    retry_wait 0.2s
  </buffer>
</match>"""
    try:
        async with Pipeline(send, tmp_path / "s") as sender:
            await sender.emit("t", *({"n": n} for n in range(50)))
            await settle(lambda: not list((tmp_path / "s").rglob("*.chunk")), 15)
        await asyncio.sleep(0.5)
    finally:
        child.terminate()
        out, _ = await asyncio.to_thread(child.communicate)
    assert out.count(b'"n":') == 50


async def test_fluent_logger_through_a_whole_configuration(tmp_path):
    sender = pytest.importorskip("fluent.sender", reason="no fluent-logger")
    receive = "<source>\n@type forward\nbind 127.0.0.1\nport 0\n</source>" + OUT
    async with Pipeline(receive, tmp_path) as receiver:
        port = receiver.plugin("forward").input.port

        def send():
            logger = sender.FluentSender("app", host="127.0.0.1", port=port)
            assert logger.emit("web", {"n": 1})
            logger.close()

        await asyncio.to_thread(send)
        await settle(lambda: read(tmp_path) == [{"n": 1}])
