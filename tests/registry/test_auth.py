"""Passwords, tokens and permissions."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from longshore.machinery.http import Client
from longshore.registry.auth import Access, Grant, Passwords, _crypt
from longshore.registry.tokens import kept_key

from .test_protocol import Remote, digest


def password_file(path: Path, **users: str) -> Path:
    lines = []
    for user, password in users.items():
        made = subprocess.run(["openssl", "passwd", "-6", password], capture_output=True, text=True, check=True)
        lines.append(f"{user}:{made.stdout.strip()}\n")
    path.write_text("".join(lines))
    return path


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def test_basic(registry: Any, client: Client, tmp_path: Path) -> None:
    host = await registry(htpasswd=password_file(tmp_path / "p", ann="secret"))
    remote = Remote(client, host)
    asked = await remote("GET", "/v2/")
    assert asked.status == 401 and (asked.headers.get("WWW-Authenticate") or "").startswith("Basic realm=")
    assert json.loads(await asked.read())["errors"][0]["code"] == "UNAUTHORIZED"
    for user, password, status in (
        ("ann", "secret", 200),
        ("ann", "wrong", 401),
        ("bob", "secret", 401),
        ("", "", 401),
    ):
        assert (await remote("GET", "/v2/", authorization=basic(user, password))).status == status
    # The file is read again when it changes.
    password_file(tmp_path / "p", ann="other", bob="more")
    assert (await remote("GET", "/v2/", authorization=basic("ann", "secret"))).status == 401
    assert (await remote("GET", "/v2/", authorization=basic("bob", "more"))).status == 200


async def test_bcrypt(tmp_path: Path) -> None:
    hashed = _crypt("password", "$2b$05$abcdefghijklmnopqrstuu")
    assert hashed.startswith("$2b$05$")
    (tmp_path / "p").write_text(f"# comment\nuser:{hashed}\n")
    passwords = Passwords(tmp_path / "p")
    assert await passwords.check("user", "password") and await passwords.check("user", "password")
    assert not await passwords.check("user", "wrong") and not await passwords.check("nobody", "password")


async def test_permissions(registry: Any, client: Client, tmp_path: Path) -> None:
    passwords = Passwords(password_file(tmp_path / "p", ann="a", bob="b"))
    grants = (Grant("ann", "team/*", ("*",)), Grant("*", "public/*", ("pull",)), Grant("", "public/*", ("pull",)))
    host = await registry(access=Access(passwords, grants=grants))
    ann = basic("ann", "a")
    team, public = Remote(client, host, "team/app"), Remote(client, host, "public/x")
    begun = await team("POST", f"blobs/uploads/?digest={digest(b'x')}", b"x", authorization=ann)
    assert begun.status == 201
    assert (await team("GET", f"blobs/{digest(b'x')}", authorization=basic("bob", "b"))).status == 403
    assert (await team("GET", f"blobs/{digest(b'x')}")).status == 401
    assert (await public("POST", "blobs/uploads/", authorization=basic("bob", "b"))).status == 403
    assert (await public("GET", "tags/list")).status == 404  # allowed, and not there
    # What one may not read cannot be had by mounting it.
    mine = Remote(client, host, "team/other")
    stolen = await Remote(client, host, "public/y")(
        "POST", f"blobs/uploads/?mount={digest(b'x')}&from=team/app", authorization=ann
    )
    assert stolen.status == 403
    assert (await mine("POST", f"blobs/uploads/?mount={digest(b'x')}&from=team/app", authorization=ann)).status == 201


async def test_tokens_of_its_own(registry: Any, client: Client, tmp_path: Path) -> None:
    passwords = Passwords(password_file(tmp_path / "p", ann="a"))
    grants = (Grant("ann", "team/*", ("pull", "push")), Grant("", "team/*", ("pull",)))
    host = await registry(access=Access(passwords, token_realm="own", grants=grants))
    remote = Remote(client, host, "team/app")
    asked = await remote("POST", "blobs/uploads/")
    challenge = asked.headers.get("WWW-Authenticate") or ""
    assert f'realm="http://{host}/token"' in challenge and 'scope="repository:team/app:pull,push"' in challenge

    async def token(*scopes: str, **headers: str) -> str:
        query = "&".join(f"scope={scope}" for scope in scopes)
        answer = await remote("GET", f"/token?service=longshore-registry&{query}", **headers)
        assert answer.status == 200
        return "Bearer " + json.loads(await answer.read())["token"]

    push = await token("repository:team/app:pull,push", authorization=basic("ann", "a"))
    assert (await remote("POST", "blobs/uploads/", authorization=push)).status == 202
    anonymous = await token("repository:team/app:pull,push")
    assert (await remote("POST", "blobs/uploads/", authorization=anonymous)).status == 401
    assert (await remote("GET", "tags/list", authorization=anonymous)).status in (200, 404)
    other = await token("repository:team/other:pull,push", authorization=basic("ann", "a"))
    assert (await remote("POST", "blobs/uploads/", authorization=other)).status == 401
    assert (await remote("GET", "/token", authorization=basic("ann", "no"))).status == 401
    assert (await remote("GET", "/v2/", authorization="Bearer " + push[8:-2] + "xx")).status == 401
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    "path",
    ["/v2/a/blobs/uploads/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/v2/../../etc/passwd", "/v2/a/manifests/..%2f..%2fx"],
)
async def test_paths_lead_nowhere(registry: Any, client: Client, path: str) -> None:
    remote = Remote(client, await registry())
    assert (await remote("GET", path)).status in (400, 404)


async def test_tokens_the_oauth_way(registry: Any, client: Client, tmp_path: Path) -> None:
    """As containerd asks: POST with a form; a refresh token stands for the password, until that changes."""
    path = password_file(tmp_path / "p", ann="a")
    key = kept_key(tmp_path / "key")
    remote = Remote(client, await registry(access=Access(Passwords(path), token_realm="own", key=key)), "team/app")

    async def ask(**form: str) -> tuple[int, dict[str, Any]]:
        form = {"service": "longshore-registry", "scope": "repository:team/app:pull,push", **form}
        answer = await remote(
            "POST", "/token", urlencode(form).encode(), content_type="application/x-www-form-urlencoded"
        )
        return answer.status, json.loads(await answer.read())

    status, found = await ask(grant_type="password", username="ann", password="a", access_type="offline")
    assert status == 200
    assert (await remote("POST", "blobs/uploads/", authorization="Bearer " + found["access_token"])).status == 202
    refresh = found["refresh_token"]
    assert "refresh_token" not in (await ask(grant_type="password", username="ann", password="a"))[1]
    assert (await ask(grant_type="password", username="ann", password="no"))[0] == 401
    assert (await ask(grant_type="client_credentials"))[0] == 400
    # Another start of the same registry takes it as well; as an access token it is of no use.
    again = Access(Passwords(path), token_realm="own", key=kept_key(tmp_path / "key"))
    remote = Remote(client, await registry(access=again), "team/app")
    status, found = await ask(grant_type="refresh_token", refresh_token=refresh)
    assert status == 200 and found["refresh_token"] == refresh
    assert (await remote("POST", "blobs/uploads/", authorization="Bearer " + found["access_token"])).status == 202
    assert (await remote("POST", "blobs/uploads/", authorization="Bearer " + refresh)).status == 401
    assert (await ask(grant_type="refresh_token", refresh_token=found["access_token"]))[0] == 401
    password_file(tmp_path / "p", ann="another")
    assert (await ask(grant_type="refresh_token", refresh_token=refresh))[0] == 401
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
