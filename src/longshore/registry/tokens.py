"""The registry's own token server: /token, asked with GET (Docker's way) or POST (OAuth 2).

Source: distribution docs/spec/auth/token.md and oauth.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from longshore.machinery.http import Request
from longshore.registry.auth import Access, basic_credentials
from longshore.registry.errors import RegistryError

_ACTIONS = ("pull", "push", "delete")
_LIFE = 300
_REFRESH_LIFE = 90 * 86400
_FORM_LIMIT = 65536
_SCOPE = re.compile(r"repository(?:\([^)]*\))?:(?P<name>[^:]+(?::\d+[^:]*)?):(?P<actions>[a-z,*]*)")


def kept_key(path: Path) -> bytes:
    """The key that tokens are signed with, made at first use: refresh tokens outlive a restart. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
    key = path.read_bytes()
    if len(key) < 32:
        raise OSError(f"{path}: not a key")
    return key


async def issue(access: Access, request: Request) -> dict[str, Any]:
    """A token for what the user may do of what was asked; with a refresh token where one is wanted.

    Raises RegistryError: UNAUTHORIZED for wrong credentials, UNSUPPORTED for a grant that is none.
    """
    asked = request.query
    grant = ""
    if request.method == "POST":
        asked = parse_qs((await request.read(_FORM_LIMIT)).decode("utf-8", "replace"))
        grant = (asked.get("grant_type") or [""])[0]
    user = await _user(access, request, asked, grant)
    now = int(time.time())
    claims = {
        "iss": access.issuer,
        "sub": user,
        "aud": access.service,
        "exp": now + _LIFE,
        "nbf": now - 10,
        "iat": now,
        "jti": secrets.token_hex(8),
        "access": _granted(access, user, asked.get("scope", [])),
    }
    token = _signed(access, claims)
    issued = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    answer: dict[str, Any] = {"token": token, "access_token": token, "expires_in": _LIFE, "issued_at": issued}
    if grant == "refresh_token":
        answer["refresh_token"] = asked["refresh_token"][0]
    elif user and ("true" in asked.get("offline_token", []) or "offline" in asked.get("access_type", [])):
        answer["refresh_token"] = _refresh_token(access, user, now)
    if grant:
        answer["scope"] = " ".join(asked.get("scope", []))
    return answer


async def _user(access: Access, request: Request, asked: dict[str, list[str]], grant: str) -> str:
    def given(name: str) -> str:
        return (asked.get(name) or [""])[0]

    if grant == "refresh_token":
        return _refreshed(access, given("refresh_token"))
    if grant == "password":
        return await access.user(given("username"), given("password"))
    if grant:
        raise RegistryError("UNSUPPORTED", f"grant type {grant[:100]!r}", status=400)
    pair = basic_credentials(request)
    return await access.user(*pair) if pair is not None else ""


def _granted(access: Access, user: str, scopes: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for text in (scope for value in scopes for scope in value.split()):
        match = _SCOPE.fullmatch(text)
        if not match:
            continue
        wanted = match["actions"].split(",") if match["actions"] != "*" else list(_ACTIONS)
        actions = [action for action in wanted if access.allowed(user, match["name"], action)]
        if actions:
            found.append({"type": "repository", "name": match["name"], "actions": actions})
    return found


def _signed(access: Access, claims: dict[str, Any]) -> str:
    import jwt

    return jwt.encode(claims, access.key, algorithm="HS256")


def _refresh_token(access: Access, user: str, now: int) -> str:
    """What a client keeps in a password's place. It ends with the password."""
    assert access.passwords is not None
    return _signed(
        access,
        {
            "iss": access.issuer,
            "sub": user,
            "aud": f"{access.service}/refresh",
            "exp": now + _REFRESH_LIFE,
            "mark": access.passwords.mark(user),
        },
    )


def _refreshed(access: Access, text: str) -> str:
    """The user of a refresh token. Raises RegistryError(UNAUTHORIZED)."""
    import jwt

    try:
        claims: dict[str, Any] = jwt.decode(
            text,
            access.key,
            algorithms=["HS256"],
            audience=f"{access.service}/refresh",
            issuer=access.issuer,
            options={"require": ["exp"]},
        )
    except jwt.PyJWTError:
        raise RegistryError("UNAUTHORIZED") from None
    user = str(claims.get("sub") or "")
    mark = access.passwords.mark(user) if access.passwords is not None else ""
    if not mark or mark != claims.get("mark"):
        raise RegistryError("UNAUTHORIZED")
    return user
