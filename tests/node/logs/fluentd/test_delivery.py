"""Buffers and outputs: slow, dead and coming back."""

import asyncio
import json

import pytest

from longshore.machinery.http import Client
from node.logs.fluentd.pipelines import OUT, Pipeline, read
from node.logs.test_inputs import settle


async def test_forward_goes_to_the_standby_and_back_pressure_is_told(tmp_path):
    receive = (
        "<source>\n@type forward\nbind 127.0.0.1\nport 0\n<security>\nself_hostname r\nshared_key k\n</security>\n</source>"
        + OUT
    )
    async with Pipeline(receive, tmp_path / "r") as receiver:
        port = receiver.plugin("forward").input.port
        send = f"""
<match **>
  @type forward
  require_ack_response true
  compress gzip
  <security>
    self_hostname s
    shared_key k
  </security>
  <server>
    host 127.0.0.1
    port 1
  </server>
  <server>
    host 127.0.0.1
    port {port}
    standby true
  </server>
  <buffer>
    flush_mode immediate
  </buffer>
</match>"""
        async with Pipeline(send, tmp_path / "s") as sender:
            await sender.emit("t", *({"n": n} for n in range(50)))
            await settle(lambda: len(read(tmp_path / "r")) == 50)
            await settle(lambda: not list((tmp_path / "s").rglob("*.chunk")))
    assert [r["n"] for r in read(tmp_path / "r")] == list(range(50))


DEAD = """
<match **>
  @type forward
  @id dead
  <server>
    host 127.0.0.1
    port 1
  </server>
  <buffer>
    flush_mode immediate
    chunk_limit_size 1k
    total_limit_size 4k
    overflow_action ACTION
    retry_wait 0.05s
    retry_max_interval 0.05s
    retry_forever true
  </buffer>
</match>"""


async def test_a_dead_output_overflows_by_its_rule(tmp_path):
    async with Pipeline(DEAD.replace("ACTION", "throw_exception"), tmp_path / "a") as p:
        with pytest.raises(OSError, match="too many data"):
            for n in range(100):
                await p.emit("t", {"text": "x" * 500, "n": n})
    async with Pipeline(DEAD.replace("ACTION", "drop_oldest_chunk"), tmp_path / "b") as p:
        await asyncio.wait_for(_many(p, 30), 10)
        assert p.plugin("forward").figures()["dropped_records"] >= 20
    async with Pipeline(DEAD.replace("ACTION", "block"), tmp_path / "c") as p:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_many(p, 30), 0.5)


async def _many(p, count):
    for n in range(count):
        await p.emit("t", {"text": "x" * 500, "n": n})


async def test_what_cannot_be_delivered_goes_to_the_secondary(tmp_path):
    text = (
        DEAD.replace("ACTION", "block")
        .replace("retry_forever true", "retry_max_times 1")
        .replace(
            "<buffer>",
            "<secondary>\n@type file\npath DIR/out/lost\nappend true\n<format>\n@type json\n</format>\n</secondary>\n<buffer>",
        )
    )
    async with Pipeline(text, tmp_path) as p:
        await p.emit("t", {"n": 1})
        await settle(lambda: read(tmp_path) == [{"n": 1}])


async def test_flush_threads_write_at_once(tmp_path):
    text = """
<match **>
  @type exec
  command DIR/slow
  <buffer tag>
    flush_mode immediate
    flush_thread_count 4
  </buffer>
</match>"""
    script = tmp_path / "slow"
    script.write_text(
        f"#!/bin/sh\ntouch {tmp_path}/in.$$\nwhile [ $(ls {tmp_path}/in.* | wc -l) -lt 4 ]; do sleep 0.02; done\n"
    )
    script.chmod(0o755)
    async with Pipeline(text, tmp_path) as p:
        for n in range(4):
            await p.emit(f"t{n}", {"n": n})
        await settle(lambda: p.plugin("exec").figures()["write_count"] == 4, 10)


async def test_records_that_may_arrive_twice_are_counted(tmp_path):
    dead = (
        DEAD.replace("ACTION", "block")
        .replace("retry_wait 0.05s", "retry_wait 30s")
        .replace("max_interval 0.05s", "max_interval 30s")
    )
    async with Pipeline(dead, tmp_path) as p:
        await p.emit("t", {"n": 1}, {"n": 2})
        await settle(lambda: p.plugin("forward").figures()["retry_count"] == 1)
        assert p.plugin("forward").figures()["resent_records"] == 0
    async with Pipeline(dead, tmp_path) as p:  # what an earlier run was sending when it ended
        await settle(lambda: p.plugin("forward").figures()["retry_count"] == 1)
        assert p.plugin("forward").figures()["resent_records"] == 2


async def test_a_slow_output_holds_its_input_back_and_loses_nothing(tmp_path):
    text = """
<match **>
  @type exec
  command DIR/slow
  <buffer>
    flush_mode immediate
    chunk_limit_size 1k
    total_limit_size 4k
    overflow_action block
  </buffer>
</match>"""
    script = tmp_path / "slow"
    script.write_text(f'#!/bin/sh\nsleep 0.02\ncat "$1" >> {tmp_path}/got\n')
    script.chmod(0o755)
    async with Pipeline(text, tmp_path) as p:
        await asyncio.wait_for(_many(p, 40), 20)
        await settle(lambda: p.plugin("exec").figures()["write_count"] == 40, 20)
        told = p.plugin("exec").figures()
        assert told["overflow_count"] > 0 and told["dropped_records"] == 0
    assert [json.loads(line)["n"] for line in (tmp_path / "got").read_text().splitlines()] == list(range(40))


async def _many_ones(p, count):
    for _ in range(count):
        await p.emit("t", {"text": "x" * 500, "n": 1})


async def test_prometheus_tells_the_same_as_the_monitor(tmp_path):
    text = """
<source>
  @type prometheus
  bind 127.0.0.1
  port 0
</source>
<filter **>
  @type grep
  @id sieve
  <regexp>
    key n
    pattern 1
  </regexp>
</filter>"""
    async with Pipeline(text + DEAD.replace("ACTION", "drop_oldest_chunk"), tmp_path) as p:
        await p.emit("t", *({"text": "x" * 500, "n": n % 2} for n in range(20)))
        await asyncio.wait_for(_many_ones(p, 30), 10)
        client = Client()
        answer = await client.request("GET", f"http://127.0.0.1:{p.plugin('prometheus').port}/metrics")
        told = dict(line.rsplit(" ", 1) for line in (await answer.read()).decode().splitlines() if line[0] != "#")
        await client.close()
        figures = p.plugin("forward").figures()
    where = 'plugin_id="dead",type="forward",worker_id="0"'
    assert told['fluentd_filter_status_records_in_total{plugin_id="sieve",type="grep",worker_id="0"}'] == "50.0"
    assert told['fluentd_filter_status_records_out_total{plugin_id="sieve",type="grep",worker_id="0"}'] == "40.0"
    assert told[f"fluentd_output_status_emit_records_total{{{where}}}"] == "40.0"
    assert float(told[f"fluentd_status_dropped_records_total{{{where}}}"]) == figures["dropped_records"] > 0
    for name in (
        "buffer_queue_length",
        "buffer_total_bytes",
        "retry_count",
        "write_count_total",
        "overflow_count_total",
    ):
        assert f"fluentd_output_status_{name}{{{where}}}" in told
    assert f"fluentd_output_status_resent_records_total{{{where}}}" in told
