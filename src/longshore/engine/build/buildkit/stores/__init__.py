"""Object stores that hold caches of steps: Amazon S3 (and what speaks its protocol), GitHub Actions' cache.

Each has blobs by digest and a document by name; `caches` knows what is in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from longshore.engine.errors import SystemFailure
from longshore.engine.images.distribution import connection_text
from longshore.machinery.http import Client
from longshore.machinery.http.errors import ClientError

if TYPE_CHECKING:
    from longshore.engine.images.packed import Blob
    from longshore.machinery.http import ClientResponse

#: Kinds of caches that are here.
KINDS = ("s3", "gha")


class Store(Protocol):
    """Where a cache lies. All raise SystemFailure."""

    shown: str

    async def put(self, blob: Blob) -> bool:
        """Bring a layer there; False where it is already."""
        ...

    async def blob(self, digest: str, *, offset: int = 0) -> ClientResponse:
        """A blob's content from an offset on, as an answer with status 200 or 206."""
        ...

    async def save(self, document: bytes) -> None: ...

    async def load(self) -> list[bytes]:
        """The documents that were saved (several where several may write), none where there is none."""
        ...

    async def close(self) -> None: ...


def open_store(kind: str, attributes: Mapping[str, str]) -> Store:
    """The store that a client names. Raises InvalidParameter."""
    if kind == "s3":
        from longshore.engine.build.buildkit.stores.s3 import S3

        return S3(attributes)
    from longshore.engine.build.buildkit.stores.gha import Gha

    return Gha(attributes)


async def ask(client: Client, method: str, url: str, **more: Any) -> ClientResponse:
    """A request; SystemFailure in Go's words where there is no answer."""
    try:
        return await client.request(method, url, **more)
    except (ClientError, TimeoutError) as error:
        raise SystemFailure(connection_text(method, url, error)) from None
