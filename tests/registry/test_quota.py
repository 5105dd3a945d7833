"""How much repositories may hold, and the command's flags about it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from longshore.cli.main import UserError
from longshore.cli.parts.registry import size_of
from longshore.machinery.http import Client
from longshore.registry.blobs import Quota

from .test_protocol import Remote, digest, errors


async def test_a_repository_holds_no_more_than_its_quota(registry: Any, client: Client) -> None:
    host = await registry(quotas=[Quota("team/*", 1000), Quota("*", 5000)])
    remote = Remote(client, host, "team/a")
    first = await remote.blob(b"a" * 600)
    begun = await remote("POST", "blobs/uploads/")
    location = begun.headers.get("Location") or ""
    refused = await remote("PATCH", location, b"b" * 500)
    assert refused.status == 403
    error = json.loads(await refused.read())["errors"][0]
    assert error["code"] == "DENIED" and error["message"] == "quota of 1000 bytes exceeded"
    assert error["detail"] == {"repository": "team/a", "quota": 1000, "used": 600}
    # What was begun is gone; what still fits goes in, also in one request.
    assert await errors(await remote("GET", location)) == "BLOB_UPLOAD_UNKNOWN"
    data = b"c" * 400
    assert (await remote("POST", f"blobs/uploads/?digest={digest(data)}", data)).status == 201
    assert (await remote("POST", f"blobs/uploads/?digest={digest(b'd')}", b"d")).status == 403
    # Another repository has room of its own, but not for a blob that is too large for it.
    other = Remote(client, host, "team/b")
    assert (await other("POST", f"blobs/uploads/?mount={first}&from=team/a")).status == 201
    big = Remote(client, host, "elsewhere")
    held = await big.blob(b"e" * 2000)
    assert (await other("POST", f"blobs/uploads/?mount={held}&from=elsewhere")).status == 403
    # What is deleted makes room.
    assert (await remote("DELETE", f"blobs/{first}")).status == 202
    await remote.blob(b"d")


@pytest.mark.parametrize(
    ("text", "size"), [("10", 10), ("1.5kB", 1500), ("20GB", 20 * 10**9), ("3m", 3 * 10**6), ("1T", 10**12)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1xb"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(UserError):
        size_of(text)
