"""Asking someone else: TokenReview and SubjectAccessReview over HTTPS, answers remembered for a while.

Source: k8s.io/apiserver/plugin/pkg/authenticator/token/webhook, plugin/pkg/authorizer/webhook (retries, cache times).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson

from longshore.master.apiserver.context import NO_OPINION, Attributes, Decision, UserInfo
from longshore.master.apiserver.remote import Remembered, Remote

from .authentication import Authenticated
from .jwt import TokenError
from .rules import Resolution

log = logging.getLogger("longshore.apiserver.auth")
TOKEN_SECONDS, ALLOWED_SECONDS, DENIED_SECONDS = 120.0, 300.0, 30.0
TIMEOUT = 30.0


async def _ask(remote: Remote, review: dict[str, Any]) -> dict[str, Any]:
    """The status of a review that another server has answered. OSError, TimeoutError or ValueError."""
    found = orjson.loads(await remote.post(orjson.dumps(review)))
    status = found.get("status") if isinstance(found, dict) else None
    if not isinstance(status, dict):
        raise ValueError("webhook answered without a status")
    return status


class TokenWebhook:
    """Tokens that another server knows."""

    def __init__(self, file: Path) -> None:
        self._webhook = Remote(file)
        self._known = Remembered()

    async def authenticate_token(self, token: str, audiences: Sequence[str]) -> Authenticated | None:
        key = (hashlib.sha256(token.encode()).digest(), tuple(audiences))
        found: Authenticated | None = self._known.find(key)
        if found is not None:
            return found
        spec: dict[str, Any] = {"token": token}
        if audiences:
            spec["audiences"] = list(audiences)
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": spec}
        try:
            status = await _ask(self._webhook, review)
        except (OSError, ValueError, TimeoutError) as error:
            raise TokenError(str(error)) from error
        if not status.get("authenticated"):
            if status.get("error"):
                raise TokenError(str(status["error"]))
            return None
        told = list(status.get("audiences") or ())
        common = [a for a in told if a in audiences] if told and audiences else list(audiences)
        if audiences and told and not common:
            return None
        user = status.get("user") or {}
        found = Authenticated(
            UserInfo(
                str(user.get("username") or ""),
                str(user.get("uid") or ""),
                tuple(user.get("groups") or ()),
                {k.lower(): list(v) for k, v in (user.get("extra") or {}).items()},
            ),
            common,
        )
        self._known.keep(key, found, TOKEN_SECONDS)
        return found


class AuthorizationWebhook:
    """Lets another server decide.

    timeout, allowed_seconds, denied_seconds: of one question, and for how long answers are remembered.
    deny_on_error: refuse when the server cannot be asked, instead of asking the next authorizer.
    applies: whether a question goes to this server at all; what it raises counts as an error.
    """

    def __init__(
        self,
        file: Path,
        *,
        timeout: float = TIMEOUT,
        allowed_seconds: float = ALLOWED_SECONDS,
        denied_seconds: float = DENIED_SECONDS,
        deny_on_error: bool = False,
        applies: Callable[[dict[str, Any]], bool] | None = None,
    ) -> None:
        self._webhook = Remote(file, timeout=timeout)
        self._known = Remembered()
        self._seconds = (allowed_seconds, denied_seconds)
        self._on_error: Literal["deny", "no opinion"] = "deny" if deny_on_error else "no opinion"
        self._applies = applies

    async def authorize(self, a: Attributes) -> Decision:
        spec = review_spec(a)
        if self._applies is not None:
            try:
                if not self._applies(spec):
                    return NO_OPINION
            except ValueError as error:
                return Decision(self._on_error, str(error))
        key = orjson.dumps(spec, option=orjson.OPT_SORT_KEYS)
        found: Decision | None = self._known.find(key)
        if found is not None:
            return found
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": spec}
        try:
            status = await _ask(self._webhook, review)
        except (OSError, ValueError, TimeoutError) as error:
            log.warning("Failed to make webhook authorizer request: %s", error)
            return Decision(self._on_error, str(error))
        reason = str(status.get("reason") or "")
        if status.get("allowed") and status.get("denied"):
            return Decision("deny", "webhook subject access review returned both allow and deny response")
        if status.get("denied"):
            decision = Decision("deny", reason)
        elif status.get("allowed"):
            decision = Decision("allow", reason)
        else:
            decision = Decision("no opinion", reason)
        self._known.keep(key, decision, self._seconds[0 if decision.allowed else 1])
        return decision

    def resolve(self, user: UserInfo, namespace: str) -> Resolution:
        return Resolution(problems=["webhook authorizer does not support user rule resolution"], incomplete=True)


def review_spec(a: Attributes) -> dict[str, Any]:
    """The spec of a SubjectAccessReview that asks for `a`."""
    user = a.user
    spec: dict[str, Any] = {"user": user.name}
    if user.uid:
        spec["uid"] = user.uid
    if user.groups:
        spec["groups"] = list(user.groups)
    if user.extra:
        spec["extra"] = {k: list(v) for k, v in user.extra.items()}
    if not a.is_resource:
        spec["nonResourceAttributes"] = {"path": a.path, "verb": a.verb}
        return spec
    resource: dict[str, Any] = {}
    for name in ("namespace", "verb", "group", "version", "resource", "subresource", "name"):
        if value := getattr(a, name):
            resource[name] = value
    for field, text in (("labelSelector", a.label_selector), ("fieldSelector", a.field_selector)):
        if text:
            resource[field] = {"rawSelector": text}
    spec["resourceAttributes"] = resource
    return spec
