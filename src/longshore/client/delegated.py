"""Who asks, and may they: a part's own HTTPS port leaves both questions to the API server.

A client certificate signed by the cluster's CA names its user; a bearer token is told by TokenReview; what the user may
do is told by SubjectAccessReview. Answers are kept for a short while, as upstream's delegating authenticator does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from longshore.client.resources import Resource
from longshore.client.rest import Client
from longshore.machinery.http import Request

TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", False)
SUBJECT_ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", False)

TOKEN_SECONDS, ALLOWED_SECONDS, DENIED_SECONDS = 120.0, 300.0, 30.0
MOST_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: a user's name, uid, groups and extra facts."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, list[str]] = field(default_factory=dict, hash=False)


ANONYMOUS = Identity("system:anonymous", ("system:unauthenticated",))


class Delegated:
    """Asks the API server through `client`, which must be allowed to create token and subject access reviews."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._tokens: dict[str, tuple[float, Identity | None]] = {}
        self._verdicts: dict[Any, tuple[float, bool, str]] = {}

    async def identify(self, request: Request) -> Identity | None:
        """The asker of a request; ANONYMOUS when it shows nothing, None when what it shows is not valid."""
        certificate = request.peer.certificate
        if certificate:
            return _from_certificate(certificate)
        authorization = request.headers.get("authorization") or ""
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            return ANONYMOUS
        return await self._from_token(token.strip())

    async def _from_token(self, token: str) -> Identity | None:
        now = time.monotonic()
        kept = self._tokens.get(token)
        if kept and kept[0] > now:
            return kept[1]
        review = await self._client.create(TOKEN_REVIEWS, {"spec": {"token": token}})
        status = review.get("status", {})
        identity = None
        if status.get("authenticated"):
            user = status.get("user", {})
            identity = Identity(
                user.get("username", ""), tuple(user.get("groups") or ()), user.get("uid", ""), user.get("extra") or {}
            )
        _bound(self._tokens)
        self._tokens[token] = (now + TOKEN_SECONDS, identity)
        return identity

    async def allowed(
        self,
        who: Identity,
        *,
        verb: str,
        resource: str,
        subresource: str = "",
        namespace: str = "",
        name: str = "",
        group: str = "",
    ) -> tuple[bool, str]:
        """Whether `who` may do it, and the API server's reason."""
        if "system:masters" in who.groups:
            return True, ""
        attributes = {
            "verb": verb,
            "group": group,
            "resource": resource,
            "subresource": subresource,
            "namespace": namespace,
            "name": name,
        }
        key = (who, tuple(attributes.values()))
        now = time.monotonic()
        kept = self._verdicts.get(key)
        if kept and kept[0] > now:
            return kept[1], kept[2]
        spec = {
            "user": who.name,
            "groups": list(who.groups),
            "uid": who.uid,
            "extra": {name: list(values) for name, values in who.extra.items()},
            "resourceAttributes": {k: v for k, v in attributes.items() if v},
        }
        review = await self._client.create(SUBJECT_ACCESS_REVIEWS, {"spec": spec})
        status = review.get("status", {})
        verdict, reason = bool(status.get("allowed")), str(status.get("reason") or "")
        _bound(self._verdicts)
        self._verdicts[key] = (now + (ALLOWED_SECONDS if verdict else DENIED_SECONDS), verdict, reason)
        return verdict, reason


def _from_certificate(certificate: Mapping[str, Any]) -> Identity:
    """The subject's CN is the user, its O are the groups (x509 authentication upstream)."""
    name, groups = "", []
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                name = value
            elif key == "organizationName":
                groups.append(value)
    return Identity(name, (*groups, "system:authenticated"))


def _bound(kept: dict[Any, Any]) -> None:
    """Forget the older half of a full table."""
    if len(kept) >= MOST_KEPT:
        for key in list(kept)[: MOST_KEPT // 2]:
            del kept[key]
