"""What the tests of whole Fluentd configurations share."""

import json
import time

from longshore.node.logs.fluentd import config
from longshore.node.logs.fluentd.pipeline import Context
from node.logs.test_inputs import settle


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
