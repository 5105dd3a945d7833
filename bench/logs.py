"""Claim: CRI files to the store at 300,000 lines/s and more on one core, found again in under 2 s for 10 million lines,
stored in under 15 % of the raw size; the forward input at 300,000 records/s, kept before they are acknowledged. Peer in the same run: zstd alone over the same bytes (what no store can beat).
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path

import zstandard

from bench.report import figure
from longshore.node.logs.collector import Collector
from longshore.node.logs.inputs.emit import StoreEmit
from longshore.node.logs.inputs.forward import ForwardInput
from longshore.node.logs.logql.parser import parse_log_query
from longshore.node.logs.query import LogQuerier
from longshore.node.logs.store.store import LogStore
from longshore.wire import crilog, forward

LINES = 1_000_000
RECORDS = 500_000


def write(log: Path) -> None:
    """Lines of about 100 bytes as web servers write them."""
    chance = random.Random(1)
    start = time.time_ns() - LINES * 1000
    log.parent.mkdir(parents=True)
    with log.open("wb") as out:
        for number in range(LINES):
            line = (
                f'10.244.{chance.randrange(4)}.{chance.randrange(250)} "GET /item/{chance.randrange(100000)} HTTP/1.1" '
                f"{chance.choice((200, 200, 200, 404, 500))} {chance.randrange(20000)} {chance.random():.3f}"
            )
            out.write(crilog.format_line(start + number * 1000, b"stdout", line.encode()))


async def measure(folder: Path) -> None:
    log = folder / "pods" / "shop_front_uid" / "httpd" / "0.log"
    write(log)
    raw = log.read_bytes()
    started = time.monotonic()
    packed = len(zstandard.ZstdCompressor(level=3).compress(raw))
    alone = time.monotonic() - started
    store = LogStore(folder / "store")
    collector = Collector(folder / "pods", store, "n1")
    started = time.monotonic()
    collector.start()
    while collector.bytes_read < len(raw):
        await asyncio.sleep(0.001)
    for stream in list(store.index.streams):
        store.flush(stream)
    while store.index.totals()[0] < LINES:
        await asyncio.sleep(0.001)
    took = time.monotonic() - started
    figure(
        "CRI file to store, 100-byte lines",
        LINES / took,
        "lines/s",
        peer="zstd alone",
        theirs=LINES / alone,
        target="> 300,000",
    )
    stored = store.index.totals()[2]
    figure(
        "stored size of the raw lines",
        stored / len(raw) * 100,
        "%",
        peer="zstd alone",
        theirs=packed / len(raw) * 100,
        target="< 15",
    )
    querier = LogQuerier(store)
    started = time.monotonic()
    found = querier.entries(parse_log_query('{namespace="shop"} |= "/item/77777 "'), 0, 2**62, lambda _: True)
    took = time.monotonic() - started
    figure(
        f"line filter, 10 million lines (measured on {LINES:,}; {len(found)} hits)",
        took * 10_000_000 / LINES,
        "s",
        target="< 2",
    )
    started = time.monotonic()
    end = time.time_ns()
    querier.entries(parse_log_query('{pod="front"}'), end - 10**9, end, lambda _: True, limit=100, newest_first=True)
    figure("label and time-bounded query", (time.monotonic() - started) * 1000, "ms", target="< 50")
    await forwarded(store)
    collector.close()
    await store.close()


async def forwarded(store: LogStore) -> None:
    """Records of about 100 bytes in chunks of 5,000, each acknowledged after it is on disk, as Fluentd sends them."""
    peer = ForwardInput(StoreEmit(store, "n1", "forward"), port=0)
    await peer.start()
    now = time.time_ns()
    record = {"log": "x" * 60, "container": "front", "status": 200}
    entries = forward.pack_entries([(now + n, record) for n in range(5000)])
    reader, writer = await asyncio.open_connection("127.0.0.1", peer.port)
    client = forward.Client()
    chunks = RECORDS // 5000
    started = time.monotonic()
    sender = asyncio.ensure_future(_send(writer, entries, chunks))
    acknowledged = 0
    while acknowledged < chunks:
        acknowledged += len(client.feed(await reader.read(65536)))
    took = time.monotonic() - started
    await sender
    writer.close()
    await peer.close()
    figure("forward input, records acknowledged", RECORDS / took, "records/s", target="> 300,000")


async def _send(writer: asyncio.StreamWriter, entries: bytes, chunks: int) -> None:
    for number in range(chunks):
        writer.write(forward.encode_batch("app.web", entries, size=5000, chunk=str(number)))
        await writer.drain()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder)))


if __name__ == "__main__":
    main()
