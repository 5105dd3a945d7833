"""Carries requests to other API servers, and tells in each APIService's status whether they are there.

Source: k8s.io/kube-aggregator/pkg/apiserver (handler_proxy.go), pkg/controllers/status.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Protocol

import orjson

from longshore.api import times
from longshore.machinery.errors import StatusError
from longshore.machinery.http import Client, Request, Response
from longshore.master.apiserver.context import API, Object, UserInfo

from .documents import Documents, fetch
from .services import GROUP, LOCAL, PASSED, Condition, Remote

log = logging.getLogger("longshore.apiserver.aggregation")
RECHECK = 30.0  # seconds between two looks at a remote server that does not change
AGAIN = 0.05  # seconds after which one that did not answer is asked again, twice as long with each time
CHECK_TIMEOUT = 5.0
CONTROLLER = UserInfo("system:kube-aggregator", groups=("system:masters",))
_DESCRIBED = "/openapi/v3/apis/"
_UNRESERVED = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$&'*+-.^_`|~")


class Catalogue(Protocol):
    """Where the remote groups are listed for discovery: group to version to (resources, fresh)."""

    remote: dict[str, dict[str, tuple[list[Any], bool]]]

    def forget(self) -> None: ...


class Shelf(Protocol):
    """Where OpenAPI documents of remote group versions are kept."""

    remote: dict[tuple[str, str], Documents]

    def forget(self) -> None: ...


def proxy_headers(user: UserInfo) -> list[tuple[str, str]]:
    """The fields by which the far server knows for whom we ask (transport.SetAuthProxyHeaders)."""
    out = [("X-Remote-User", user.name)]
    if user.uid:
        out.append(("X-Remote-Uid", user.uid))
    out += [("X-Remote-Group", g) for g in user.groups]
    for key, values in user.extra.items():
        escaped = "".join(chr(b) if b in _UNRESERVED else f"%{b:02X}" for b in key.encode())
        out += [(f"X-Remote-Extra-{escaped}", v) for v in values]
    return out


class Aggregator:
    """APIServices with a Service behind them.

    certificate, key: the client certificate that far servers trust for X-Remote-User (front-proxy-client).
    """

    def __init__(
        self,
        api: API,
        catalogue: Catalogue,
        shelf: Shelf,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        self._api = api
        self._catalogue = catalogue
        self._shelf = shelf
        self._pair = (certificate, key)
        self._remotes: dict[tuple[str, str], Remote] = {}
        self._by_service: dict[tuple[str, str], set[str]] = {}
        self._dirty: set[str] = set()
        self._changed = asyncio.Event()
        self._failures: dict[str, int] = {}
        self._retries: dict[str, asyncio.TimerHandle] = {}
        api.on_change(GROUP, "apiservices", lambda _, name: self._note({name}))
        api.on_change("", "services", lambda ns, name: self._note(self._by_service.get((ns, name), set())))
        api.on_change("discovery.k8s.io", "endpointslices", self._slice)

    def _note(self, names: set[str]) -> None:
        if names:
            self._dirty |= names
            self._changed.set()

    def _slice(self, namespace: str, name: str) -> None:
        # slices carry their Service's name in a label, and as a rule in front of their own; look only when it matters
        for (ns, service), names in self._by_service.items():
            if ns == namespace and name.startswith(service):
                self._note(names)

    # ---- requests

    def route(self, request: Request, user: UserInfo) -> Awaitable[Response | None] | None:
        """The answer of a remote server; None when the path is not of a remote group version."""
        if not self._remotes:
            return None
        path = request.raw_path
        if path.startswith(_DESCRIBED):
            path = path[len(_DESCRIBED) - len("/apis/") :]
        elif not path.startswith("/apis/"):
            return None
        parts = path.split("/", 4)
        remote = self._remotes.get((parts[2], parts[3])) if len(parts) > 3 else None
        return self._carry(request, user, remote) if remote is not None else None

    async def _carry(self, request: Request, user: UserInfo, remote: Remote) -> Response | None:
        base = remote.url(self._api) if remote.available else None
        if base is None:
            headers = [("X-Content-Type-Options", "nosniff")]
            return Response(503, b"service unavailable\n", headers, "text/plain; charset=utf-8")
        url = base + request.raw_path + (f"?{request.raw_query}" if request.raw_query else "")
        from longshore.master.apiserver.proxying import reverse  # with the first request that is carried

        if request.wants_upgrade:
            return await reverse.upgrade(request, remote.client, url, proxy_headers(user))
        return await reverse.carry(request, remote.client, url, extra=proxy_headers(user))

    # ---- availability

    async def run(self) -> None:
        """Keeps every APIService's condition true; until cancelled."""
        try:
            while True:
                dirty, self._dirty = self._dirty, set()
                self._changed.clear()
                await asyncio.gather(*(self._settle(name) for name in dirty))
                try:
                    async with asyncio.timeout(RECHECK if self._remotes else None):
                        await self._changed.wait()
                except TimeoutError:
                    self._dirty |= {f"{r.version}.{r.group}" for r in self._remotes.values()}
        finally:
            for retry in self._retries.values():
                retry.cancel()
            await asyncio.gather(*(r.close() for r in self._remotes.values()))

    async def _settle(self, name: str) -> None:
        try:
            obj = self._api.get(GROUP, "apiservices", "", name)
            remote = await self._adopt(name, obj)
            if obj is None:
                self._ask_again(name, failed=False)
                return
            condition = await self._check(remote) if remote is not None else LOCAL
            if remote is not None:
                remote.available = condition.status == "True"
                self._ask_again(name, failed=condition.reason == "FailedDiscoveryCheck")
            await self._tell(obj, condition)
            if remote is not None and remote.available:
                await self._describe(remote)
        except StatusError as error:
            log.debug("APIService %s: %s", name, error.message)
        except Exception:
            log.exception("APIService %s", name)

    def _ask_again(self, name: str, *, failed: bool) -> None:
        """Come back soon to a server that did not answer: it may be starting, and namespaces cannot go without it."""
        retry = self._retries.pop(name, None)
        if retry is not None:
            retry.cancel()
        if not failed:
            self._failures.pop(name, None)
            return
        times_failed = self._failures[name] = self._failures.get(name, 0) + 1
        pause = min(RECHECK, AGAIN * 2.0 ** min(times_failed, 16))
        self._retries[name] = asyncio.get_running_loop().call_later(pause, self._note, {name})

    async def _adopt(self, name: str, obj: Object | None) -> Remote | None:
        """The remote of an APIService: the one that is known, or a new one when its spec has changed."""
        version, _, group = name.partition(".")
        key = (group, version)
        spec = obj["spec"] if obj is not None and (obj["spec"].get("service") or {}).get("name") else None
        known = self._remotes.get(key)
        if known is not None and spec == known.spec:
            return known
        if known is not None:
            del self._remotes[key]
            names = self._by_service.get((known.namespace, known.name), set())
            names.discard(name)
            if not names:
                self._by_service.pop((known.namespace, known.name), None)
            await known.close()
            self._list(known, None)
            if self._shelf.remote.pop(key, None) is not None:
                self._shelf.forget()
        if spec is None:
            return None
        remote = self._remotes[key] = Remote(spec, *self._pair)
        self._by_service.setdefault((remote.namespace, remote.name), set()).add(name)
        self._list(remote, ([], False))
        return remote

    def _list(self, remote: Remote, found: tuple[list[Any], bool] | None) -> None:
        """Tells discovery what a remote group version has."""
        versions = self._catalogue.remote.setdefault(remote.group, {})
        if found is not None and versions.get(remote.version) == found:
            return
        if found is None:
            versions.pop(remote.version, None)
            if not versions:
                self._catalogue.remote.pop(remote.group, None)
        else:
            versions[remote.version] = found
        self._catalogue.forget()

    async def _check(self, remote: Remote) -> Condition:
        """Whether a remote server answers its discovery path."""
        problem = remote.problem(self._api)
        if problem is not None:
            return problem
        base = remote.url(self._api)
        if base is None:
            return Condition("False", "FailedDiscoveryCheck", "no address to ask")
        place = base + remote.path
        try:
            status, body = await _get(remote.client, place)
        except TimeoutError:
            return Condition("False", "FailedDiscoveryCheck", f"timed out waiting for {place}")
        except (OSError, ValueError) as error:
            text = f'failing or missing response from {place}: Get "{place}": {error}'
            return Condition("False", "FailedDiscoveryCheck", text)
        if not 200 <= status < 300:
            return Condition("False", "FailedDiscoveryCheck", f"bad status from {place}: {status}")
        try:
            resources = orjson.loads(body).get("resources")
        except (ValueError, AttributeError):
            resources = None
        if isinstance(resources, list):
            self._list(remote, (resources, True))
        return PASSED

    async def _describe(self, remote: Remote) -> None:
        """Fetch what a server says of itself in OpenAPI; where it says nothing, nothing is shown."""
        key, base = (remote.group, remote.version), remote.url(self._api)
        if base is None:
            return
        old = self._shelf.remote.get(key)
        try:
            found = await fetch(remote.client, base, *key, proxy_headers(CONTROLLER), old)
        except (OSError, TimeoutError, ValueError, AttributeError) as error:
            log.debug("OpenAPI of %s: %s", remote.path, error)
            return
        if found != old and self._remotes.get(key) is remote:
            self._shelf.remote[key] = found
            self._shelf.forget()

    async def _tell(self, obj: Object, condition: Condition) -> None:
        """Writes the condition when it says something new."""
        conditions = list((obj.get("status") or {}).get("conditions") or ())
        old = next((c for c in conditions if c.get("type") == "Available"), None)
        if old is not None and (old.get("status"), old.get("reason"), old.get("message")) == condition:
            return
        since = old["lastTransitionTime"] if old is not None and old.get("status") == condition.status else times.now()
        new = {
            "type": "Available",
            "status": condition.status,
            "lastTransitionTime": since,
            "reason": condition.reason,
            "message": condition.message,
        }
        obj["status"] = {"conditions": [*(c for c in conditions if c is not old), new]}
        await self._api.update(GROUP, "apiservices", "", obj, "status")


async def _get(client: Client, url: str) -> tuple[int, bytes]:
    headers = [("Accept", "application/json"), *proxy_headers(CONTROLLER)]
    response = await client.request("GET", url, headers=headers, timeout=CHECK_TIMEOUT)
    return response.status, await response.read(4 << 20)
