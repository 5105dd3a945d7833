"""Who may ask the kubelet: client certificates, bearer tokens by TokenReview, rights by SubjectAccessReview.

Sources: kubernetes pkg/kubelet/server/auth.go (attributes of a request), pkg/kubelet/apis/config (cache times).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from longshore.client.resources import SUBJECT_ACCESS_REVIEWS, Resource
from longshore.client.rest import Client
from longshore.machinery.errors import StatusError
from longshore.machinery.http import Request

TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", False)
TOKEN_SECONDS, ALLOWED_SECONDS, DENIED_SECONDS = 120.0, 300.0, 30.0
_KEPT = 2000
_VERBS = {"POST": "create", "GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class User:
    """Somebody authenticated."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


def subresources(path: str) -> list[str]:
    """The subresources of nodes that a path may be allowed by, the narrow one first."""
    for prefix, name in (("/stats", "stats"), ("/metrics", "metrics"), ("/logs", "log"), ("/checkpoint", "checkpoint")):
        if path == prefix or path.startswith(prefix + "/"):
            return [name]
    for prefix, name in (("/pods", "pods"), ("/runningpods", "pods"), ("/healthz", "healthz"), ("/configz", "configz")):
        if path == prefix or path.startswith(prefix + "/"):
            return [name, "proxy"]
    return ["proxy"]


class Gate:
    """Lets requests in or not. The API server's answers are kept for a while."""

    def __init__(self, client: Client, node_name: str) -> None:
        self._client, self._node = client, node_name
        self._tokens: dict[str, tuple[float, User | None]] = {}
        self._decisions: dict[tuple[User, str, str], tuple[float, bool]] = {}

    async def check(self, request: Request) -> tuple[int, str]:
        """(200, "") for one who may; else the status and text to answer with."""
        user = self._certified(request)
        if user is None:
            try:
                user = await self._token_user(request)
            except (StatusError, OSError, TimeoutError):
                return 401, "Unauthorized"
        if user is None:
            return 401, "Unauthorized"
        verb = _VERBS.get(request.method, request.method.lower())
        wanted = subresources(request.path)
        try:
            for name in wanted:
                if await self._allowed(user, verb, name):
                    return 200, ""
        except (StatusError, OSError, TimeoutError) as error:
            return (
                500,
                f"Authorization error (user={user.name}, verb={verb}, resource=nodes, subresource={wanted}): {error}",
            )
        shown = f"[{' '.join(wanted)}]"
        return 403, f"Forbidden (user={user.name}, verb={verb}, resource=nodes, subresource(s)={shown})"

    @staticmethod
    def _certified(request: Request) -> User | None:
        certificate = request.peer.certificate
        if not certificate:
            return None
        pairs = [pair for part in certificate.get("subject", ()) for pair in part]
        name = next((v for k, v in pairs if k == "commonName"), "")
        groups = tuple(v for k, v in pairs if k == "organizationName")
        return User(name, groups=(*groups, "system:authenticated")) if name else None

    async def _token_user(self, request: Request) -> User | None:
        kind, _, token = (request.headers.get("authorization") or "").partition(" ")
        if kind.lower() != "bearer" or not token:
            return None
        kept = self._tokens.get(token)
        if kept is not None and time.monotonic() < kept[0]:
            return kept[1]
        answer = await self._client.create(TOKEN_REVIEWS, {"spec": {"token": token}})
        status = answer.get("status") or {}
        user: User | None = None
        if status.get("authenticated"):
            found = status.get("user") or {}
            extra = tuple(sorted((k, tuple(v)) for k, v in (found.get("extra") or {}).items()))
            user = User(found.get("username", ""), found.get("uid", ""), tuple(found.get("groups") or ()), extra)
        if len(self._tokens) > _KEPT:
            self._tokens.clear()
        self._tokens[token] = (time.monotonic() + TOKEN_SECONDS, user)
        return user

    async def _allowed(self, user: User, verb: str, subresource: str) -> bool:
        key = (user, verb, subresource)
        kept = self._decisions.get(key)
        if kept is not None and time.monotonic() < kept[0]:
            return kept[1]
        spec: dict[str, Any] = {
            "user": user.name, "groups": list(user.groups), "uid": user.uid,
            "extra": {k: list(v) for k, v in user.extra},
            "resourceAttributes": {
                "verb": verb, "group": "", "version": "v1", "resource": "nodes", "subresource": subresource,
                "name": self._node,
            },
        }  # fmt: skip
        answer = await self._client.create(SUBJECT_ACCESS_REVIEWS, {"spec": spec})
        allowed = bool((answer.get("status") or {}).get("allowed"))
        if len(self._decisions) > _KEPT:
            self._decisions.clear()
        self._decisions[key] = (time.monotonic() + (ALLOWED_SECONDS if allowed else DENIED_SECONDS), allowed)
        return allowed
