"""The same operations put to our store, to our store behind its gRPC face, and to Debian's etcd: the same answers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.etcd import Three, three_members

from longshore.machinery import process
from longshore.master.etcd import face as faces
from longshore.master.etcd import model as m
from longshore.master.etcd import snapshot
from longshore.master.etcd.client import EtcdStore
from longshore.master.etcd.embedded import EmbeddedStore

PORT, OURS = 22379, 22479
needs_etcd = pytest.mark.skipif(not shutil.which("etcd"), reason="etcd-server is not installed")
needs_etcdctl = pytest.mark.skipif(not shutil.which("etcdctl"), reason="etcd-client is not installed")


@pytest.fixture
def etcd_server(tmp_path: Path) -> Iterator[str]:
    url, peer = f"http://127.0.0.1:{PORT}", f"http://127.0.0.1:{PORT + 1}"
    server = subprocess.Popen(
        [
            "etcd", "--data-dir", str(tmp_path / "etcd"), "--listen-client-urls", url, "--advertise-client-urls", url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield url
    server.kill()
    server.wait()


async def opened(url: str) -> EtcdStore:
    for _ in range(200):
        try:
            return await EtcdStore.open([url])
        except m.Unavailable:
            await asyncio.sleep(0.05)
    raise AssertionError("etcd does not answer")


@pytest.fixture
async def ours() -> AsyncIterator[tuple[EmbeddedStore, EtcdStore]]:
    """A store in memory, and a client of the face of another one."""
    plain, behind = await EmbeddedStore.open(None), await EmbeddedStore.open(None)
    server = faces.server(faces.Face(behind))
    await server.listen_tcp("127.0.0.1", OURS)
    client = await EtcdStore.open([f"http://127.0.0.1:{OURS}"])
    yield plain, client
    await client.close()
    await server.close(0.1)
    await plain.close()
    await behind.close()


KEYS = [b"a", b"a/1", b"a/2", b"b", b"b\xff", b"c"]


class Random:
    """Random operations, the same ones for every store."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.leases: list[int] = []

    def span(self) -> tuple[bytes, bytes]:
        key = self.chance.choice(KEYS)
        return key, self.chance.choice([b"", b"", m.prefix_end(key), b"\0", b"b"])

    def op(self, depth: int = 0) -> m.Op:
        kind = self.chance.randrange(10 if depth else 9)
        if kind < 4:
            return m.Put(
                self.chance.choice(KEYS),
                b"%d" % self.chance.randrange(9),
                self.chance.choice([0, 0, 0, 7, *self.leases]),
                self.chance.random() < 0.3,
            )
        if kind < 6:
            return m.Delete(*self.span(), self.chance.random() < 0.5)
        if kind == 8 and depth < 2:
            return m.Txn([self.compare()], [self.op(depth + 1)], [self.op(depth + 1)])
        if kind == 9:
            return m.Put(self.chance.choice(KEYS), b"", ignore_value=True)
        return m.Range(*self.span(), limit=self.chance.choice([0, 0, 2]))

    def compare(self) -> m.Compare:
        target = self.chance.choice(["version", "create", "mod", "value", "lease"])
        operand: int | bytes = b"%d" % self.chance.randrange(9) if target == "value" else self.chance.randrange(4)
        key, end = self.span()
        return m.Compare(target, key, self.chance.choice(["=", "!=", "<", ">"]), operand, end)  # type: ignore[arg-type]

    def call(self, revision: int) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        kind = self.chance.randrange(22)
        if kind < 5:
            lease = self.chance.choice([0, 0, 0, 7, *self.leases])
            return "put", (self.chance.choice(KEYS), b"%d" % kind), {"lease": lease, "prev_kv": kind == 1}
        if kind < 7:
            return "delete", self.span(), {"prev_kv": kind == 5}
        if kind < 12:
            op = m.Range(
                *self.span(),
                revision=self.chance.choice([0, 0, max(revision - self.chance.randrange(8), 1), revision + 1]),
                limit=self.chance.choice([0, 0, 1, 3]),
                keys_only=self.chance.random() < 0.2,
                count_only=self.chance.random() < 0.2,
                sort_order=self.chance.choice(["none", "none", "ascend", "descend"]),
                sort_target=self.chance.choice(["key", "version", "create", "mod", "value"]),
                min_mod_revision=self.chance.choice([0, 0, 0, revision - 3]),
                max_create_revision=self.chance.choice([0, 0, 0, revision - 3]),
            )
            return "read", (op,), {}
        if kind < 17:
            then = [self.op() for _ in range(self.chance.randrange(4))]
            return "txn", ([self.compare() for _ in range(self.chance.randrange(3))], then, [self.op()]), {}
        if kind == 17:
            return "create", (self.chance.choice(KEYS), b"created"), {}
        if kind == 18:
            return "update", (self.chance.choice(KEYS), b"updated", revision - self.chance.randrange(3)), {}
        if kind == 19:
            lease = self.chance.randrange(100, 120)
            self.leases.append(lease)
            return "lease_grant", (1000, lease), {}
        if kind == 20 and self.leases:
            return "lease_revoke", (self.leases.pop(),), {}
        if self.chance.random() < 0.3:
            return "compact", (revision - self.chance.randrange(6),), {}
        return "lease_list", (), {}


async def answer(store: Any, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    try:
        return await getattr(store, name)(*arguments, **options)
    except m.StoreError as error:
        return type(error), str(error), error.code


async def history(store: Any) -> list[m.Event]:
    watch = store.watch(b"\0", b"\0", start_revision=max(store.compact_revision, 1), prev_kv=True)
    found: list[m.Event] = []
    while not found or found[-1].kv.mod_revision < store.revision:
        batch = await asyncio.wait_for(watch.__anext__(), 10)
        found += batch.events
    watch.close()
    # A delete at the compacted revision itself is told by us and by etcd since 3.6, not by older ones.
    return [e for e in found if e.type != m.DELETE or e.kv.mod_revision > max(store.compact_revision, 1)]


@needs_etcd
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
async def test_the_same_answers_as_etcd(ours: tuple[EmbeddedStore, EtcdStore], etcd_server: str, seed: int) -> None:
    etcd = await opened(etcd_server)
    embedded, face = ours
    source = Random(seed)
    said = []
    for number in range(500):
        name, arguments, options = source.call(embedded.revision)
        theirs = await answer(etcd, name, arguments, options)
        for store in (embedded, face):
            got = await answer(store, name, arguments, options)
            assert got == theirs, (number, name, arguments, options)
        assert embedded.revision == etcd.revision == face.revision, (number, name, arguments)
        said.append(theirs)
    assert sum(isinstance(a, tuple) and isinstance(a[0], type) for a in said) < 250
    expected = await history(etcd)
    for store in (embedded, face):
        got = await history(store)
        assert [(e.type, e.kv) for e in got] == [(e.type, e.kv) for e in expected]
        for mine, other in zip(got, expected, strict=True):
            if mine.prev_kv is not None and other.prev_kv is not None:
                assert mine.prev_kv == other.prev_kv
    await etcd.close()


@needs_etcd
async def test_watches_go_on_after_etcd_was_away(etcd_server: str, tmp_path: Path) -> None:
    etcd = await opened(etcd_server)
    watch = etcd.watch(b"k", progress=True)
    await asyncio.sleep(0.2)
    await etcd.put(b"k", b"1")
    assert [e.kv.value for e in (await asyncio.wait_for(watch.__anext__(), 10)).events] == [b"1"]
    etcd.client()._channel.close()
    await etcd.put(b"k", b"2")
    await etcd.put(b"k", b"3")
    got: list[bytes] = []
    while len(got) < 2:
        got += [e.kv.value for e in (await asyncio.wait_for(watch.__anext__(), 10)).events]
    assert got == [b"2", b"3"]
    watch.request_progress()
    batch = await asyncio.wait_for(watch.__anext__(), 10)
    assert (batch.events, batch.revision) == ([], 4)
    await etcd.compact(4)
    old = etcd.watch(b"k", start_revision=2)
    with pytest.raises(m.Compacted) as caught:
        await asyncio.wait_for(old.__anext__(), 10)
    assert caught.value.compact_revision == 4
    assert await etcd.snapshot(tmp_path / "etcd.db") == 4
    lease = await etcd.lease_grant(50)
    assert (await etcd.lease_keepalive(lease.id)).ttl == 50
    with pytest.raises(m.LeaseNotFound):
        await etcd.lease_keepalive(4711)
    assert (await etcd.status()).version.startswith("3.")
    await etcd.close()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Three]:
    with three_members(tmp_path, 24000) as cluster:
        yield cluster


@needs_etcd
async def test_three_members_and_the_leader_dies(three: Three) -> None:
    urls, members = three
    await (await opened(urls[0])).close()
    store = await EtcdStore.open(urls)
    watch = store.watch(b"/k/", m.prefix_end(b"/k/"))
    await asyncio.sleep(0.3)
    acknowledged: dict[bytes, int] = {}
    doubtful: set[bytes] = set()
    stop = False

    async def write(number: int) -> None:
        count = 0
        while not stop:
            key = b"/k/%d/%d" % (number, count)
            count += 1
            try:
                acknowledged[key] = (await store.put(key, b"v")).revision
            except m.StoreError:
                doubtful.add(key)
                await asyncio.sleep(0.02)

    writers = [asyncio.create_task(write(number)) for number in range(6)]
    await asyncio.sleep(0.5)
    for place, url in enumerate(urls):
        one = await EtcdStore.open([url])
        leads = (await one.status()).leader
        await one.close()
        if leads:
            members[place].kill()
            break
    before = len(acknowledged)
    for _ in range(200):
        await asyncio.sleep(0.1)
        if len(acknowledged) > before + 200:
            break
    stop = True
    await asyncio.gather(*writers)
    assert len(acknowledged) > before + 200
    kvs = {kv.key: kv.mod_revision for kv in (await store.range(b"/k/", m.prefix_end(b"/k/"))).kvs}
    assert acknowledged.items() <= kvs.items()
    assert kvs.keys() <= acknowledged.keys() | doubtful
    told: list[tuple[bytes, int]] = []
    while len(told) < len(kvs):
        batch = await asyncio.wait_for(watch.__anext__(), 10)
        told += [(e.kv.key, e.kv.mod_revision) for e in batch.events]
    assert told == sorted(kvs.items(), key=lambda item: item[1])
    await store.close()


class Ctl:
    async def __call__(self, *words: str, stdin: bytes | None = None, ok: bool = True) -> str:
        environment = {**os.environ, "ETCDCTL_API": "3"}
        done = await process.run(
            ["etcdctl", f"--endpoints=127.0.0.1:{OURS}", *words], stdin=stdin, env=environment, timeout=30, check=False
        )
        assert (done.returncode == 0) == ok, done
        return (done.stdout if ok else done.stderr).decode()


@needs_etcdctl
async def test_etcdctl(ours: tuple[EmbeddedStore, EtcdStore], tmp_path: Path) -> None:
    ctl = Ctl()
    assert await ctl("put", "foo", "bar") == "OK\n"
    assert await ctl("get", "foo") == "foo\nbar\n"
    await ctl("put", "foo", "bar2")
    assert await ctl("put", "--prev-kv", "foo", "bar3") == "OK\nfoo\nbar2\n"
    assert await ctl("get", "foo", "--rev=2") == "foo\nbar\n"
    for number in range(5):
        await ctl("put", f"key{number}", str(9 - number))
    assert (await ctl("get", "--prefix", "key", "--keys-only", "--limit=2")).split() == ["key0", "key1"]
    assert (
        await ctl("get", "--prefix", "key", "--sort-by=VALUE", "--order=ASCEND", "--print-value-only")
    ).split() == list("56789")
    assert (await ctl("get", "key1", "key3", "--print-value-only")).split() == ["8", "7"]
    assert await ctl("del", "key0") == "1\n"
    assert await ctl("del", "--prefix", "--prev-kv", "key") == "4\nkey1\n8\nkey2\n7\nkey3\n6\nkey4\n5\n"
    said = await ctl("txn", stdin=b'value("foo") = "bar3"\n\nput foo txn\nget foo\n\nget nothing\n\n')
    assert said == "SUCCESS\n\nOK\n\nfoo\ntxn\n"
    lease = (await ctl("lease", "grant", "500")).split()[1]
    await ctl("put", "--lease", lease, "leased", "x")
    assert "attached keys([leased])" in await ctl("lease", "timetolive", "--keys", lease)
    assert "keepalived with TTL(500)" in await ctl("lease", "keep-alive", "--once", lease)
    assert lease in await ctl("lease", "list")
    await ctl("lease", "revoke", lease)
    assert await ctl("get", "leased") == ""
    assert "is healthy" in (
        await process.run(
            ["etcdctl", f"--endpoints=127.0.0.1:{OURS}", "endpoint", "health"], env={**os.environ, "ETCDCTL_API": "3"}
        )
    ).stderr.decode() + (await ctl("endpoint", "health"))
    (status,) = json.loads(await ctl("endpoint", "status", "-w", "json"))
    assert status["Status"]["leader"] == status["Status"]["header"]["member_id"]
    assert len(json.loads(await ctl("member", "list", "-w", "json"))["members"]) == 1
    assert await ctl("alarm", "list") == ""
    assert json.loads(await ctl("endpoint", "hashkv", "-w", "json"))[0]["HashKV"]["hash"]
    watching = asyncio.create_task(ctl_until(["watch", "--prefix", "--rev=2", "foo"], 4 * 3))
    assert (await watching).split("\n")[:12] == [
        "PUT",
        "foo",
        "bar",
        "PUT",
        "foo",
        "bar2",
        "PUT",
        "foo",
        "bar3",
        "PUT",
        "foo",
        "txn",
    ]
    revision = status["Status"]["header"]["revision"]
    assert f"compacted revision {revision}" in await ctl("compact", str(revision))
    assert "required revision has been compacted" in await ctl("get", "foo", "--rev=2", ok=False)
    assert "required revision has been compacted" in await ctl("watch", "--rev=2", "foo", ok=False)
    assert "duplicate key" in await ctl("txn", ok=False, stdin=b"\n\nput foo a\nput foo b\n\n\n")
    assert "Unimplemented" in await ctl("user", "add", "root:x", ok=False)
    assert "requested lease not found" in await ctl("put", "--lease=4711", "a", "b", ok=False)
    await ctl("snapshot", "save", str(tmp_path / "copy.db"))
    assert await ctl("put", "new", "x") == "OK\n"
    data = (tmp_path / "copy.db").read_bytes()
    (tmp_path / "bare.db").write_bytes(data[:-32])
    assert snapshot.inspect(tmp_path / "bare.db") == revision


async def ctl_until(words: list[str], lines: int) -> str:
    """Run etcdctl until it has printed so many lines."""
    child = await asyncio.create_subprocess_exec(
        "etcdctl",
        f"--endpoints=127.0.0.1:{OURS}",
        *words,
        env={**os.environ, "ETCDCTL_API": "3"},
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    said = b""
    async with asyncio.timeout(20):
        while said.count(b"\n") < lines:
            said += await child.stdout.read(1000)
    child.kill()
    await child.wait()
    return said.decode()
