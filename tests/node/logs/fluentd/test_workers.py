"""The `longshore fluentd` command: workers, kills, a configuration checked."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

from longshore.wire import forward
from node.logs.fluentd.pipelines import OUT, Pipeline, read
from node.logs.test_inputs import settle

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
