"""A `Store` that is a real etcd: gRPC to one of several endpoints, the next one when that fails.

Reads are asked again elsewhere; a write whose answer is lost raises Unavailable, because nobody knows whether it was
stored. Watches go on from where they were, on whichever endpoint answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl as ssl_module
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from grpclib.exceptions import StreamTerminatedError

from longshore.machinery.grpc import Client, RpcError
from longshore.master.etcd import model as m
from longshore.master.etcd import translate as t
from longshore.wire.etcd import etcd

logger = logging.getLogger("longshore.etcd")

_SERVICES = (etcd.KV, etcd.Watch, etcd.Lease, etcd.Cluster, etcd.Maintenance, etcd.Auth)
_SECONDS = 10.0
_RETRY_SECONDS = (0.05, 2.0)
_CATCH_UP_SECONDS = 0.3  # three rounds of etcd's loop in which watches catch up
_UNAVAILABLE = 14


async def connect(
    endpoints: Sequence[str],
    *,
    ca: str | os.PathLike[str] | None = None,
    certificate: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
) -> EtcdStore:
    """Open the store of an etcd cluster, over TLS with these PEM files where the endpoints are https.

    Raises Unavailable when no endpoint answers; OSError, ssl.SSLError for files that cannot be used.
    """
    context: ssl_module.SSLContext | None = None
    if any(endpoint.startswith(("https:", "unixs:")) for endpoint in endpoints):
        context = ssl_module.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    return await EtcdStore.open(endpoints, ssl=context)


class EtcdStore:
    """A `Store` on etcd 3.4 or newer.

    endpoints: URLs ("http://127.0.0.1:2379"). ssl: for https endpoints (with the client's certificate in it).
    """

    def __init__(self, endpoints: Sequence[str], *, ssl: ssl_module.SSLContext | None = None) -> None:
        if not endpoints:
            raise ValueError("no etcd endpoints")
        if ssl is not None:
            ssl.set_alpn_protocols(["h2"])
        self._clients = [_connect(endpoint, ssl) for endpoint in endpoints]
        self._current = 0
        self._revision = 0
        self._compact_revision = 0
        self._watches: set[EtcdWatch] = set()
        self._question: asyncio.Task[int] | None = None  # that asks etcd for its revision
        self._following: asyncio.Task[int] | None = (
            None  # the one after it: what is asked now came too late for the other
        )

    @classmethod
    async def open(cls, endpoints: Sequence[str], *, ssl: ssl_module.SSLContext | None = None) -> EtcdStore:
        """Connect and learn the revision. Raises Unavailable when no endpoint answers."""
        store = cls(endpoints, ssl=ssl)
        try:
            await store.range(b"\0", count_only=True)
        except BaseException:
            await store.close()
            raise
        return store

    @property
    def revision(self) -> int:
        return self._revision

    @property
    def compact_revision(self) -> int:
        """The newest that an answer has told of."""
        return self._compact_revision

    @property
    def shared(self) -> bool:
        return True

    async def newest(self) -> int:
        """etcd's revision by a linearizable read. Those who ask while one is under way share the next."""
        if self._following is None:
            self._following = asyncio.get_running_loop().create_task(self._ask(self._question))
        return await asyncio.shield(self._following)

    async def _ask(self, before: asyncio.Task[int] | None) -> int:
        if before is not None:
            await asyncio.wait([before])
        self._question, self._following = self._following, None
        return (await self.range(b"\0", count_only=True)).revision

    def _seen(self, response: Any) -> int:
        revision = int(response.header.revision)
        if revision > self._revision:
            self._revision = revision
        return revision

    def client(self) -> Client:
        return self._clients[self._current]

    def next_client(self, failed: Client) -> None:
        """An endpoint does not answer: use another from now on."""
        if failed is self._clients[self._current]:
            self._current = (self._current + 1) % len(self._clients)

    async def _call(self, name: str, request: Any, *, again: bool = False, seconds: float = _SECONDS) -> Any:
        tries = len(self._clients) * 2 if again else 1
        while True:
            client = self.client()
            tries -= 1
            try:
                return await client.call(name, request, deadline=seconds)
            except RpcError as error:
                found = t.error_of(error.status.value, error.message or "")
                if isinstance(found, m.Unavailable):
                    self.next_client(client)
                    if tries > 0:
                        continue
                raise found from None

    # Reads.

    async def range(
        self,
        key: bytes,
        end: bytes = b"",
        *,
        revision: int = 0,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        sort_order: m.SortOrder = "none",
        sort_target: m.SortTarget = "key",
    ) -> m.RangeResult:
        return await self.read(m.Range(key, end, revision, limit, keys_only, count_only, sort_order, sort_target))

    async def read(self, op: m.Range) -> m.RangeResult:
        if not op.key:
            raise m.EmptyKey()
        try:
            response = await self._call("Range", t.range_message(op), again=True)
        except m.Compacted:
            self._compact_revision = max(self._compact_revision, op.revision + 1)
            raise
        return t.range_result(response, self._seen(response))

    # Writes.

    async def put(self, key: bytes, value: bytes, *, lease: int = 0, prev_kv: bool = False) -> m.PutResult:
        response = await self._call("Put", etcd.PutRequest(key=key, value=value, lease=lease, prev_kv=prev_kv))
        return t.put_result(response, self._seen(response))

    async def delete(self, key: bytes, end: bytes = b"", *, prev_kv: bool = False) -> m.DeleteResult:
        response = await self._call("DeleteRange", etcd.DeleteRangeRequest(key=key, range_end=end, prev_kv=prev_kv))
        return t.delete_result(response, self._seen(response))

    async def txn(
        self, compares: Sequence[m.Compare], then: Sequence[m.Op], otherwise: Sequence[m.Op] = ()
    ) -> m.TxnResult:
        response = await self._call("Txn", t.txn_message(compares, then, otherwise))
        return t.txn_result(response, self._seen(response))

    async def create(self, key: bytes, value: bytes, *, lease: int = 0) -> m.WriteResult:
        return await self._conditional(key, m.Put(key, value, lease), 0)

    async def update(self, key: bytes, value: bytes, mod_revision: int, *, lease: int = 0) -> m.WriteResult:
        return await self._conditional(key, m.Put(key, value, lease, prev_kv=True), mod_revision)

    async def delete_at(self, key: bytes, mod_revision: int) -> m.WriteResult:
        return await self._conditional(key, m.Delete(key, prev_kv=True), mod_revision)

    async def _conditional(self, key: bytes, op: m.Put | m.Delete, mod_revision: int) -> m.WriteResult:
        result = await self.txn([m.Compare("mod", key, "=", mod_revision)], [op], [m.Range(key)])
        (answer,) = result.responses
        if isinstance(answer, m.PutResult):
            return m.WriteResult(True, result.revision, answer.prev_kv)
        if isinstance(answer, m.DeleteResult):
            return m.WriteResult(True, result.revision, answer.prev_kvs[0] if answer.prev_kvs else None)
        assert isinstance(answer, m.RangeResult)
        return m.WriteResult(False, result.revision, answer.kvs[0] if answer.kvs else None)

    # Watches.

    def watch(
        self, key: bytes, end: bytes = b"", *, start_revision: int = 0, prev_kv: bool = False, progress: bool = False
    ) -> EtcdWatch:
        watch = EtcdWatch(self, key, end, start_revision, prev_kv, progress)
        self._watches.add(watch)
        return watch

    # Leases.

    async def lease_grant(self, ttl: int, id: int = 0) -> m.Lease:
        response = await self._call("LeaseGrant", etcd.LeaseGrantRequest(TTL=ttl, ID=id))
        return m.Lease(response.ID, response.TTL, response.TTL)

    async def lease_keepalive(self, id: int) -> m.Lease:
        client = self.client()
        try:
            async with asyncio.timeout(_SECONDS), client.open("LeaseKeepAlive") as stream:
                await stream.send_message(etcd.LeaseKeepAliveRequest(ID=id), end=True)
                response = await stream.recv_message()
        except RpcError as error:
            raise t.error_of(error.status.value, error.message or "") from None
        except (OSError, TimeoutError, StreamTerminatedError) as error:
            self.next_client(client)
            raise m.Unavailable(f"etcdserver: {error}") from None
        if response is None or response.TTL <= 0:
            raise m.LeaseNotFound()
        return m.Lease(response.ID, response.TTL, response.TTL)

    async def lease_revoke(self, id: int) -> int:
        return self._seen(await self._call("LeaseRevoke", etcd.LeaseRevokeRequest(ID=id)))

    async def lease_time_to_live(self, id: int, *, keys: bool = False) -> m.Lease:
        r = await self._call("LeaseTimeToLive", etcd.LeaseTimeToLiveRequest(ID=id, keys=keys), again=True)
        return m.Lease(r.ID, r.TTL, r.grantedTTL, tuple(r.keys))

    async def lease_list(self) -> list[int]:
        response = await self._call("LeaseLeases", etcd.LeaseLeasesRequest(), again=True)
        return sorted(lease.ID for lease in response.leases)

    # Upkeep.

    async def compact(self, revision: int, *, physical: bool = False) -> int:
        request = etcd.CompactionRequest(revision=revision, physical=physical)
        response = await self._call("Compact", request, seconds=300.0 if physical else _SECONDS)
        self._compact_revision = max(self._compact_revision, revision)
        return self._seen(response)

    async def snapshot(self, path: Path) -> int:
        """Fetch etcd's own snapshot file (its format, not ours). FileExistsError when there is a file already."""
        if path.exists():
            raise FileExistsError(path)
        part = path.with_name(path.name + ".part")
        revision = 0
        try:
            with part.open("wb") as file:
                async for response in self.client().stream("Snapshot", etcd.SnapshotRequest()):
                    revision = revision or int(response.header.revision)
                    await asyncio.to_thread(file.write, response.blob)
            part.rename(path)
        except RpcError as error:
            raise t.error_of(error.status.value, error.message or "") from None
        finally:
            part.unlink(missing_ok=True)
        return revision or self._revision

    async def status(self) -> m.StoreStatus:
        r = await self._call("Status", etcd.StatusRequest(), again=True)
        leader = r.leader == r.header.member_id
        return m.StoreStatus(r.version, self._seen(r), self._compact_revision, r.dbSize, r.dbSizeInUse, leader)

    async def close(self) -> None:
        for watch in list(self._watches):
            watch.fail(m.Unavailable())
        for client in self._clients:
            client.close()


def _connect(endpoint: str, ssl: ssl_module.SSLContext | None) -> Client:
    url = urlsplit(endpoint if "//" in endpoint else f"http://{endpoint}")
    if url.scheme in ("unix", "unixs"):
        return Client(*_SERVICES, path=url.path or url.netloc, ssl=ssl if url.scheme == "unixs" else None)
    secure = url.scheme == "https"
    if secure and ssl is None:
        ssl = ssl_module.create_default_context()
        ssl.set_alpn_protocols(["h2"])
    return Client(*_SERVICES, host=url.hostname or "127.0.0.1", port=url.port or 2379, ssl=ssl if secure else None)


class EtcdWatch:
    """One watch on a stream of its own, opened again elsewhere when it breaks, without a gap or an event twice."""

    def __init__(
        self, store: EtcdStore, key: bytes, end: bytes, start_revision: int, prev_kv: bool, progress: bool
    ) -> None:
        self._store = store
        self._request = etcd.WatchCreateRequest(
            key=key, range_end=end, prev_kv=prev_kv, progress_notify=progress, start_revision=start_revision
        )
        self._next = start_revision  # 0: not known until etcd has said when "now" was
        self._out: asyncio.Queue[m.WatchBatch | None] = asyncio.Queue(64)
        self._error: m.StoreError | None = None
        self._ended = False
        self._wants_progress = asyncio.Event()
        self._claimed = 0  # what etcd said to have delivered, when it was last asked
        self._trusted_at = 0.0  # before that it may say so of what it has not even read yet
        self._task = asyncio.get_running_loop().create_task(self._run(), name="etcd watch")

    def __aiter__(self) -> AsyncIterator[m.WatchBatch]:
        return self

    async def __anext__(self) -> m.WatchBatch:
        if self._ended and self._out.empty():
            batch = None
        else:
            batch = await self._out.get()
        if batch is not None:
            return batch
        self._ended = True
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def request_progress(self) -> None:
        self._wants_progress.set()

    def close(self) -> None:
        self._end()

    def fail(self, error: m.StoreError) -> None:
        self._error = self._error or error
        self._end()

    def _end(self) -> None:
        self._task.cancel()
        self._store._watches.discard(self)
        if not self._ended:
            self._ended = True
            if self._out.full():
                self._out.get_nowait()
            self._out.put_nowait(None)

    async def _run(self) -> None:
        pause = _RETRY_SECONDS[0]
        while True:
            client = self._store.client()
            try:
                async with client.open("Watch") as stream:
                    await self._follow(stream)
                pause = _RETRY_SECONDS[0]
            except m.StoreError as error:
                self.fail(error)
                return
            except RpcError as error:
                found = t.error_of(error.status.value, error.message or "")
                if not isinstance(found, m.Unavailable):
                    self.fail(found)
                    return
                logger.debug("watch: %s", found)
            except (OSError, EOFError, StreamTerminatedError) as error:
                logger.debug("watch: %s", error)
            except Exception as error:
                logger.exception("a watch failed")
                self.fail(m.Unavailable(f"etcdserver: {error!r}"))
                return
            self._store.next_client(client)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RETRY_SECONDS[1])

    async def _follow(self, stream: Any) -> None:
        """Hand on what one stream says until it ends."""
        self._request.start_revision = self._next
        self._claimed = 0
        await stream.send_message(etcd.WatchRequest(create_request=self._request))
        asker = asyncio.get_running_loop().create_task(self._ask_for_progress(stream))
        try:
            while (response := await stream.recv_message()) is not None:
                revision = self._store._seen(response)
                if response.canceled:
                    if response.compact_revision:
                        self._store._compact_revision = max(self._store._compact_revision, response.compact_revision)
                        raise m.Compacted(response.compact_revision)
                    raise m.Unavailable(f"etcdserver: {response.cancel_reason or 'the watch was cancelled'}")
                if response.created:
                    if not self._next:
                        self._next = revision + 1
                    behind = self._next <= revision
                    self._trusted_at = asyncio.get_running_loop().time() + (_CATCH_UP_SECONDS if behind else 0.0)
                    continue
                events = [t.event_of(event) for event in response.events]
                if events:
                    last = events[-1].kv.mod_revision
                    self._next = last + 1
                    await self._out.put(m.WatchBatch(last, events))
                else:
                    await self._progress(revision)
        finally:
            asker.cancel()
            await asyncio.gather(asker, return_exceptions=True)

    async def _progress(self, revision: int) -> None:
        """etcd says that everything up to a revision has been delivered.

        Before 3.4.25 and 3.5.8 it may say so ahead of events that lie ready beside the answer, and of a watch that has not caught
        up. So it is asked again: with the second answer everything up to the first one's revision has come.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._trusted_at:
            loop.call_at(self._trusted_at, self._wants_progress.set)
            return
        sure, self._claimed = self._claimed, revision
        if not sure:
            self._wants_progress.set()
        elif sure >= self._next - 1:
            self._next = max(self._next, sure + 1)
            self._claimed = 0
            await self._out.put(m.WatchBatch(sure, []))

    async def _ask_for_progress(self, stream: Any) -> None:
        with contextlib.suppress(RpcError, OSError, EOFError, StreamTerminatedError):
            while True:
                await self._wants_progress.wait()
                self._wants_progress.clear()
                await stream.send_message(etcd.WatchRequest(progress_request=etcd.WatchProgressRequest()))
