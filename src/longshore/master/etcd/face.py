"""The etcd v3 gRPC face of a store: KV, Watch, Lease, Cluster, Maintenance; etcdctl and upstream's kube-apiserver use it.

One member, always the leader. What belongs to a cluster of several members answers with etcd's own errors.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tempfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from longshore.machinery.grpc import RpcError, Server, Status
from longshore.master.etcd import model as m
from longshore.master.etcd import translate as t
from longshore.master.etcd.store import Store, Watch
from longshore.wire.etcd import FILTER_NODELETE, FILTER_NOPUT, etcd

logger = logging.getLogger("longshore.etcd")

_RAFT_TERM = 2
_SNAPSHOT_CHUNK = 1 << 16
_FRAGMENT_BYTES = m.MAX_REQUEST_BYTES + 512
_QUEUE = 64


class Face:
    """Answers etcd's RPCs from a store.

    name: the member's; client_urls: where it can be reached, for MemberList. folder: for snapshots on their way out.
    """

    def __init__(
        self, store: Store, *, name: str = "default", client_urls: tuple[str, ...] = (), folder: Path | None = None
    ):
        self.store = store
        self.name = name
        self.client_urls = client_urls
        self._folder = folder
        digest = hashlib.sha256(f"longshore {name}".encode()).digest()
        self.cluster_id = int.from_bytes(digest[:8], "big")
        self.member_id = int.from_bytes(digest[8:16], "big")

    def _header(self, revision: int | None = None) -> Any:
        return etcd.ResponseHeader(
            cluster_id=self.cluster_id,
            member_id=self.member_id,
            revision=self.store.revision if revision is None else revision,
            raft_term=_RAFT_TERM,
        )

    def _headed(self, message: Any, revision: int | None = None) -> Any:
        message.header.CopyFrom(self._header(revision))
        return message

    # KV

    async def range(self, r: Any) -> Any:
        result = await self.store.read(t.range_of(r))
        return self._headed(t.range_response(result), result.revision)

    async def put(self, r: Any) -> Any:
        op = t.put_of(r)
        if op.ignore_value or op.ignore_lease:
            done = await self.store.txn((), (op,))
            (result,) = done.responses
            assert isinstance(result, m.PutResult)
        else:
            result = await self.store.put(op.key, op.value, lease=op.lease, prev_kv=op.prev_kv)
        return self._headed(t.put_response(result), result.revision)

    async def delete_range(self, r: Any) -> Any:
        result = await self.store.delete(r.key, r.range_end, prev_kv=r.prev_kv)
        return self._headed(t.delete_response(result), result.revision)

    async def txn(self, r: Any) -> Any:
        op = t.txn_of(r)
        result = await self.store.txn(op.compares, op.then, op.otherwise)
        return self._headed(t.txn_response(result), result.revision)

    async def compact(self, r: Any) -> Any:
        return self._headed(etcd.CompactionResponse(), await self.store.compact(r.revision, physical=r.physical))

    # Watch

    async def watch(self, requests: Any) -> AsyncIterator[Any]:
        session = _WatchSession(self)
        reader = asyncio.get_running_loop().create_task(session.read(requests))
        try:
            while (response := await session.out.get()) is not None:
                yield response
        finally:
            reader.cancel()
            session.close()
            await asyncio.gather(reader, return_exceptions=True)

    # Lease

    async def lease_grant(self, r: Any) -> Any:
        lease = await self.store.lease_grant(r.TTL, r.ID)
        return self._headed(etcd.LeaseGrantResponse(ID=lease.id, TTL=lease.ttl))

    async def lease_revoke(self, r: Any) -> Any:
        return self._headed(etcd.LeaseRevokeResponse(), await self.store.lease_revoke(r.ID))

    async def lease_keep_alive(self, requests: Any) -> AsyncIterator[Any]:
        async for r in requests:
            try:
                ttl = (await self.store.lease_keepalive(r.ID)).ttl
            except m.LeaseNotFound:
                ttl = 0  # etcd says so without ending the stream
            yield self._headed(etcd.LeaseKeepAliveResponse(ID=r.ID, TTL=ttl))

    async def lease_time_to_live(self, r: Any) -> Any:
        lease = await self.store.lease_time_to_live(r.ID, keys=r.keys)
        return self._headed(
            etcd.LeaseTimeToLiveResponse(ID=lease.id, TTL=lease.ttl, grantedTTL=lease.granted, keys=lease.keys)
        )

    async def lease_leases(self, _: Any) -> Any:
        leases = [etcd.LeaseStatus(ID=id_) for id_ in await self.store.lease_list()]
        return self._headed(etcd.LeaseLeasesResponse(leases=leases))

    # Cluster

    async def member_list(self, _: Any) -> Any:
        member = etcd.Member(
            ID=self.member_id, name=self.name, peerURLs=["http://localhost:2380"], clientURLs=list(self.client_urls)
        )
        return self._headed(etcd.MemberListResponse(members=[member]))

    async def member_add(self, _: Any) -> Any:
        raise RpcError(Status.UNIMPLEMENTED, "etcdserver: the embedded store has one member")

    async def member_remove(self, r: Any) -> Any:
        if self.member_id != r.ID:
            raise RpcError(Status.NOT_FOUND, "etcdserver: member not found")
        raise RpcError(
            Status.FAILED_PRECONDITION, "etcdserver: re-configuration failed due to not enough started members"
        )

    async def member_update(self, r: Any) -> Any:
        if self.member_id != r.ID:
            raise RpcError(Status.NOT_FOUND, "etcdserver: member not found")
        raise RpcError(Status.UNIMPLEMENTED, "etcdserver: the embedded store has no peers")

    async def member_promote(self, r: Any) -> Any:
        if self.member_id != r.ID:
            raise RpcError(Status.NOT_FOUND, "etcdserver: member not found")
        raise RpcError(Status.FAILED_PRECONDITION, "etcdserver: can only promote a learner member")

    # Maintenance

    async def alarm(self, _: Any) -> Any:
        return self._headed(etcd.AlarmResponse())

    async def status(self, _: Any) -> Any:
        status = await self.store.status()
        return self._headed(
            etcd.StatusResponse(
                version=status.version,
                dbSize=status.db_size,
                dbSizeInUse=status.db_size_in_use,
                leader=self.member_id,
                raftIndex=status.revision,
                raftAppliedIndex=status.revision,
                raftTerm=_RAFT_TERM,
            ),
            status.revision,
        )

    async def defragment(self, _: Any) -> Any:
        """Free pages are used again by later writes; there is nothing else to gain that would be worth a stall."""
        return self._headed(etcd.DefragmentResponse())

    async def hash_kv(self, r: Any) -> Any:
        """A checksum of all keys at a revision. It equals no etcd's, whose hash is of its file format."""
        result = await self.store.range(b"\0", b"\0", revision=max(r.revision, 0))
        found = 0
        for kv in result.kvs:
            numbers = f"{kv.create_revision}/{kv.mod_revision}/{kv.version}/{kv.lease}".encode()
            found = zlib.crc32(b"\0".join((kv.key, kv.value, numbers)), found)
        return self._headed(
            etcd.HashKVResponse(
                hash=found,
                compact_revision=self.store.compact_revision,
                hash_revision=r.revision or result.revision,
            )
        )

    async def snapshot(self, _: Any) -> AsyncIterator[Any]:
        """The store's file and its SHA-256 behind it, as etcd sends its own."""
        with tempfile.TemporaryDirectory(prefix="longshore-snapshot-", dir=self._folder) as folder:
            path = Path(folder) / "snapshot.db"
            revision = await self.store.snapshot(path)
            left = path.stat().st_size
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := await asyncio.to_thread(file.read, _SNAPSHOT_CHUNK):
                    digest.update(chunk)
                    left -= len(chunk)
                    yield self._headed(etcd.SnapshotResponse(remaining_bytes=left, blob=chunk), revision)
            yield self._headed(etcd.SnapshotResponse(blob=digest.digest()), revision)

    async def move_leader(self, _: Any) -> Any:
        raise RpcError(Status.FAILED_PRECONDITION, "etcdserver: bad leader transferee")

    # Auth

    async def auth_status(self, _: Any) -> Any:
        return self._headed(etcd.AuthStatusResponse())

    async def authenticate(self, _: Any) -> Any:
        raise RpcError(Status.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")


class _WatchSession:
    """One Watch stream: several watches, one line of responses."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self._watches: dict[int, Watch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._next = 0
        self.out: asyncio.Queue[Any] = asyncio.Queue(_QUEUE)

    async def read(self, requests: Any) -> None:
        """Act on the client's requests to their end; then the stream ends."""
        try:
            async for request in requests:
                kind = request.WhichOneof("request_union")
                if kind == "create_request":
                    await self._create(request.create_request)
                elif kind == "cancel_request":
                    watch = self._watches.pop(request.cancel_request.watch_id, None)
                    if watch is not None:
                        watch.close()
                        await self._say(watch_id=request.cancel_request.watch_id, canceled=True)
                elif kind == "progress_request":
                    for watch in self._watches.values():
                        watch.request_progress()
                    if not self._watches:
                        await self._say(watch_id=-1)
        finally:
            await self.out.put(None)

    async def _say(self, revision: int | None = None, **fields: Any) -> None:
        await self.out.put(self._face._headed(etcd.WatchResponse(**fields), revision))

    async def _create(self, r: Any) -> None:
        store = self._face.store
        id_ = r.watch_id
        if id_ and id_ in self._watches:
            reason = "mvcc: watcher duplicate ID provided on the WatchStream"
            await self._say(watch_id=-1, created=True, canceled=True, cancel_reason=reason)
            return
        if not id_:
            while self._next in self._watches:
                self._next += 1
            id_ = self._next
            self._next += 1
        # etcd's words: no key is the smallest one; a watch from 0 or less is one from now on.
        watch = store.watch(
            r.key or b"\0",
            r.range_end,
            start_revision=max(r.start_revision, 0),
            prev_kv=r.prev_kv,
            progress=r.progress_notify,
        )
        self._watches[id_] = watch
        await self._say(watch_id=id_, created=True)
        task = asyncio.get_running_loop().create_task(self._pump(id_, watch, frozenset(r.filters), r.fragment))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pump(self, id_: int, watch: Watch, filters: frozenset[int], fragment: bool) -> None:
        try:
            async for batch in watch:
                events = batch.events
                if filters:
                    events = [
                        e
                        for e in events
                        if not (e.type == m.PUT and FILTER_NOPUT in filters)
                        and not (e.type == m.DELETE and FILTER_NODELETE in filters)
                    ]
                    if not events and batch.events:
                        continue
                await self._send(id_, batch.revision, events, fragment)
        except m.Compacted as error:
            self._watches.pop(id_, None)
            await self._say(watch_id=id_, canceled=True, compact_revision=error.compact_revision)
        except m.StoreError as error:
            self._watches.pop(id_, None)
            await self._say(watch_id=id_, canceled=True, cancel_reason=str(error))

    async def _send(self, id_: int, revision: int, events: list[m.Event], fragment: bool) -> None:
        messages = [t.event_message(event) for event in events]
        if not fragment:
            await self._say(revision, watch_id=id_, events=messages)
            return
        part: list[Any] = []
        size = 0
        for message in messages:
            length = message.ByteSize()
            if part and size + length > _FRAGMENT_BYTES:
                await self._say(revision, watch_id=id_, events=part, fragment=True)
                part, size = [], 0
            part.append(message)
            size += length
        await self._say(revision, watch_id=id_, events=part)

    def close(self) -> None:
        for watch in self._watches.values():
            watch.close()
        for task in self._tasks:
            task.cancel()


def grpc_error(error: Exception) -> RpcError | None:
    """A store's refusal as the gRPC status that etcd gives."""
    if isinstance(error, m.StoreError):
        return RpcError(Status(error.code), str(error))
    return None


def server(face: Face) -> Server:
    """A gRPC server of all services of a face; listen with it."""
    services = (etcd.KV, etcd.Watch, etcd.Lease, etcd.Cluster, etcd.Maintenance, etcd.Auth)
    return Server(*((service, face) for service in services), translate=grpc_error)
