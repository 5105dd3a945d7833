"""Requests of the Docker Engine API to the functions that answer them: versions, paths, errors, JSON.

Source: Docker Engine API, "Versioning"; dockerd's middleware as recorded in ../shared/golden/docker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import posixpath
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.containers import filters, gojson
from longshore.engine.errors import EngineError, InvalidParameter, SystemFailure
from longshore.machinery.http import BodyTooLarge, BodyWriter, Request, Response

if TYPE_CHECKING:
    from .server import DockerAPI

log = logging.getLogger("longshore.engine.dockerapi")
Json = dict[str, Any]

API_VERSION, MIN_API_VERSION = (1, 51), (1, 24)
ENGINE_VERSION = "28.5.2"
_BODY_LIMIT = 8 * 2**20
_VERSION = re.compile(r"^/v([0-9][0-9.]*)(/.*)?$")

HEADERS = [
    ("Api-Version", "1.51"),
    ("Docker-Experimental", "false"),
    ("Ostype", "linux"),
    ("Server", f"Docker/{ENGINE_VERSION} (linux)"),
]


@dataclass(slots=True)
class Call:
    """One request on its way: what a route's function gets."""

    api: DockerAPI
    request: Request
    version: tuple[int, int]
    path: dict[str, str] = field(default_factory=dict)

    def param(self, name: str, default: str = "") -> str:
        return self.request.param(name, default)

    def params(self, name: str) -> list[str]:
        return self.request.query.get(name, [])

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean parameter as dockerd reads it: anything but "", 0, no, false and none is true."""
        if name not in self.request.query:
            return default
        return self.request.param(name).strip().lower() not in ("", "0", "no", "false", "none")

    def number(self, name: str, default: int = 0) -> int:
        """An integer parameter. Raises SystemFailure with Go's text."""
        text = self.request.param(name)
        if not text:
            return default
        if not re.fullmatch(r"[+-]?\d+", text):
            raise SystemFailure(f'strconv.Atoi: parsing "{text}": invalid syntax')
        return int(text)

    def filters(self) -> filters.Filters:
        return filters.parse(self.request.param("filters"))

    async def json(self, *, required: bool = False) -> Any:
        """The body as JSON; {} where there is none and none is required. Raises InvalidParameter."""
        raw = await self.request.read(_BODY_LIMIT)
        if not raw.strip() and not (required and self.request.headers.get("content-type") is None and raw):
            if required:
                raise InvalidParameter("invalid JSON: got EOF while reading request body")
            return {}
        kind = self.request.headers.get("content-type")
        if kind is None:
            raise InvalidParameter("malformed Content-Type header (): mime: no media type")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise InvalidParameter(f"unsupported Content-Type header ({kind}): must be 'application/json'")
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            raise InvalidParameter(_json_error(raw)) from None
        if value is None:
            return {}
        if not isinstance(value, dict):
            found = {list: "array", str: "string", bool: "bool"}.get(type(value), "number")
            raise InvalidParameter(
                f"invalid JSON: json: cannot unmarshal {found} into Go value of type container.CreateRequest"
            )
        return value

    async def start(
        self, status: int = 200, content_type: str = "application/json", headers: list[tuple[str, str]] | None = None
    ) -> BodyWriter:
        """Begin a streaming answer."""
        return await self.request.start(status, [*HEADERS, ("Content-Type", content_type), *(headers or [])])


def _json_error(raw: bytes) -> str:
    """What dockerd says of a body that is not one JSON value."""
    text = gojson.explain(raw.decode(errors="replace").lstrip())
    return "unexpected content after JSON" if text.endswith("after top-level value") else f"invalid JSON: {text}"


Function = Callable[[Call], Awaitable[Response | None]]


class Router:
    """Routes by method and path pattern; "{name}" is one part of a path, "{name:*}" any number."""

    def __init__(self) -> None:
        self._routes: dict[str, list[tuple[str, re.Pattern[str], Function]]] = {}

    def add(self, method: str, pattern: str, function: Function) -> None:
        first = pattern.split("/")[1]
        expression = re.sub(r"\{(\w+):\*\}", r"(?P<\1>.*)", pattern)
        expression = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", expression)
        self._routes.setdefault(first, []).append((method, re.compile(f"^{expression}$"), function))

    def route(self, method: str, pattern: str) -> Callable[[Function], Function]:
        """Decorator form of add."""

        def register(function: Function) -> Function:
            self.add(method, pattern, function)
            return function

        return register

    def find(self, method: str, path: str) -> tuple[Function, dict[str, str]] | None:
        for wanted, expression, function in self._routes.get(path.split("/", 2)[1] if "/" in path else "", ()):
            if wanted == method:
                match = expression.match(path)
                if match is not None:
                    return function, match.groupdict()
        return None

    def include(self, other: Router) -> None:
        for first, routes in other._routes.items():
            self._routes.setdefault(first, []).extend(routes)


def json_response(value: Any, status: int = 200) -> Response:
    """A JSON answer with the line feed that dockerd's encoder writes."""
    return Response(status, orjson.dumps(value) + b"\n", HEADERS, "application/json")


def empty(status: int = 204) -> Response:
    return Response(status, b"", HEADERS)


def error_response(status: int, message: str) -> Response:
    return json_response({"message": message}, status)


def plain(status: int, text: str) -> Response:
    return Response(status, text.encode(), HEADERS, "text/plain; charset=utf-8")


class Dispatcher:
    """The handler of machinery.http.Server: versions first, then the route, then errors."""

    def __init__(self, api: DockerAPI, router: Router) -> None:
        self._api = api
        self._router = router

    async def __call__(self, request: Request) -> Response | None:
        path = request.path
        if "//" in path or "/./" in path or "/../" in path or path.endswith(("/..", "/.")):
            clean = posixpath.normpath(path)
            clean = "/" + clean.lstrip("/") + ("/" if path.endswith("/") and clean != "/" else "")
            query = f"?{request.raw_query}" if request.raw_query else ""
            return Response(301, b"", [*HEADERS, ("Location", clean + query)])
        version = API_VERSION
        match = _VERSION.match(path)
        if match is not None and match[2] is not None:
            refused = self._check_version(match[1])
            if isinstance(refused, Response):
                with contextlib.suppress(Exception):
                    await request.read(_BODY_LIMIT)
                return refused
            version, path = refused, match[2]
        if request.method == "OPTIONS":
            return empty(200)
        found = self._router.find(request.method, path)
        if found is None:
            return error_response(404, "page not found")
        function, groups = found
        answer = await self._answer(function, Call(self._api, request, version, groups))
        if answer is not None and request.has_body:
            # A client that is still sending would take an answer and an end for a broken connection.
            with contextlib.suppress(Exception):
                await request.read(_BODY_LIMIT)
        return answer

    async def _answer(self, function: Function, call: Call) -> Response | None:
        request = call.request
        try:
            return await function(call)
        except EngineError as error:
            if error.status == 304:
                return empty(304)
            return error_response(error.status, error.message)
        except BodyTooLarge:
            return error_response(413, "http: request body too large")
        except (ConnectionError, asyncio.CancelledError):
            raise
        except OSError as error:
            # A full disk, a limit of the machine: its own words help more than ours.
            log.exception("%s %s failed", request.method, request.path)
            return error_response(
                500, f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
            )
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return error_response(500, "internal error")

    @staticmethod
    def _check_version(text: str) -> tuple[int, int] | Response:
        parts = [int(p) if p.isdigit() else 0 for p in text.split(".")]
        if len(parts) != 2:
            short = [*parts, 0, 0]
            if (short[0], short[1]) >= MIN_API_VERSION and len(parts) < 2:
                return error_response(400, f"client version {text} is too new. Maximum supported API version is 1.51")
            return plain(
                400,
                f"client version {text} is too old. Minimum supported API version is 1.24, "
                "please upgrade your client to a newer version\n",
            )
        version = (parts[0], parts[1])
        if version < MIN_API_VERSION:
            return plain(
                400,
                f"client version {text} is too old. Minimum supported API version is 1.24, "
                "please upgrade your client to a newer version\n",
            )
        if version > API_VERSION:
            return error_response(400, f"client version {text} is too new. Maximum supported API version is 1.51")
        return version
