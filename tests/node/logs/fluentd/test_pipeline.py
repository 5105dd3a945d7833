"""Whole configurations: from a source to an output, with filters, buffers, dead peers and kills."""

import asyncio
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from longshore.machinery.http import Client
from longshore.node.logs.fluentd import config
from longshore.node.logs.fluentd.pipeline import Context
from longshore.node.logs.store.store import LogStore
from longshore.wire import forward
from node.logs.test_inputs import records, settle


class Pipeline:
    def __init__(self, text, folder, store=None):
        self.context = Context(folder, store, "n1")
        self.context.build(config.parse(text.replace("DIR", str(folder))))

    async def __aenter__(self):
        await self.context.start()
        return self

    async def __aexit__(self, *_):
        await self.context.close()

    async def emit(self, tag, *found, label=""):
        await self.context.emit(label, tag, [(time.time_ns(), record) for record in found], durable=True)

    def plugin(self, name):
        return next(p for _, p in self.context.plugins if name == p.NAME)


def read(folder, pattern="out/**/*.log"):
    return [json.loads(line) for path in sorted(folder.glob(pattern)) for line in path.read_text().splitlines()]


OUT = """
<match **>
  @type file
  path DIR/out/${tag}
  append true
  <format>
    @type json
  </format>
  <buffer tag>
    flush_mode immediate
  </buffer>
</match>
"""


async def through(tmp_path, filters, tag, *found, count=1):
    async with Pipeline(filters + OUT, tmp_path) as p:
        await p.emit(tag, *found)
        await settle(lambda: len(read(tmp_path)) >= count)
    return read(tmp_path)


async def test_record_transformer(tmp_path):
    text = """
<filter a.**>
  @type record_transformer
  remove_keys secret
  <record>
    where ${tag_parts[1]}/${tag_suffix[1]}
    n ${record["n"]}
    text n=${record["n"]} deep=${record["d"]["e"]}
  </record>
</filter>"""
    (found,) = await through(tmp_path, text, "a.b.c", {"n": 5, "d": {"e": "x"}, "secret": 1})
    assert found == {"n": 5, "d": {"e": "x"}, "where": "b/b.c", "text": "n=5 deep=x"}


async def test_grep_parser_and_throttle(tmp_path):
    text = """
<filter **>
  @type grep
  <regexp>
    key log
    pattern /^(?<first>[a-z])/
  </regexp>
  <exclude>
    key $.deep.level
    pattern debug
  </exclude>
</filter>
<filter **>
  @type parser
  key_name log
  reserve_data true
  remove_key_name_field true
  <parse>
    @type logfmt
    types n:integer
  </parse>
</filter>
<filter **>
  @type throttle
  group_key host
  group_bucket_limit 1
</filter>"""
    sent = [
        {"log": 'n=1 m="a b"', "host": "h"}, {"log": "9"}, {"log": "n=2", "deep": {"level": "debug"}},
        {"log": "n=3", "host": "h"}, {"log": "n=4", "host": "i"},
    ]  # fmt: skip
    found = await through(tmp_path, text, "a", *sent, count=2)
    assert found == [{"host": "h", "n": 1, "m": "a b"}, {"host": "i", "n": 4}]


async def test_concat_joins_and_flushes_what_stays(tmp_path):
    text = """
<filter **>
  @type concat
  key log
  multiline_start_regexp /^\\S/
  flush_interval 0.1s
</filter>"""
    sent = [{"log": line} for line in ("Error", " at a", " at b", "next", " more")]
    assert await through(tmp_path, text, "a", *sent, count=2) == [
        {"log": "Error\n at a\n at b"},
        {"log": "next\n more"},
    ]


@pytest.mark.parametrize(
    ("section", "line", "expected"),
    [
        ("@type json", '{"a":1,"time":1.5}', {"a": 1}),
        ("@type regexp\n expression /^(?<a>\\d+) (?<b>.*)$/\n types a:integer", "12 x y", {"a": 12, "b": "x y"}),
        (
            "@type apache2",
            '1.2.3.4 - - [10/Oct/2000:13:55:36 -0700] "GET /a HTTP/1.0" 200 2326 "-" "curl"',
            {"host": "1.2.3.4", "user": None, "method": "GET", "path": "/a", "code": 200, "size": 2326, "referer": None, "agent": "curl"},
        ),
        (
            "@type nginx",
            '127.0.0.1 - - [28/Feb/2013:12:00:00 +0900] "GET / HTTP/1.1" 200 777 "-" "Opera/12.0" -',
            {"remote": "127.0.0.1", "host": "-", "user": "-", "method": "GET", "path": "/", "code": "200", "size": "777", "referer": "-", "agent": "Opera/12.0", "http_x_forwarded_for": "-"},
        ),
        ("@type csv\n keys a,b", '"x, y",2', {"a": "x, y", "b": "2"}),
        ("@type ltsv", "a:1\tb:x:y", {"a": "1", "b": "x:y"}),
        ("@type cri", "2024-01-01T00:00:00.5Z stdout F hello you", {"stream": "stdout", "logtag": "F", "message": "hello you"}),
        ("@type none", "as it is", {"message": "as it is"}),
        ("@type syslog", "<13>Jan  1 00:00:00 host app[1]: hi", {"host": "host", "ident": "app", "pid": "1", "message": "hi"}),
    ],
)  # fmt: skip
async def test_parsers(section, line, expected):
    from longshore.node.logs.fluentd.parsers import make_parser

    parse, _ = make_parser(config.parse(f"<parse>\n{section}\n</parse>").children[0])
    when, record = parse(line)
    assert record == expected
    if "2000" in line:
        assert when == 971211336 * 10**9


async def test_tail_follows_rotation_and_goes_on_after_a_restart(tmp_path):
    text = (
        """
<source>
  @type tail
  path DIR/in/*.log
  pos_file DIR/pos
  tag t.*
  read_from_head true
  <parse>
    @type none
  </parse>
</source>"""
        + OUT
    )
    log = tmp_path / "in" / "a.log"
    log.parent.mkdir()
    for turn in range(3):
        with log.open("a") as out:
            out.write(f"one {turn}\n")
        async with Pipeline(text, tmp_path):
            await settle(lambda turn=turn: len(read(tmp_path)) == 3 * turn + 1)
            with log.open("a") as out:
                out.write(f"two {turn}\n")
            await settle(lambda turn=turn: len(read(tmp_path)) == 3 * turn + 2)
            log.rename(tmp_path / f"rotated.{turn}")
            log.write_text(f"three {turn}\n")
            await settle(lambda turn=turn: len(read(tmp_path)) == 3 * turn + 3)
    assert [r["message"] for r in read(tmp_path)] == [f"{w} {n}" for n in range(3) for w in ("one", "two", "three")]


async def test_labels_copy_store_and_the_monitor(tmp_path):
    text = """
<source>
  @type monitor_agent
  bind 127.0.0.1
  port 0
</source>
<source>
  @type sample
  tag s.x
  rate 100
  auto_increment_key n
  @label @ONE
</source>
<label @ONE>
  <match s.**>
    @type copy
    <store>
      @type store
    </store>
    <store ignore_error>
      @type relabel
      @label @TWO
    </store>
  </match>
</label>
<label @TWO>
  <match **>
    @type null
    @id end
  </match>
</label>"""
    store = LogStore(tmp_path / "store")
    async with Pipeline(text, tmp_path, store) as p:
        await settle(lambda: len(records(store, '{job="fluentd", tag="s.x"}')) > 3)
        client = Client()
        answer = await client.request("GET", f"http://127.0.0.1:{p.plugin('monitor_agent').port}/api/plugins.json")
        told = {x["plugin_id"]: x for x in json.loads(await answer.read())["plugins"]}
        assert told["end"]["emit_records"] > 3 and told["end"]["type"] == "null"
        await client.close()
    assert [r["n"] for r in records(store, '{tag="s.x"}')][:3] == [0, 1, 2]
    await store.close()


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


async def test_file_paths_by_time_and_gzip(tmp_path):
    text = """
<match **>
  @type file
  path DIR/out/%Y/${tag[1]}/${k}
  compress gzip
  <buffer tag,time,k>
    timekey 1h
    timekey_wait 0s
  </buffer>
</match>"""
    async with Pipeline(text, tmp_path) as p:
        old = 1_000_000_000 * 10**9
        await p.context.emit("", "a.b", [(old, {"k": "../../x", "n": 1})], durable=True)
        await settle(lambda: list(tmp_path.rglob("*.log.gz")))
    (path,) = tmp_path.rglob("*.log.gz")
    assert path.relative_to(tmp_path / "out").as_posix().startswith("2001/b/____x")
    assert gzip.decompress(path.read_bytes()) == b'2001-09-09T01:46:40+00:00\ta.b\t{"k":"../../x","n":1}\n'


async def test_traces_become_one_event(tmp_path):
    text = "<filter **>\n  @type detect_exceptions\n  multiline_flush_interval 0.1s\n</filter>"
    python = ["Traceback (most recent call last):", '  File "a.py", line 1', "    x()", "NameError: x"]
    java = ["java.lang.RuntimeException: no", "\tat a.B.c(B.java:1)", "Caused by: java.io.IOException: y", "\tat d"]
    sent = [{"log": line} for line in ("before", *python, "between", *java)]
    found = await through(tmp_path, text, "a", *sent, count=4)
    assert [r["log"] for r in found] == ["before", "\n".join(python), "between", "\n".join(java)]


async def test_programs_udp_and_routes(tmp_path):
    text = """
<source>
  @type exec
  command echo hello; echo you
  tag run.it
  <parse>
    @type none
  </parse>
</source>
<source>
  @type udp
  bind 127.0.0.1
  port 0
  tag udp.it
  <parse>
    @type json
  </parse>
</source>
<match run.**>
  @type route
  remove_tag_prefix run
  <route **>
    add_tag_prefix a
    copy
  </route>
  <route **>
    @label @B
  </route>
</match>
<label @B>
  <match **>
    @type exec
    command DIR/keep ${tag}
    <buffer tag>
      flush_mode immediate
    </buffer>
  </match>
</label>"""
    script = tmp_path / "keep"
    script.write_text(f'#!/bin/sh\nmkdir -p {tmp_path}/out\ncat "$2" >> {tmp_path}/out/exec.$1.log\n')
    script.chmod(0o755)
    async with Pipeline(text + OUT, tmp_path) as p:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=("127.0.0.1", p.plugin("udp").port)
        )
        transport.sendto(b'{"n":1}')
        await settle(lambda: len(read(tmp_path)) == 5)
        transport.close()
    hello = [{"message": "hello"}, {"message": "you"}]
    assert read(tmp_path, "out/a.it.log") == hello == read(tmp_path, "out/exec.it.log")
    assert read(tmp_path, "out/udp.it.log") == [{"n": 1}]


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


async def _many_ones(p, count):
    for _ in range(count):
        await p.emit("t", {"text": "x" * 500, "n": 1})


async def test_records_carry_what_the_api_server_knows_of_their_pod(tmp_path):
    from longshore.machinery.http import Response, Server

    asked = []
    pod = {
        "metadata": {
            "name": "front-1",
            "uid": "u1",
            "labels": {"app": "front"},
            "annotations": {"team/a": "x", "b": "y"},
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "httpd", "image": "busybox"}]},
        "status": {"podIP": "10.0.0.1", "containerStatuses": [{"name": "httpd", "imageID": "sha256:1"}]},
    }
    namespace = {"metadata": {"name": "shop", "uid": "u2", "labels": {"tier": "gold"}}}

    def api(request):
        asked.append((request.path, request.headers.get("authorization")))
        if request.path == "/api/v1/namespaces/shop/pods/front-1":
            return Response.json(pod)
        if request.path == "/api/v1/namespaces/shop":
            return Response.json(namespace)
        return Response.json({"kind": "Status", "code": 404, "reason": "NotFound", "message": "no"}, 404)

    server = Server(api)
    port = await server.listen_tcp("127.0.0.1", 0)
    (tmp_path / "token").write_text("secret")
    text = f"""
<filter **>
  @type kubernetes_metadata
  kubernetes_url http://127.0.0.1:{port}
  bearer_token_file {tmp_path}/token
  annotation_match ["^team"]
</filter>""" + OUT.replace("path DIR/out/${tag}", "path DIR/out/all")
    tag = "var.log.containers.{}_shop_httpd-" + "a" * 64 + ".log"
    async with Pipeline(text, tmp_path) as p:
        await p.emit(tag.format("front-1"), {"log": "hello"})
        await p.emit(tag.format("front-1"), {"log": "again"})
        await p.emit(tag.format("gone-1"), {"log": "late"})
        await p.emit("other", {"log": "as it is"})
        await settle(lambda: len(read(tmp_path)) == 4)
    first, second, late, other = sorted(
        read(tmp_path), key=lambda r: ["hello", "again", "late", "as it is"].index(r["log"])
    )
    assert first["kubernetes"] == second["kubernetes"] == {
        "pod_name": "front-1", "namespace_name": "shop", "container_name": "httpd", "container_image": "busybox",
        "container_image_id": "sha256:1", "pod_id": "u1", "pod_ip": "10.0.0.1", "host": "n1", "labels": {"app": "front"},
        "annotations": {"team/a": "x"}, "namespace_id": "u2", "namespace_labels": {"tier": "gold"},
        "master_url": f"http://127.0.0.1:{port}/api",
    }  # fmt: skip
    assert first["docker"] == {"container_id": "a" * 64}
    assert late["kubernetes"]["pod_name"] == "gone-1" and "pod_id" not in late["kubernetes"]
    assert other == {"log": "as it is"}
    assert sum(path.endswith("front-1") for path, _ in asked) == 1 and asked[0][1] == "Bearer secret"
    await server.close()


@pytest.mark.parametrize(
    ("section", "text", "expected"),
    [
        ("time_format %Y-%m-%d %H:%M:%S\n timezone +09:00", "2024-01-01 09:00:00", 1704067200),
        ("time_format %Y-%m-%d %H:%M:%S\n timezone America/New_York", "2024-07-01 08:00:00", 1719835200),
        ("time_format %Y-%m-%d %H:%M:%S\n utc true", "2024-01-01 00:00:00", 1704067200),
        ("time_format %Y-%m-%dT%H:%M:%S.%N%z", "2024-01-01T09:00:00.000000000+09:00", 1704067200),
        ("time_format %d/%b/%Y:%H:%M:%S %z", "01/Jan/2024:02:00:00 +0200", 1704067200),
    ],
)
async def test_times_are_read_in_their_zone(section, text, expected):
    from longshore.node.logs.fluentd.parsers import make_parser

    parse, _ = make_parser(config.parse(f"<parse>\n@type json\ntime_type string\n{section}\n</parse>").children[0])
    assert parse(json.dumps({"time": text, "a": 1})) == (expected * 10**9, {"a": 1})


async def test_times_are_written_in_their_zone(tmp_path):
    text = """
<match **>
  @type file
  path DIR/out/%Y%m%d
  append true
  <format>
    timezone +09:00
    time_format %Y-%m-%d %H:%M:%S %z
  </format>
  <buffer time>
    timekey 1d
    timekey_wait 0s
    timekey_zone +09:00
  </buffer>
</match>"""
    async with Pipeline(text, tmp_path) as p:
        for second in (1704034800 - 1, 1704034800):  # around midnight in Tokyo
            await p.context.emit("", "t", [(second * 10**9, {"n": second})], durable=True)
        await settle(lambda: len(list((tmp_path / "out").glob("*.log"))) == 2)
    assert (tmp_path / "out" / "20231231.log").read_text() == '2023-12-31 23:59:59 +0900\tt\t{"n":1704034799}\n'
    assert (tmp_path / "out" / "20240101.log").read_text() == '2024-01-01 00:00:00 +0900\tt\t{"n":1704034800}\n'


WORKERS = """
<system>
  workers 2
  root_dir DIR/root
</system>
<source>
  @type forward
  bind 127.0.0.1
  port PORT
</source>
<worker 1>
  <source>
    @type tail
    path DIR/in.log
    read_from_head true
    tag tail.it
    <parse>
      @type none
    </parse>
  </source>
</worker>
<filter **>
  @type record_transformer
  <record>
    worker "#{worker_id}"
  </record>
</filter>
<match **>
  @type file
  @id out
  path "DIR/out/#{worker_id}"
  append true
  <format>
    @type json
  </format>
  <buffer>
    flush_mode immediate
  </buffer>
</match>"""


async def test_workers_share_a_port_and_one_has_the_files(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    conf = tmp_path / "fluent.conf"
    conf.write_text(WORKERS.replace("DIR", str(tmp_path)).replace("PORT", str(port)))
    (tmp_path / "in.log").write_text("from a file\n")
    command = [sys.executable, "-m", "longshore", "fluentd", "-c", str(conf), "--data-dir", str(tmp_path)]
    child = subprocess.Popen(command)
    sent, workers = 0, set()
    try:
        await settle(lambda: list((tmp_path / "out").glob("1.*.log")), 20)
        while len(workers) < 2:  # the kernel chooses who has a connection
            assert sent < 200, workers
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            packed = forward.pack_entries([(time.time_ns(), {"n": sent})])
            writer.write(forward.encode_batch("t", packed, size=1, chunk="c"))
            assert forward.Client().feed(await reader.read(1000)) == ["c"]
            writer.close()
            sent += 1
            workers = {r["worker"] for r in read(tmp_path, "out/*.log") if "n" in r}
        await settle(lambda: len(read(tmp_path, "out/*.log")) == sent + 1)
    finally:
        child.terminate()
        await asyncio.to_thread(child.wait, 20)
    found = read(tmp_path, "out/*.log")
    assert sorted(r["n"] for r in found if "n" in r) == list(range(sent))
    assert [r["worker"] for r in found if "message" in r] == ["1"]
    assert sorted(p.name for p in (tmp_path / "root").iterdir()) == ["worker0", "worker1"]


RUN = """
import asyncio, sys
from pathlib import Path
from longshore.node.logs.fluentd import config
from longshore.node.logs.fluentd.pipeline import Context
async def main():
    context = Context(Path(sys.argv[1]), None, "n1")
    context.build(config.parse(sys.argv[2]))
    await context.start()
    print(context.sources[0].input.port, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_kill_loses_no_acknowledged_record(tmp_path):
    text = ("<source>\n@type forward\nbind 127.0.0.1\nport 0\n</source>" + OUT).replace("DIR", str(tmp_path))
    text = text.replace("flush_mode immediate", "flush_interval 0.2s")
    sent = 0
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path), text], stdout=subprocess.PIPE)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(child.stdout.readline()))
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
    async with Pipeline(text, tmp_path):
        await settle(lambda: {r["n"] for r in read(tmp_path)} == set(range(sent)))


def test_the_command_checks_a_configuration(tmp_path):
    conf = tmp_path / "fluent.conf"
    conf.write_text(OUT.replace("DIR", str(tmp_path)) + "<match>\n  @type nothing\n</match>\n")
    command = [sys.executable, "-m", "longshore.cli.main", "fluentd", "-c", str(conf), "--data-dir", str(tmp_path)]
    from longshore.cli.main import main

    assert main(command[3:]) == 1
    conf.write_text(OUT.replace("DIR", str(tmp_path)))
    assert main([*command[3:], "--dry-run"]) == 0
