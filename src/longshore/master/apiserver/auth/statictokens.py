"""Tokens that are looked up: a file of them, and bootstrap tokens from Secrets.

Source: k8s.io/apiserver/pkg/authentication/token/tokenfile; kubernetes/plugin/pkg/auth/authenticator/token/bootstrap.
"""

from __future__ import annotations

import base64
import csv
import hmac
import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from longshore.master.apiserver.context import ObjectReader, UserInfo

from .authentication import Authenticated

log = logging.getLogger("longshore.apiserver.auth")
_BOOTSTRAP = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")
_GROUP = re.compile(r"system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]")
BOOTSTRAPPERS = "system:bootstrappers"


class TokenFile:
    """Lines of token,user,uid,"group,group"."""

    def __init__(self, path: Path) -> None:
        self._users: dict[str, UserInfo] = {}
        with path.open(newline="") as file:
            for row in csv.reader(file):
                if len(row) < 3:
                    raise ValueError(
                        f"token file {path} must have at least 3 columns (token, user name, user uid), found {len(row)}"
                    )
                groups = tuple(g.strip() for g in row[3].split(",") if g.strip()) if len(row) > 3 else ()
                if row[0]:
                    self._users.setdefault(row[0], UserInfo(row[1], row[2], groups))

    def authenticate_token(self, token: str, audiences: Sequence[str]) -> Authenticated | None:
        user = self._users.get(token)
        return Authenticated(user, list(audiences)) if user is not None else None


class BootstrapTokens:
    """Tokens of the form abcdef.0123456789abcdef, kept in Secrets of kube-system."""

    def __init__(self, api: ObjectReader) -> None:
        self._api = api

    def authenticate_token(self, token: str, audiences: Sequence[str]) -> Authenticated | None:
        match = _BOOTSTRAP.fullmatch(token)
        if match is None:
            return None
        id, secret = match.groups()
        found = self._api.get("", "secrets", "kube-system", f"bootstrap-token-{id}")
        if found is None or found["metadata"].get("deletionTimestamp"):
            return None
        if found.get("type") != "bootstrap.kubernetes.io/token":
            return None
        data: dict[str, str] = {}
        for key, value in (found.get("data") or {}).items():
            try:
                data[key] = base64.b64decode(value).decode()
            except ValueError:
                continue
        if data.get("token-id") != id or not hmac.compare_digest(
            data.get("token-secret", "").encode(), secret.encode()
        ):
            return None
        if expired(data.get("expiration", "")) or data.get("usage-bootstrap-authentication") != "true":
            return None
        groups = [BOOTSTRAPPERS]
        for group in sorted({g for g in data.get("auth-extra-groups", "").split(",") if g}):
            if not _GROUP.fullmatch(group):
                log.debug("bootstrap token %s names the invalid group %r", id, group)
                return None
            groups.append(group)
        return Authenticated(UserInfo(f"system:bootstrap:{id}", groups=tuple(groups)), list(audiences))


def expired(when: str) -> bool:
    """Whether the expiration of a bootstrap token has passed; one that cannot be read counts as passed."""
    if not when:
        return False
    try:
        moment = datetime.fromisoformat(when.replace("Z", "+00:00"))
    except ValueError:
        return True
    return moment.tzinfo is None or moment <= datetime.now(UTC)
