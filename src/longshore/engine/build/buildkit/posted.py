"""POST /build?version=2: BuildKit without its plugin, as the docker command of 18.09 to 20.10 asks for it.

The client's session, or the request's body, brings the files; progress comes as auxiliary messages. Source of names and
messages: moby daemon/internal/builder-next/builder.go.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from longshore.engine.build.buildkit.control import Control, Services
from longshore.engine.build.buildkit.schemas import control
from longshore.engine.build.buildkit.session import UPLOAD, Session
from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.machinery.grpc import RpcError

if TYPE_CHECKING:
    from longshore.engine.build.options import BuildOptions

Say = Callable[[dict[str, Any]], None]
_UPLOADED = "upload-request"
_WAIT = 5.0
_TRUE = ("1", "t", "T", "true", "True", "TRUE")


@dataclass
class _Posted:
    """One build with an id of the client's: how to end it, and the body that another request brings."""

    task: asyncio.Task[None] | None = None
    body: asyncio.Future[AsyncIterator[bytes]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    read: asyncio.Event = field(default_factory=asyncio.Event)
    wanted: asyncio.Event = field(default_factory=asyncio.Event)


class PostedBuilds:
    """The builds that came by POST /build, by the ids that clients gave them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._builds: dict[str, _Posted] = {}

    def cancel(self, name: str) -> None:
        """End a build; an unknown one is none."""
        found = self._builds.get(name)
        if found is not None and found.task is not None:
            found.task.cancel()

    async def build(self, body: AsyncIterator[bytes], options: BuildOptions, say: Say) -> None:
        """Build, or bring another request's body. Raises InvalidParameter, SystemFailure."""
        kind, colon, name = options.build_id.partition(":")
        if colon and kind == _UPLOADED:
            await self._bring(name, body)
            return
        if len(options.outputs) > 1:
            raise SystemFailure("multiple outputs not supported")
        known = self._builds.setdefault(options.build_id, _Posted()) if options.build_id else _Posted()
        work = known.task = asyncio.ensure_future(self._run(known, body, options, say))
        try:
            await asyncio.wait((work,))
            if work.cancelled():
                raise SystemFailure("context canceled")
            work.result()
        finally:
            self._builds.pop(options.build_id, None)
            known.read.set()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _bring(self, name: str, body: AsyncIterator[bytes]) -> None:
        """Give a build that waits for it its body; returns when it has been read."""
        known = self._builds.setdefault(name, _Posted())
        try:
            async with asyncio.timeout(_WAIT):
                await known.wanted.wait()
        except TimeoutError:
            self._builds.pop(name, None)
            raise SystemFailure("context deadline exceeded") from None
        if known.body.done():
            raise InvalidParameter(f"build {name} has its context")
        known.body.set_result(body)
        await known.read.wait()

    async def _run(self, known: _Posted, body: AsyncIterator[bytes], options: BuildOptions, say: Say) -> None:
        sessions = self._services.sessions
        remote = options.remote
        if remote == _UPLOADED:
            known.wanted.set()
            try:
                async with asyncio.timeout(_WAIT):
                    body = await known.body
            except TimeoutError:
                raise SystemFailure("context deadline exceeded") from None
            remote = ""
        attributes = attributes_of(options)
        inner = await sessions.get(options.session) if options.session else None
        async with contextlib.AsyncExitStack() as stack:
            name = options.session
            if inner is None or not remote:
                posted = BodySession(body, inner, known.read)
                await sessions.add(posted)
                stack.callback(sessions.remove, posted)
                name = posted.id
                if not remote:
                    attributes["context"] = posted.context
            if remote and remote != "client-session":
                attributes["context"] = remote
            await self._solve(_request(options, attributes, name), options, say)

    async def _solve(self, request: Any, options: BuildOptions, say: Say) -> None:
        service = Control(self._services)

        async def watch() -> None:
            async for message in service.status(control.StatusRequest(Ref=request.Ref)):
                if not options.quiet:
                    data = base64.b64encode(message.SerializeToString()).decode()
                    say({"id": "moby.buildkit.trace", "aux": data})

        watching = asyncio.ensure_future(watch())
        try:
            try:
                answer = await service.solve(request)
            except RpcError as error:
                await watching
                raise SystemFailure(error.message or "failed to solve") from None
            await watching
        finally:
            watching.cancel()
        kind = request.Exporters[0].Type
        image = answer.ExporterResponse.get("containerimage.digest", "")
        if kind not in ("moby", "image"):
            return
        if options.quiet:
            say({"stream": f"{image}\n"})
        else:
            say({"id": "moby.image.id", "aux": {"ID": image}})


def attributes_of(options: BuildOptions) -> dict[str, str]:
    """The frontend's attributes that a query means. Raises SystemFailure."""
    found = {"image-resolve-mode": "pull" if options.pull else "default", "cache-from": ",".join(options.cache_from)}
    for key, value in (
        ("target", options.target),
        ("filename", "" if options.dockerfile == "." else options.dockerfile),
        ("platform", options.platform),
        ("add-hosts", ",".join(f"{name}={address}" for name, address in options.hosts)),
        ("shm-size", str(options.limits.shm_size or "")),
        ("ulimit", ",".join(f"{limit['Name']}={limit['Soft']}:{limit['Hard']}" for limit in options.limits.ulimits)),
    ):
        if value:
            found[key] = value
    found |= {f"build-arg:{key}": value for key, value in options.arguments.items() if value is not None}
    found |= {f"label:{key}": value for key, value in options.labels.items()}
    if options.no_cache:
        found["no-cache"] = ""
    if options.network in ("host", "none"):
        found["force-network-mode"] = options.network
    elif options.network != "default":
        raise SystemFailure(f'network mode "{options.network}" not supported by buildkit')
    return found


def _request(options: BuildOptions, attributes: dict[str, str], session: str) -> Any:
    kind, values = options.outputs[0] if options.outputs else ("moby", {})
    if kind == "cacheonly":
        kind, values = "", {}
    if kind in ("moby", "image") and options.tags:
        values = {**values, "name": ",".join(str(tag) for tag in options.tags)}
    exports = []
    if (options.arguments.get("BUILDKIT_INLINE_CACHE") or "") in _TRUE:
        exports.append(control.CacheOptionsEntry(Type="inline"))
    return control.SolveRequest(
        Ref=secrets.token_hex(12),
        Session=session,
        Frontend="dockerfile.v0",
        FrontendAttrs=attributes,
        Exporters=[control.Exporter(Type=kind, Attrs=values)],
        Cache=control.CacheOptions(Exports=exports),
        Entitlements=["network.host"] if options.network == "host" else [],
    )


class BodySession(Session):
    """A session that gives a request's body as the context; the rest is the client's session's, where there is one.

    read: set when the body has been read.
    """

    def __init__(self, body: AsyncIterator[bytes], inner: Session | None, read: asyncio.Event) -> None:
        self.id = secrets.token_hex(12)
        self.methods = set(inner.methods) if inner is not None else set()
        self._inner, self._body, self._read = inner, body, read
        if inner is not None:
            self._channel, self._client, self._send = inner._channel, inner._client, inner._send

    @property
    def context(self) -> str:
        """The address of the body."""
        return UPLOAD + self.id

    def __getattr__(self, name: str) -> Any:
        if name in ("_channel", "_client", "_send"):
            raise SystemFailure("no active sessions")
        raise AttributeError(name)

    def close(self) -> None:
        """The client's session goes on."""

    async def ended(self) -> None:
        if self._inner is not None:
            await self._inner.ended()

    async def upload(self, name: str) -> AsyncIterator[bytes]:
        if name != self.id:
            async for data in super().upload(name):
                yield data
            return
        try:
            async for data in self._body:
                yield data
        finally:
            self._read.set()

    async def credentials(self, host: str) -> dict[str, str] | None:
        return await super().credentials(host) if self._inner is not None else None

    async def secret(self, name: str) -> bytes | None:
        return await super().secret(name) if self._inner is not None else None

    async def agent(self, name: str, path: Any) -> asyncio.Server | None:
        return await super().agent(name, path) if self._inner is not None else None
