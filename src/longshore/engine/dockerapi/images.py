"""Images: /images, /distribution, /build."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import orjson

from longshore.engine.errors import (
    EngineError,
    Forbidden,
    InvalidParameter,
    NotFound,
    NotImplementedUpstream,
    SystemFailure,
    Unauthorized,
)
from longshore.engine.images import platforms, references
from longshore.machinery.http import Response

from .commit import apply_changes
from .router import Call, Router, empty, json_response

log = logging.getLogger("longshore.engine.dockerapi")
Json = dict[str, Any]
T = TypeVar("T")
routes = Router()
_STATUSES: dict[int, type[EngineError]] = {400: InvalidParameter, 401: Unauthorized, 403: Forbidden, 404: NotFound}


def _plain_platform(call: Call) -> str:
    """The platform parameter "os/arch" of a pull or import, new in API 1.32. Raises InvalidParameter."""
    text = call.param("platform")
    return platforms.parse(text) if text and call.version >= (1, 32) else ""


def _platform(call: Call, since: tuple[int, int]) -> str:
    """The platform parameter as a JSON object, as "os/arch"; passed over before API `since`. Raises InvalidParameter."""
    text = call.param("platform")
    return _decoded(text) if text and call.version >= since else ""


def _decoded(text: str) -> str:
    try:
        value = orjson.loads(text)
        parts = [value.get("os") or "", value.get("architecture") or "", value.get("variant") or ""]
    except (orjson.JSONDecodeError, AttributeError):
        raise InvalidParameter(f"failed to parse platform: {text}") from None
    return "/".join(part for part in parts if part)


async def stream(call: Call, work: Callable[[Callable[[Json], None]], Awaitable[Any]]) -> Response | None:
    """Messages as they come, each ended by CR LF. An error before the first message is an HTTP error, after it a message."""
    queue: asyncio.Queue[Json | None] = asyncio.Queue()
    task = asyncio.ensure_future(work(queue.put_nowait))
    task.add_done_callback(lambda _: queue.put_nowait(None))
    writer = None
    try:
        while (message := await queue.get()) is not None:
            if writer is None:
                writer = await call.start(200)
            writer.write(orjson.dumps(message) + b"\r\n")
            await writer.drain()
        try:
            task.result()
        except EngineError as error:
            if writer is None:
                raise
            code = getattr(error, "code", None)  # of a build's failed command
            detail: Json = {**({"code": code} if isinstance(code, int) else {}), "message": error.message}
            writer.write(orjson.dumps({"errorDetail": detail, "error": error.message}) + b"\r\n")
        except Exception:
            if writer is None:
                raise
            # The answer has begun: a client that is told nothing would wait for its end.
            log.exception("%s %s failed", call.request.method, call.request.path)
            words = "internal error"
            writer.write(orjson.dumps({"errorDetail": {"message": words}, "error": words}) + b"\r\n")
        if writer is None:
            await call.start(200)
        return None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _credentials(call: Call) -> dict[str, str]:
    """What a client gave for a registry, which is told who the client is."""
    from longshore.engine.images.registries import decode_auth
    from longshore.engine.images.tokens import CLIENT

    CLIENT.set(call.request.headers.get("user-agent") or "")
    return decode_auth(call.request.headers.get("x-registry-auth"))


async def _without_login(work: Awaitable[T]) -> T:
    """A refusal for want of credentials as dockerd gives it: not as 401, by which the docker command would ask for some."""
    try:
        return await work
    except Unauthorized as error:
        raise SystemFailure(error.message) from None


@routes.route("GET", "/images/json")
async def list_images(call: Call) -> Response:
    images = call.api.images
    wanted = call.filters()
    if call.version < (1, 41) and call.param("filter"):
        wanted.setdefault("reference", []).append(call.param("filter"))
    shown = await call.api.containers.in_thread(
        lambda: images.list(
            all=call.flag("all"),
            filters=wanted,
            shared_size=call.version >= (1, 42) and call.flag("shared-size"),
            manifests=call.version >= (1, 47) and call.flag("manifests"),
        )
    )
    for entry in shown:
        _adapt_entry(entry, call.version)
    return json_response(shown)


def _adapt_entry(entry: Json, version: tuple[int, int]) -> None:
    """An entry of the image list as an older client knows it."""
    if version < (1, 51):
        entry["Containers"] = -1
    if version < (1, 48):
        entry.pop("Descriptor", None)
    if version < (1, 44):
        entry["VirtualSize"] = entry["Size"]
    if version < (1, 43):
        if not entry["RepoTags"] and not entry["RepoDigests"]:
            entry["RepoTags"], entry["RepoDigests"] = ["<none>:<none>"], ["<none>@<none>"]
        entry["RepoTags"] = entry["RepoTags"] or None
        entry["RepoDigests"] = entry["RepoDigests"] or None


@routes.route("POST", "/images/create")
async def create(call: Call) -> Response | None:
    images = call.api.images
    name, tag, message = call.param("fromImage"), call.param("tag"), call.param("message")
    if name:
        # Old clients ask for all tags by a name that ends with a colon.
        reference = references.parse(name.rstrip().removesuffix(":"))
        if tag:
            reference = reference.with_digest(tag) if tag.startswith("sha256:") else reference.with_tag(tag)
        all_tags = not reference.tag and not reference.digest
        platform = _plain_platform(call)
        auth = _credentials(call)
        return await stream(
            call,
            lambda say: _without_login(
                images.pull(reference, auth=auth, platform=platform, progress=say, all_tags=all_tags)
            ),
        )
    source = call.param("fromSrc")
    named = None
    if call.param("repo"):
        named = references.parse(call.param("repo"))
        if named.digest:
            raise InvalidParameter("cannot import digest reference")
        if tag:
            named = named.with_tag(tag)
        named = named.with_default_tag()
    changes = [line for text in call.params("changes") for line in text.split("\n")]
    run_config = apply_changes({}, changes)
    wanted = (_plain_platform(call) or "linux//").split("/")
    wanted += [""] * (3 - len(wanted))
    if wanted[0] != "linux":
        raise InvalidParameter("operating system is not supported")
    message = message or f"Imported from {source}"

    async def work(say: Callable[[Json], None]) -> None:
        body = call.request.chunks() if source == "-" else _download(source, say)
        image = await images.import_(
            body, name=named, message=message, run_config=run_config, platform=(wanted[0], wanted[1], wanted[2])
        )
        say({"status": image.id})

    return await stream(call, work)


async def _download(source: str, say: Callable[[Json], None]) -> AsyncIterator[bytes]:
    """The content behind a URL. Raises EngineError with Go's text. Source: moby builder/remotecontext GetWithStatusError."""
    from longshore.engine.images.distribution import connection_text, whole
    from longshore.machinery.http import Client, ClientError

    url = source if "://" in source else f"http://{source}"
    escape = re.match(r"[a-z]+://[^/?#]*?(%[0-9A-Fa-f]{2})", url)
    if escape is not None and escape[1] != "%25":
        raise InvalidParameter(f'parse "{url}": invalid URL escape "{escape[1]}"')
    client = Client()
    try:
        try:
            answer = await client.request("GET", url)
        except (OSError, ClientError, ValueError) as error:
            text = connection_text("Get", url, error)
            raise (NotFound if "no such host" in text else SystemFailure)(text) from None
        if answer.status >= 400:
            said = (await whole(answer)).decode("utf-8", "replace").strip()
            kind = _STATUSES.get(answer.status, SystemFailure)
            raise kind(f"failed to GET {url} with status {answer.status} {answer.reason}: {said}")
        say({"status": "Downloading from " + url})
        async for data in answer.chunks():
            yield data
    finally:
        await client.close()


@routes.route("GET", "/images/search")
async def search(call: Call) -> Response:
    from longshore.engine.containers import filters

    text = call.param("limit")
    if text and not re.fullmatch(r"[+-]?\d+", text):
        raise InvalidParameter(f'invalid limit specified: strconv.Atoi: parsing "{text}": invalid syntax')
    limit = int(text or 0)
    if limit and not 1 <= limit <= 100:
        raise SystemFailure(f"limit {limit} is outside the range of [1, 100]")
    wanted = call.filters()
    filters.check(wanted, ("is-automated", "is-official", "stars"))
    for name in ("is-automated", "is-official"):
        filters.boolean(wanted, name, False)
    for stars in wanted.get("stars", []):
        if not stars.isdigit():
            raise InvalidParameter(f"invalid filter 'stars=[{stars}]'")
    term = call.param("term")
    url = f"https://index.docker.io/v1/search?q={term}&n={limit or 25}"
    from longshore.engine.images.distribution import connection_text
    from longshore.machinery.http import Client, ClientError

    client = Client()
    try:
        try:
            answer = await client.request("GET", url, timeout=10)
            found = orjson.loads(await answer.read(2**20)).get("results") or []
        except (OSError, ClientError, ValueError, TimeoutError) as error:
            raise SystemFailure(connection_text("Get", url, error)) from None
    finally:
        await client.close()
    return json_response(found)


@routes.route("POST", "/images/prune")
async def prune(call: Call) -> Response:
    answer = await call.api.images.prune(dict(call.filters()))
    call.api.events.emit("image", "prune", "", {"reclaimed": str(answer["SpaceReclaimed"])})
    return json_response(answer)


@routes.route("POST", "/images/load")
async def load(call: Call) -> Response | None:
    images = call.api.images
    quiet, platform = call.flag("quiet", True), _one_platform(call)

    async def work(say: Callable[[Json], None]) -> None:
        try:
            await images.load(call.request.chunks(), progress=say, quiet=quiet, platform=platform)
        except EngineError as error:
            say({"errorDetail": {"message": error.message}, "error": error.message})

    return await stream(call, work)


@routes.route("GET", "/images/get")
async def save_many(call: Call) -> Response | None:
    return await _save(call, call.params("names"))


@routes.route("GET", "/images/{name:*}/get")
async def save_one(call: Call) -> Response | None:
    return await _save(call, [call.path["name"]])


def _one_platform(call: Call) -> str:
    """The platform of a save or load, new in API 1.48; several are refused. Raises InvalidParameter."""
    if call.version >= (1, 48) and len(call.params("platform")) > 1:
        raise InvalidParameter("multiple platform parameters not supported")
    return _platform(call, (1, 48))


async def _save(call: Call, names: list[str]) -> Response | None:
    source = await call.api.images.save(names, platform=_one_platform(call))
    with contextlib.closing(source):
        writer = await call.start(200, "application/x-tar")
        await writer.send_pieces(source)
    return None


@routes.route("GET", "/images/{name:*}/json")
async def inspect(call: Call) -> Response:
    images = call.api.images
    name, platform = call.path["name"], _platform(call, (1, 49))
    manifests = call.version >= (1, 48) and call.flag("manifests")
    if platform and manifests:
        raise InvalidParameter("conflicting options: manifests and platform options cannot both be set")
    image = images.resolve(name, platform)

    def show() -> Json:
        from longshore.engine.images.variants import inspect_entry

        shown = images.inspect(image, version=call.version)
        if call.version >= (1, 48):
            inspect_entry(images, shown, image, name, platform, manifests)
        return shown

    return json_response(await call.api.containers.in_thread(show))


@routes.route("GET", "/images/{name:*}/history")
async def history(call: Call) -> Response:
    images = call.api.images
    return json_response(images.history(images.resolve(call.path["name"], _platform(call, (1, 48)))))


@routes.route("POST", "/images/{name:*}/tag")
async def tag(call: Call) -> Response:
    images = call.api.images
    repository = call.param("repo")
    if not repository:
        images.resolve(call.path["name"])
        return empty(200)
    name = references.parse(repository)
    if name.digest:
        raise InvalidParameter("cannot import digest reference")
    if call.param("tag"):
        name = name.with_tag(call.param("tag"))
    images.tag(call.path["name"], name)
    return empty(201)


@routes.route("POST", "/images/{name:*}/push")
async def push(call: Call) -> Response | None:
    images = call.api.images
    name = references.parse(call.path["name"])
    if call.param("tag"):
        name = name.with_tag(call.param("tag"))
    auth = _credentials(call)
    platform = _platform(call, (1, 46))
    return await stream(call, lambda say: images.push(name, auth=auth, progress=say, platform=platform))


@routes.route("DELETE", "/images/{name:*}")
async def remove(call: Call) -> Response:
    name = call.path["name"]
    if not name.strip():
        raise InvalidParameter("image name cannot be blank")
    platforms = [_decoded(text) for text in call.params("platforms")] if call.version >= (1, 50) else []
    gone = await call.api.images.remove(
        name, force=call.flag("force"), prune=not call.flag("noprune"), platforms=platforms
    )
    return json_response(gone)


@routes.route("GET", "/distribution/{name:*}/json")
async def distribution(call: Call) -> Response:
    from longshore.engine.images.pull import distribution_inspect

    auth = _credentials(call)
    return json_response(await _without_login(distribution_inspect(call.api.images, call.path["name"], auth=auth)))


@routes.route("POST", "/auth")
async def login(call: Call) -> Response:
    raw = await call.request.read(65536)
    if not raw.strip():
        raise SystemFailure("EOF")
    try:
        given = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise SystemFailure("unexpected EOF") from None
    _credentials(call)
    identity = await call.api.images.registries.login({k.lower(): v for k, v in given.items() if isinstance(v, str)})
    return json_response({"IdentityToken": identity, "Status": "Login Succeeded"})


@routes.route("POST", "/build")
async def build(call: Call) -> Response | None:
    if call.api.build is None:
        raise NotImplementedUpstream("the builder is not available")
    return await call.api.build(call)


@routes.route("POST", "/build/prune")
async def build_prune(call: Call) -> Response:
    from longshore.engine.containers import filters

    try:
        filters.check(
            call.filters(),
            (
                "description",
                "id",
                "inuse",
                "label",
                "label!",
                "parent",
                "private",
                "shared",
                "type",
                "until",
                "unused-for",
            ),
        )
    except InvalidParameter as error:
        raise InvalidParameter(f"failed to prune build cache: {error.message}") from None
    from longshore.engine.build.usage import Space
    from longshore.engine.build.usage import prune as prune_cache

    def size(name: str) -> int:
        text = call.param(name)
        if text and not text.lstrip("+-").isdigit():
            raise InvalidParameter(
                f'{name} is in bytes and expects an integer, got {text}: strconv.Atoi: parsing "{text}": invalid syntax'
            )
        return int(text or 0)

    reserved = size("reserved-space") or size("keep-storage")
    space = Space(reserved, size("max-used-space"), size("min-free-space"))
    gone = await prune_cache(call.api.images, everything=call.flag("all"), filters=call.filters(), space=space)
    return json_response(
        {"CachesDeleted": [r["id"] for r in gone] or None, "SpaceReclaimed": sum(r["size"] for r in gone)}
    )
