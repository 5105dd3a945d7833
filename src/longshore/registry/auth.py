"""Who may do what: nobody asked (open), htpasswd, or tokens of a token server (this registry's own or another).

Source: distribution docs "Docker Registry v2 authentication"; passwords by libcrypt (bcrypt, SHA-crypt), so that a file
made by `htpasswd -B` works.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ctypes
import fnmatch
import hashlib
import hmac
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longshore.machinery.http import Request
from longshore.registry.errors import RegistryError

_DUMMY = "$2y$05$abcdefghijklmnopqrstuuE4Hh0fF2zJ3m0qE8m0Q0Jd5sQm7vY2W"
_crypt_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Grant:
    """One line of per-repository permissions: user ("*": all, "": who did not log in), repository glob, actions."""

    user: str
    repository: str
    actions: tuple[str, ...]


def _crypt(password: str, hashed: str) -> str:
    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    with _crypt_lock:
        result = library.crypt(password.encode(), hashed.encode())
    return result.decode() if result else "*"


class Passwords:
    """An htpasswd file, read again when it changes; right passwords are remembered (bcrypt is slow on purpose)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] = (0, 0)
        self._users: dict[str, str] = {}
        self._key = secrets.token_bytes(16)
        self._right: set[bytes] = set()

    def _load(self) -> None:
        info = self._path.stat()
        stamp = info.st_mtime_ns, info.st_size
        if stamp == self._stamp:
            return
        users: dict[str, str] = {}
        for line in self._path.read_text().splitlines():
            user, colon, hashed = line.strip().partition(":")
            if colon and not user.startswith("#"):
                users[user] = hashed
        self._users, self._stamp, self._right = users, stamp, set()

    def mark(self, user: str) -> str:
        """What changes with a user's password, "" for one who is none."""
        self._load()
        hashed = self._users.get(user)
        return hashlib.sha256(f"{user}\0{hashed}".encode()).hexdigest()[:16] if hashed else ""

    async def check(self, user: str, password: str) -> bool:
        """Is this the user's password? The slow comparison runs in a thread, for unknown users as well."""
        self._load()
        hashed = self._users.get(user)
        mark = hmac.digest(self._key, f"{user}\0{password}\0{hashed}".encode(), "sha256")
        if mark in self._right:
            return True
        found = await asyncio.to_thread(_crypt, password, hashed or _DUMMY)
        if hashed is None or not hmac.compare_digest(found.encode(), hashed.encode()):
            return False
        if len(self._right) > 10000:
            self._right.clear()
        self._right.add(mark)
        return True


def basic_credentials(request: Request) -> tuple[str, str] | None:
    """User and password of an Authorization: Basic field."""
    scheme, _, text = (request.headers.get("Authorization") or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(text.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (user, password) if colon else None


@dataclass
class Access:
    """The registry's door.

    passwords: with them alone, Basic authentication is asked for. token_realm: the token server's URL ("own": this
    registry's /token); then Bearer tokens are asked for, signed by `key` (a PEM public key, or for "own" a secret made
    at the start), naming `issuer` and `service`. grants: per-repository permissions ((): a user who logged in may all).
    """

    passwords: Passwords | None = None
    token_realm: str = ""
    issuer: str = "longshore"
    service: str = "longshore-registry"
    key: str | bytes = field(default_factory=lambda: secrets.token_bytes(32))
    algorithms: Sequence[str] = ("HS256",)
    grants: Sequence[Grant] = ()

    async def user(self, name: str, password: str) -> str:
        """The user that a name and password are those of. Raises RegistryError(UNAUTHORIZED)."""
        if self.passwords is None or not await self.passwords.check(name, password):
            raise RegistryError("UNAUTHORIZED", headers=(("WWW-Authenticate", f'Basic realm="{self.service}"'),))
        return name

    @property
    def open(self) -> bool:
        return self.passwords is None and not self.token_realm

    def allowed(self, user: str, repository: str, action: str) -> bool:
        if not self.grants:
            return bool(user) or self.open
        return any(
            (grant.user == user or (grant.user == "*" and user))
            and fnmatch.fnmatchcase(repository, grant.repository)
            and (action in grant.actions or "*" in grant.actions)
            for grant in self.grants
        )

    async def check(self, request: Request, repository: str, actions: Sequence[str], base: str) -> str:
        """The user of a request who may do `actions` on `repository` ("": the registry itself); "" for nobody.

        base: this registry's URL as the client sees it. Raises RegistryError UNAUTHORIZED with a challenge, or DENIED.
        """
        if self.open:
            return ""
        if self.token_realm:
            return self._check_token(request, repository, actions, base)
        pair = basic_credentials(request)
        user = ""
        if pair is not None and self.passwords is not None and await self.passwords.check(*pair):
            user = pair[0]
        if not user and not (self.grants and repository and self._all("", repository, actions)):
            raise RegistryError(
                "UNAUTHORIZED",
                _detail(repository, actions),
                headers=(("WWW-Authenticate", f'Basic realm="{self.service}"'),),
            )
        if repository and not self._all(user, repository, actions):
            raise RegistryError("DENIED", _detail(repository, actions))
        return user

    def _all(self, user: str, repository: str, actions: Sequence[str]) -> bool:
        return all(self.allowed(user, repository, action) for action in actions)

    def _check_token(self, request: Request, repository: str, actions: Sequence[str], base: str) -> str:
        import jwt

        realm = f"{base}/token" if self.token_realm == "own" else self.token_realm
        challenge = f'Bearer realm="{realm}",service="{self.service}"'
        if repository:
            challenge += f',scope="repository:{repository}:{",".join(actions)}"'
        scheme, _, text = (request.headers.get("Authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise RegistryError(
                "UNAUTHORIZED", _detail(repository, actions), headers=(("WWW-Authenticate", challenge),)
            )
        try:
            claims: dict[str, Any] = jwt.decode(
                text.strip(),
                self.key,
                algorithms=list(self.algorithms),
                audience=self.service,
                issuer=self.issuer,
                leeway=60,
                options={"require": ["exp"]},
            )
        except jwt.PyJWTError:
            raise RegistryError(
                "UNAUTHORIZED",
                _detail(repository, actions),
                headers=(("WWW-Authenticate", challenge + ',error="invalid_token"'),),
            ) from None
        granted: set[str] = set()
        for item in claims.get("access") or []:
            if isinstance(item, dict) and item.get("type") == "repository" and item.get("name") == repository:
                granted.update(str(action) for action in item.get("actions") or [])
        if repository and "*" not in granted and not set(actions) <= granted:
            raise RegistryError(
                "UNAUTHORIZED" if not claims.get("sub") else "DENIED",
                _detail(repository, actions),
                status=401,
                headers=(("WWW-Authenticate", challenge + ',error="insufficient_scope"'),),
            )
        return str(claims.get("sub") or "")


def _detail(repository: str, actions: Sequence[str]) -> list[dict[str, str]] | None:
    if not repository:
        return None
    return [{"Type": "repository", "Class": "", "Name": repository, "Action": action} for action in actions]
