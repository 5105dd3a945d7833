"""The Kubernetes REST API as calls: objects are plain dicts, errors are `machinery.errors.StatusError`.

Source: kubernetes.io "Kubernetes API Concepts".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal
from urllib.parse import quote

import orjson

from longshore.client.config import Config, ConfigError, load, load_pair
from longshore.client.resources import Resource
from longshore.machinery import renewal
from longshore.machinery.errors import StatusError
from longshore.machinery.http import Client as HTTPClient
from longshore.machinery.http import ClientResponse

Object = dict[str, Any]
PatchKind = Literal["merge", "strategic", "json", "apply"]

PATCH_TYPES: dict[str, str] = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
list_ = list  # the class below has a method of that name
WATCH_LINE_LIMIT = 64 << 20
CONNECTIONS = 12


class Client:
    """One API server, one identity, one pool of kept-alive connections.

    A caller may rely on: every method raises StatusError for an answer of 400 and above and for a `Status` of
    failure inside a watch, OSError (with subclasses) when the server cannot be reached or breaks off; nothing is
    retried; objects handed in are never changed, objects handed out belong to the caller. No rate limit is applied.
    """

    def __init__(self, config: Config, *, user_agent: str = "longshore", timeout: float = 60.0) -> None:
        self.config = config
        self.timeout = timeout
        headers = [("user-agent", user_agent)]
        if config.impersonate:
            headers.append(("impersonate-user", config.impersonate))
        ssl, name = config.ssl_context(), config.server_name or None
        # A TLS connection costs both sides more than many requests: a burst shares a few. Watches have their own.
        self.http = HTTPClient(ssl=ssl, headers=headers, server_hostname=name, limit_per_host=CONNECTIONS)
        self.streams = HTTPClient(ssl=ssl, headers=headers, server_hostname=name)
        self._tls = ssl
        if ssl is not None and config.certificate and config.source:
            renewal.hold(self, [config.source], Client._reread)

    def _reread(self) -> None:
        """Be known by the kubeconfig's certificate, where it is another one. Raises ValueError."""
        assert self.config.source is not None
        try:
            fresh = load(self.config.source)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if fresh.certificate and fresh.key and fresh.certificate != self.config.certificate:
            self.config.certificate, self.config.key = fresh.certificate, fresh.key
            self.renew(fresh.certificate, fresh.key)

    def renew(self, certificate: bytes, key: bytes) -> None:
        """Be known by another certificate (PEM) of the same identity; watches break off, to be opened under it."""
        if self._tls is not None:
            load_pair(self._tls, certificate, key)
        self.http.drop()
        self.streams.drop(under_way=True)

    async def close(self) -> None:
        """Drop the pooled connections. Calls under way fail."""
        await self.http.close()
        await self.streams.close()

    # -- objects ---------------------------------------------------------------------------------------------------

    async def get(
        self, resource: Resource, name: str, namespace: str = "", *, subresource: str = "", resource_version: str = ""
    ) -> Object:
        """Read one object (or its subresource)."""
        path = resource.path(namespace, name, subresource)
        return await self.call("GET", path, {"resourceVersion": resource_version})

    async def list(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
        limit: int = 0,
        accept: str = "",
    ) -> Object:
        """Read a whole collection: the List object with all pages' items joined.

        resource_version: "" reads the newest state, "0" whatever the server has in its cache. limit: page size;
        0 asks for everything at once. Items carry no apiVersion and kind of their own, as on the wire.
        """
        query: dict[str, str] = {
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "resourceVersion": resource_version,
            "limit": str(limit) if limit else "",
        }
        path = resource.path(namespace)
        answer = await self.call("GET", path, query, accept=accept)
        items: list[Object] = answer.get("items") or []
        token = answer.get("metadata", {}).get("continue")
        while token:
            page = await self.call("GET", path, {**query, "resourceVersion": "", "continue": token}, accept=accept)
            items.extend(page.get("items") or [])
            answer["metadata"] = page.get("metadata", {})
            token = answer["metadata"].get("continue")
        answer["items"] = items
        return answer

    async def create(
        self,
        resource: Resource,
        obj: Mapping[str, Any],
        namespace: str = "",
        *,
        name: str = "",
        subresource: str = "",
        field_manager: str = "",
    ) -> Object:
        """POST an object to its collection, or to a subresource of `name` (binding, eviction, token).

        apiVersion and kind are filled in from the resource when the object has none.
        """
        if not subresource and "kind" not in obj:
            obj = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
        path = resource.path(namespace or _namespace(obj), name, subresource)
        return await self.call("POST", path, {"fieldManager": field_manager}, obj)

    async def update(self, resource: Resource, obj: Mapping[str, Any], *, subresource: str = "") -> Object:
        """PUT an object. Its metadata.resourceVersion, when there, makes it fail with 409 if someone else wrote."""
        if "kind" not in obj:
            obj = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
        path = resource.path(_namespace(obj), obj["metadata"]["name"], subresource)
        return await self.call("PUT", path, None, obj)

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Any,
        namespace: str = "",
        *,
        kind: PatchKind = "merge",
        subresource: str = "",
        field_manager: str = "",
        force: bool = False,
    ) -> Object:
        """PATCH an object. kind: how the patch is to be read; apply needs a field_manager, and `force` wins conflicts."""
        query = {"fieldManager": field_manager, "force": "true" if force else ""}
        path = resource.path(namespace, name, subresource)
        return await self.call("PATCH", path, query, patch, content_type=PATCH_TYPES[kind])

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        propagation: Literal["", "Background", "Foreground", "Orphan"] = "",
        grace_seconds: int | None = None,
        uid: str = "",
        resource_version: str = "",
    ) -> Object:
        """Delete one object. uid, resource_version: preconditions (409 when they do not hold)."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if propagation:
            options["propagationPolicy"] = propagation
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if uid or resource_version:
            options["preconditions"] = {k: v for k, v in (("uid", uid), ("resourceVersion", resource_version)) if v}
        return await self.call("DELETE", resource.path(namespace, name), None, options)

    async def delete_collection(
        self, resource: Resource, namespace: str = "", *, label_selector: str = "", field_selector: str = ""
    ) -> Object:
        """Delete every object of a collection that the selectors match."""
        query = {"labelSelector": label_selector, "fieldSelector": field_selector}
        return await self.call("DELETE", resource.path(namespace), query, {"apiVersion": "v1", "kind": "DeleteOptions"})

    # -- watch -----------------------------------------------------------------------------------------------------

    async def watch(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        resource_version: str = "",
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = 0,
        bookmarks: bool = True,
        accept: str = "",
    ) -> AsyncIterator[list_[tuple[str, Object]]]:
        """Stream changes after resource_version, in order: batches of (type, object), one batch per network read.

        type: ADDED, MODIFIED, DELETED or BOOKMARK. Ends without an error when the server ends the stream (which it
        does after timeout_seconds). Raises StatusError for an ERROR event; code 410 means the version is too old
        and the caller lists again. Close the iterator (aclose) to give the connection back.
        """
        query = {
            "watch": "1",
            "resourceVersion": resource_version,
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "timeoutSeconds": str(timeout_seconds) if timeout_seconds else "",
            "allowWatchBookmarks": "true" if bookmarks else "",
        }
        response = await self.send("GET", resource.path(namespace), query, accept=accept, stream=True)
        rest = b""
        try:
            async for chunk in response.chunks():
                data = rest + chunk if rest else chunk
                end = data.rfind(b"\n")
                if end < 0:
                    if len(data) > WATCH_LINE_LIMIT:
                        raise OSError("a watch event is too large")
                    rest = data
                    continue
                rest = data[end + 1 :]
                batch: list[tuple[str, Object]] = []
                for line in data[:end].split(b"\n"):
                    if not line:
                        continue
                    event = orjson.loads(line)
                    if event["type"] == "ERROR":
                        if batch:
                            yield batch
                        raise status_error(event["object"])
                    batch.append((event["type"], event["object"]))
                if batch:
                    yield batch
        except orjson.JSONDecodeError as error:
            raise OSError(f"a watch event is not JSON: {error}") from error
        finally:
            await response.close()

    # -- the wire --------------------------------------------------------------------------------------------------

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "",
    ) -> Object:
        """One request with a JSON body and a JSON answer. query: empty values are left out.

        accept: another media type than plain JSON (Tables, PartialObjectMetadata, aggregated discovery).
        """
        response = await self.send(method, path, query, body, content_type=content_type, accept=accept)
        data = await response.read()
        if not data:
            return {}
        try:
            answer = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise OSError(f"{method} {path}: the answer is not JSON") from error
        return answer if isinstance(answer, dict) else {"items": answer}

    async def raw(self, method: str, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """One request whose answer is not JSON (logs, metrics, health)."""
        return await (await self.send(method, path, query)).read()

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "",
        stream: bool = False,
    ) -> ClientResponse:
        """Send a request and return the answer's head; StatusError when its status is 400 or above."""
        url = self.config.server + path
        if query:
            pairs = [f"{key}={quote(value, safe='')}" for key, value in query.items() if value]
            if pairs:
                url += "?" + "&".join(pairs)
        headers: list[tuple[str, str]] = []
        authorization = self.config.authorization()
        if authorization:
            headers.append(("authorization", authorization))
        headers.append(("accept", accept or "application/json"))
        data: bytes | None = None
        if body is not None:
            data = body if isinstance(body, bytes) else orjson.dumps(body)
            headers.append(("content-type", content_type))
        http = self.streams if stream else self.http
        response = await http.request(method, url, headers=headers, body=data, timeout=None if stream else self.timeout)
        if response.status >= 400:
            raise _error(response.status, await response.read(), method, path)
        return response


def status_error(status: Mapping[str, Any]) -> StatusError:
    """The exception of a Kubernetes Status object."""
    return StatusError(
        int(status.get("code") or 500),
        str(status.get("reason") or ""),
        str(status.get("message") or ""),
        status.get("details"),
    )


def _error(code: int, body: bytes, method: str, path: str) -> StatusError:
    try:
        status = orjson.loads(body)
    except orjson.JSONDecodeError:
        status = None
    if isinstance(status, dict) and status.get("kind") == "Status":
        return status_error({"code": code, **status})
    text = body[:500].decode("utf-8", "replace").strip()
    return StatusError(code, "", text or f"{method} {path} was answered with {code}", None)


def _namespace(obj: Mapping[str, Any]) -> str:
    metadata = obj.get("metadata")
    return metadata.get("namespace", "") if isinstance(metadata, Mapping) else ""


def is_not_found(error: BaseException) -> bool:
    """Whether the object is not there (404)."""
    return isinstance(error, StatusError) and error.code == 404


def is_conflict(error: BaseException) -> bool:
    """Whether someone else wrote first, or a precondition does not hold (409 Conflict, not AlreadyExists)."""
    return isinstance(error, StatusError) and error.code == 409 and error.reason != "AlreadyExists"


def is_already_exists(error: BaseException) -> bool:
    """Whether an object of that name is already there."""
    return isinstance(error, StatusError) and error.code == 409 and error.reason == "AlreadyExists"


def is_namespace_terminating(error: BaseException) -> bool:
    """Whether a create was refused because its namespace is being deleted."""
    if not isinstance(error, StatusError) or error.code != 403:
        return False
    causes = (error.details or {}).get("causes") or []
    return any(cause.get("reason") == "NamespaceTerminating" for cause in causes)
