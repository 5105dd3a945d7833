"""A client's session: what the engine asks of it while it builds (files, credentials, secrets) and gives back (output)."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

from grpclib.exceptions import StreamTerminatedError

from longshore.engine.build.buildkit import schemas
from longshore.engine.build.buildkit.transport import SessionChannel, StreamDuplex
from longshore.engine.errors import SystemFailure
from longshore.engine.images.extract import ExtractError, Extractor
from longshore.engine.images.streams import in_thread
from longshore.machinery import rooted
from longshore.machinery.grpc import Client, RpcError, Status
from longshore.wire import tar

if TYPE_CHECKING:
    from longshore.machinery.http import Duplex

# Go's os.FileMode bits.
_DIR, _SYMLINK, _DEVICE, _PIPE, _SOCKET, _CHAR = 1 << 31, 1 << 27, 1 << 26, 1 << 25, 1 << 24, 1 << 21
_SETUID, _SETGID, _STICKY = 1 << 23, 1 << 22, 1 << 20
_TYPE = _DIR | _SYMLINK | _DEVICE | _PIPE | _SOCKET | _CHAR | 1 << 19
_ENTRIES = 1 << 20
_PIECE = 1 << 15
_STORE = "buildkit-attachable-store-id"
#: Seconds between two questions for a client's health, and within which it must answer.
HEALTH_EVERY, HEALTH_WITHIN = 10.0, 30.0

#: The address of what a client sends as one stream.
UPLOAD = "http://buildkit-session/"


class _Reader(tar.TarReader):
    """Stands for an archive that brings no content: what fsutil's packets tell first are names."""

    def __init__(self) -> None:
        super().__init__(lambda _: b"")

    def read(self, limit: int = 0) -> bytes:
        return b""


def entry_of(found: Any) -> tar.Entry:
    """fsutil's Stat as an archive's entry."""
    mode = found.mode & 0o777
    for bit, unix in ((_SETUID, stat.S_ISUID), (_SETGID, stat.S_ISGID), (_STICKY, stat.S_ISVTX)):
        if found.mode & bit:
            mode |= unix
    kind = tar.REGULAR
    if found.mode & _DIR:
        kind = tar.DIRECTORY
    elif found.mode & _SYMLINK:
        kind = tar.SYMLINK
    elif found.mode & _PIPE:
        kind = tar.FIFO
    elif found.mode & _DEVICE:
        kind = tar.CHAR if found.mode & _CHAR else tar.BLOCKDEV
    elif found.linkname:
        kind = tar.HARDLINK
    entry = tar.Entry(found.path, kind, mode, found.uid, found.gid, 0, found.modTime, found.linkname)
    entry.devmajor, entry.devminor = found.devmajor, found.devminor
    entry.xattrs = dict(found.xattrs)
    return entry


def stat_of(path: str, info: os.stat_result, linkname: str = "") -> Any:
    """A file's fsutil Stat."""
    mode = stat.S_IMODE(info.st_mode) & 0o777
    kinds = {stat.S_IFDIR: _DIR, stat.S_IFLNK: _SYMLINK, stat.S_IFIFO: _PIPE, stat.S_IFSOCK: _SOCKET, stat.S_IFBLK: _DEVICE, stat.S_IFCHR: _DEVICE | _CHAR}  # fmt: skip
    mode |= kinds.get(stat.S_IFMT(info.st_mode), 0)
    for bit, unix in ((_SETUID, stat.S_ISUID), (_SETGID, stat.S_ISGID), (_STICKY, stat.S_ISVTX)):
        if info.st_mode & unix:
            mode |= bit
    return schemas.filesync.Stat(
        path=path,
        mode=mode,
        uid=info.st_uid,
        gid=info.st_gid,
        size=info.st_size if stat.S_ISREG(info.st_mode) else 0,
        modTime=info.st_mtime_ns,
        linkname=linkname,
        devmajor=os.major(info.st_rdev),
        devminor=os.minor(info.st_rdev),
    )


class Session:
    """One client's session. id: its name in requests."""

    def __init__(self, session_id: str, duplex: Duplex | StreamDuplex, methods: Sequence[str]) -> None:
        self.id = session_id
        self.methods = set(methods)
        self._channel = SessionChannel(duplex)
        services = (
            schemas.filesync.FileSync,
            schemas.filesync.Auth,
            schemas.secrets.Secrets,
            schemas.ssh.SSH,
            schemas.upload.Upload,
        )
        self._client = Client(*services, host="session", port=80)
        self._client._channel = self._channel
        self._send = Client(schemas.filesync.FileSend, host="session", port=80)
        self._send._channel = self._channel

    async def ended(self) -> None:
        """Returns when the connection has ended, or the client has not answered for too long."""
        ending = asyncio.ensure_future(self._channel.ended())
        watching = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait((ending, watching), return_when=asyncio.FIRST_COMPLETED)
            self.close()
        finally:
            for task in (ending, watching):
                task.cancel()
            await asyncio.gather(ending, watching, return_exceptions=True)

    async def _watch(self) -> None:
        """Ask the client for its health from time to time; returns when it gives none. Source: session/grpc.go."""
        client = Client(schemas.health.Health, host="session", port=80)
        client._channel = self._channel
        while True:
            await asyncio.sleep(HEALTH_EVERY)
            try:
                await client.call("Check", deadline=HEALTH_WITHIN)
            except RpcError as error:
                # Whatever else it says: it is there.
                if error.status in (Status.DEADLINE_EXCEEDED, Status.UNAVAILABLE):
                    return

    def close(self) -> None:
        self._channel.close()

    async def sync(
        self,
        name: str,
        folder: Path,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        follow: Sequence[str] = (),
        progress: Callable[[int], None] = lambda _: None,
    ) -> int:
        """Bring a directory of the client's ("context", "dockerfile") into `folder`; octets that came.

        include, exclude: patterns; follow: only these paths and what their links lead to. Raises SystemFailure.
        Source: fsutil send.go, receive.go.
        """
        metadata: list[tuple[str, str]] = []
        for key, values in (
            ("dir-name", [name]), ("include-patterns", include), ("exclude-patterns", exclude), ("followpaths", follow),
        ):  # fmt: skip
            plain = all(value.isascii() for value in values)
            metadata += [(key, value if plain else quote_plus(value)) for value in values]
            if values and not plain:
                metadata.append((f"{key}-encoded", "1"))
        packet = schemas.filesync.Packet
        method = self._client._methods["DiffCopy"]
        total = 0
        finished = False
        stream = self._channel.request(method.path, _stream_stream(), method.request, method.reply, metadata=metadata)
        try:
            async with stream:
                await stream.send_request()
                with Extractor(folder, whiteouts="keep", keep_dirs=False) as extractor:
                    reader = _Reader()
                    wanted: dict[int, tar.Entry] = {}
                    number = 0
                    async for message in stream:
                        if message.type == schemas.ERR:
                            raise SystemFailure(message.data.decode("utf-8", "replace"))
                        if message.type == schemas.STAT:
                            if not message.HasField("stat"):
                                total += 2  # the mark of the end is a packet too
                                break
                            if number > _ENTRIES:
                                raise SystemFailure("the build context has too many files")
                            entry = entry_of(message.stat)
                            total += message.ByteSize()
                            if entry.type == tar.REGULAR:
                                wanted[number] = entry
                            await in_thread(extractor.member, entry, reader)
                            number += 1
                    total += await self._contents(stream, packet, wanted, folder, progress)
                    await in_thread(extractor.finish)
                await stream.send_message(packet(type=schemas.FIN))
                finished = True
                async for message in stream:
                    if message.type == schemas.FIN:
                        break
                await stream.end()
        except StreamTerminatedError:
            # With its last packet the client is done, and may reset what is left of the stream.
            if not finished:
                raise SystemFailure("the client's session ended") from None
        except RpcError as error:
            raise SystemFailure(error.message or "the client's session failed") from None
        except ExtractError as error:
            raise SystemFailure(str(error)) from None
        except OSError as error:
            raise SystemFailure(f"{error.filename or 'session'}: {error.strerror or error}") from None
        progress(total)
        return total

    @staticmethod
    async def _contents(
        stream: Any, packet: Any, wanted: dict[int, tar.Entry], folder: Path, progress: Callable[[int], None]
    ) -> int:
        """Ask for the files' content, several at a time; octets."""
        waiting = list(wanted)[::-1]
        open_files: dict[int, int] = {}
        total = 0
        try:
            while waiting or open_files:
                while waiting and len(open_files) < 64:
                    number = waiting.pop()
                    # The client's own links may lie on the way: resolved inside the folder, as the extractor did.
                    open_files[number] = rooted.open_in(folder, wanted[number].name, os.O_WRONLY)
                    await stream.send_message(packet(type=schemas.REQ, ID=number))
                message = await stream.recv_message()
                if message is None:
                    raise SystemFailure("the client's session ended")
                if message.type == schemas.ERR:
                    raise SystemFailure(message.data.decode("utf-8", "replace"))
                if message.type != schemas.DATA or message.ID not in open_files:
                    continue
                if message.data:
                    data = message.data
                    while data:
                        data = data[os.write(open_files[message.ID], data) :]
                    total += len(message.data)
                    progress(total)
                else:
                    fd, mtime = open_files.pop(message.ID), wanted[message.ID].mtime
                    os.utime(fd, ns=(mtime, mtime))
                    os.close(fd)
        finally:
            for fd in open_files.values():
                os.close(fd)
        return total

    async def upload(self, name: str) -> AsyncIterator[bytes]:
        """What the client sends as one stream (a context on its standard input). Source: session/upload."""
        method = self._client._methods["Pull"]
        stream = self._channel.request(
            method.path,
            _stream_stream(),
            method.request,
            method.reply,
            metadata=[("urlpath", f"/{name}"), ("urlhost", "buildkit-session")],
        )
        try:
            async with stream:
                # Our side ends at once: the client resets what is open when it is done, and messages under way were lost.
                await stream.send_request(end=True)
                async for message in stream:
                    yield message.data
        except StreamTerminatedError:
            raise SystemFailure("the client's session ended") from None
        except RpcError as error:
            raise SystemFailure(error.message or "the client's upload failed") from None

    async def read_content(self, store: str, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        """A blob of a content store of the client's ("local:/path"). Raises SystemFailure."""
        method = schemas.content.Content.methods["Read"]
        stream = self._channel.request(
            method.path, _unary_stream(), method.request, method.reply, metadata=[(_STORE, store)]
        )
        try:
            async with stream:
                await stream.send_message(method.request(digest=digest, offset=offset), end=True)
                async for message in stream:
                    yield message.data
        except (RpcError, StreamTerminatedError) as error:
            raise SystemFailure(getattr(error, "message", "") or "the client's session ended") from None

    async def write_content(self, store: str, digest: str, source: AsyncIterable[bytes]) -> None:
        """Put a blob into a content store of the client's. digest "": known when `source` has ended (see `ended`).

        Raises SystemFailure.
        """
        method = schemas.content.Content.methods["Write"]
        request = method.request
        name = f"longshore-{os.urandom(8).hex()}"
        stream = self._channel.request(
            method.path, _stream_stream(), method.request, method.reply, metadata=[(_STORE, store)]
        )
        offset = 0
        committed = False
        try:
            async with stream:
                await stream.send_request()
                async for data in source:
                    for start in range(0, len(data), 1 << 20):
                        piece = data[start : start + (1 << 20)]
                        await stream.send_message(request(action=1, ref=name, offset=offset, data=piece))
                        await stream.recv_message()
                        offset += len(piece)
                expected = digest or getattr(source, "digest", "")
                # Our side ends with the commit: the client resets what is open when it is done.
                commit = request(action=2, ref=name, total=offset, offset=offset, expected=expected)
                await stream.send_message(commit, end=True)
                committed = await stream.recv_message() is not None
        except RpcError as error:
            if error.status is not Status.ALREADY_EXISTS:
                raise SystemFailure(error.message or "the client's store failed") from None
        except StreamTerminatedError:
            if not committed:
                raise SystemFailure("the client's session ended") from None

    async def credentials(self, domain: str) -> dict[str, str] | None:
        """The client's credentials for a registry, None where it has none."""
        host = "https://index.docker.io/v1/" if domain == "docker.io" else domain
        try:
            answer = await self._client.call("Credentials", Host=host, deadline=10)
        except RpcError:
            return None
        if not answer.Username and not answer.Secret:
            return None
        if answer.Username in ("", "<token>"):
            return {"identitytoken": answer.Secret}
        return {"username": answer.Username, "password": answer.Secret}

    async def secret(self, name: str) -> bytes | None:
        """A secret's content, None where the client does not give it."""
        try:
            answer = await self._client.call("GetSecret", ID=name, deadline=30)
        except RpcError as error:
            if error.status in (Status.NOT_FOUND, Status.UNIMPLEMENTED):
                return None
            raise SystemFailure(error.message or f"secret {name} failed") from None
        return bytes(answer.data)

    async def agent(self, name: str, path: Path) -> asyncio.Server | None:
        """Serve the client's ssh agent on a socket; None where the client does not give it. Source: session/sshforward."""
        try:
            await self._client.call("CheckAgent", ID=name, deadline=10)
        except RpcError:
            return None
        method = self._client._methods["ForwardAgent"]
        message = schemas.ssh.BytesMessage

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            stream = self._channel.request(
                method.path, _stream_stream(), method.request, method.reply, metadata=[("buildkit.ssh.id", name)]
            )

            async def back() -> None:
                async for piece in stream:
                    writer.write(piece.data)
                    await writer.drain()

            try:
                async with stream:
                    await stream.send_request()
                    backward = asyncio.ensure_future(back())
                    try:
                        while data := await reader.read(_PIECE):
                            await stream.send_message(message(data=data))
                        await stream.end()
                        await backward
                    finally:
                        backward.cancel()
            except (RpcError, StreamTerminatedError, OSError):
                pass
            finally:
                writer.close()

        return await asyncio.start_unix_server(answer, path)

    async def send_stream(
        self, source: AsyncIterable[bytes], exporter: int = 0, values: dict[str, str] | None = None
    ) -> None:
        """Give the client an output as one stream (tar, oci, docker)."""
        metadata = [(f"exporter-md-{key}", value) for key, value in (values or {}).items()]
        metadata.append(("buildkit-attachable-exporter-id", str(exporter)))
        method = self._send._methods["DiffCopy"]
        message = schemas.filesync.BytesMessage
        finished = False
        stream = self._channel.request(method.path, _stream_stream(), method.request, method.reply, metadata=metadata)
        try:
            async with stream:
                await stream.send_request()
                async for data in source:
                    for start in range(0, len(data), 1 << 20):
                        await stream.send_message(message(data=data[start : start + (1 << 20)]))
                await stream.end()
                finished = True
                async for _ in stream:
                    pass
        except StreamTerminatedError:
            if not finished:
                raise SystemFailure("the client's session ended") from None
        except RpcError as error:
            raise SystemFailure(error.message or "the client refused the output") from None

    async def send_folder(
        self,
        root: Path,
        exporter: int = 0,
        progress: Callable[[int], None] = lambda _: None,
        *,
        mtime: int | None = None,
    ) -> int:
        """Give the client a folder's content (the local exporter); octets sent. We are the sender of fsutil's protocol.

        mtime: the time of all files in nanoseconds (None: each its own).
        """
        packet = schemas.filesync.Packet
        method = self._send._methods["DiffCopy"]
        stream = self._channel.request(
            method.path,
            _stream_stream(),
            packet,
            packet,
            metadata=[("buildkit-attachable-exporter-id", str(exporter))],
        )
        entries = await in_thread(_walk, root)
        total = 0
        finished = False
        try:
            async with stream:
                await stream.send_request()
                for _, found in entries:
                    if mtime is not None:
                        found.modTime = mtime
                    await stream.send_message(packet(type=schemas.STAT, stat=found))
                await stream.send_message(packet(type=schemas.STAT))
                async for message in stream:
                    if message.type == schemas.ERR:
                        raise SystemFailure(message.data.decode("utf-8", "replace"))
                    if message.type == schemas.FIN:
                        finished = True
                        await stream.send_message(packet(type=schemas.FIN))
                        break
                    if message.type == schemas.REQ and len(entries) > message.ID:
                        with open(entries[message.ID][0], "rb") as file:
                            while data := await in_thread(file.read, _PIECE):
                                await stream.send_message(packet(type=schemas.DATA, ID=message.ID, data=data))
                                total += len(data)
                                progress(total)
                        await stream.send_message(packet(type=schemas.DATA, ID=message.ID))
                await stream.end()
                finished = True
                async for _ in stream:
                    pass
        except StreamTerminatedError:
            if not finished:
                raise SystemFailure("the client's session ended") from None
        except RpcError as error:
            raise SystemFailure(error.message or "the client refused the output") from None
        return total


def _walk(root: Path) -> list[tuple[Path, Any]]:
    found: list[tuple[Path, Any]] = []
    seen: dict[tuple[int, int], str] = {}

    def walk(folder: Path, prefix: str) -> None:
        for name in sorted(os.listdir(folder)):
            path = folder / name
            info = path.lstat()
            if stat.S_ISSOCK(info.st_mode):
                continue
            link = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
            told = stat_of(prefix + name, info, link)
            if stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
                first = seen.setdefault((info.st_dev, info.st_ino), prefix + name)
                if first != prefix + name:
                    told.linkname, told.size = first, 0
            found.append((path, told))
            if stat.S_ISDIR(info.st_mode):
                walk(path, f"{prefix}{name}/")

    walk(root, "")
    return found


def _unary_stream() -> Any:
    from grpclib.const import Cardinality

    return Cardinality.UNARY_STREAM


def _stream_stream() -> Any:
    from grpclib.const import Cardinality

    return Cardinality.STREAM_STREAM
