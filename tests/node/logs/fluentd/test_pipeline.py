"""Whole configurations: from a source to an output."""

import asyncio
import gzip
import json

from longshore.machinery.http import Client
from longshore.node.logs.store.store import LogStore
from node.logs.fluentd.pipelines import OUT, Pipeline, read
from node.logs.test_inputs import records, settle


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
