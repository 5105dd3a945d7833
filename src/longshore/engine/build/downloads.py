"""Files at URLs: fetched for ADD, and kept by their entity tag, so that an unchanged one is asked after only.

Source: moby builder/dockerfile/copy.go (the classic builder fetches always), BuildKit source/http.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import orjson

from longshore.engine.build.folders import REGULAR, Folders
from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.engine.images.distribution import connection_text
from longshore.engine.images.model import ENGINE_VERSION
from longshore.engine.images.streams import in_thread
from longshore.machinery.http.errors import ClientError

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore
    from longshore.machinery.http import ClientResponse

_AGENT = ("User-Agent", f"buildkit/v{ENGINE_VERSION}")


class Kept:
    """What earlier builds fetched from one URL. slot: its folder in the build cache."""

    def __init__(self, slot: Path) -> None:
        self._slot = slot
        self.note: dict[str, Any] = {}
        try:
            self.note = orjson.loads((self._slot / "note").read_bytes())
            self.etag = str(self.note["etag"])
        except (OSError, ValueError, KeyError, TypeError):
            self.etag = ""

    def holds(self, response: ClientResponse) -> bool:
        """Does an answer to a request with the tag mean the file that is here?"""
        tag = _tag(response)
        return response.status in (200, 304) and (tag == self.etag or (not tag and response.status == 304))

    def give(self, path: Path) -> None:
        """Put the kept file to a path. Raises OSError. In a thread."""
        shutil.copyfile(self._slot / str(self.note["file"]), path)

    def keep(self, path: Path, etag: str, headers: Mapping[str, str]) -> None:
        """Keep a fetched file in place of the one before. In a thread."""
        name = secrets.token_hex(8)
        self._slot.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, self._slot / name)
        fresh = self._slot / f"note-{name}"
        fresh.write_bytes(orjson.dumps({"etag": etag, "file": name, **headers}))
        fresh.rename(self._slot / "note")
        # The note says which file is meant: one that an engine left half-written is never taken.
        for old in self._slot.iterdir():
            if old.name not in (name, "note"):
                old.unlink(missing_ok=True)


async def fetch(store: ImageStore, url: str, folder: Path, other: str = "") -> str:
    """Fetch a URL as BuildKit does: what is here already and has not changed is taken from the cache. See download()."""
    with Folders(store).using(f"http {url}", REGULAR, f"http url {url}") as slot:
        return await download(url, folder, other, kept=Kept(slot))


def _tag(response: ClientResponse) -> str:
    return (response.headers.get("ETag") or "").removeprefix("W/")


async def download(url: str, folder: Path, other: str = "", *, kept: Kept | None = None) -> str:
    """Fetch a URL into a folder; the file's name. other: the name where the URL has none ("": it must have one).

    kept: as BuildKit fetches, with the file of an earlier build where the server says that it is the same.
    Raises InvalidParameter, SystemFailure.
    """
    from longshore.machinery.http import Client

    if kept is None:
        _name(url, other, None)
    async with Client() as client:
        try:
            if kept is not None and kept.etag:
                # Servers that give tags do not always compare them: HEAD, and the comparison is made here.
                wanted = [_AGENT, ("If-None-Match", kept.etag)]
                head = await client.request("HEAD", url, headers=[*wanted, ("Accept-Encoding", "gzip")])
                await head.close()
                if kept.holds(head):
                    with contextlib.suppress(OSError):
                        name = _name(url, other, head)
                        await in_thread(kept.give, folder / name)
                        _finish(folder / name, str(kept.note.get("modified") or ""))
                        return name
            response = await client.request("GET", url, headers=[_AGENT])
            if response.status >= 400 or response.status < 200:
                if kept is not None:
                    raise SystemFailure(f"invalid response status {response.status}")
                raise SystemFailure(
                    f"ADD failed: failed to GET {url} with status {response.status} {response.reason}: "
                )
            name = _name(url, other, response if kept is not None else None)
            with open(folder / name, "wb") as file:
                async for data in response.chunks():
                    await in_thread(file.write, data)
        except (ClientError, TimeoutError) as error:
            raise SystemFailure("ADD failed: " + connection_text("GET", url, error)) from None
    modified = response.headers.get("Last-Modified") or ""
    if kept is not None and _tag(response):
        await in_thread(kept.keep, folder / name, _tag(response), {"modified": modified})
    _finish(folder / name, modified)
    return name


def _name(url: str, other: str, response: ClientResponse | None) -> str:
    """The file's name: what the server says (where it is asked), else the URL's last part. Raises InvalidParameter."""
    told = (response.headers.get("Content-Disposition") or "") if response is not None else ""
    found = re.search(r'filename="?([^";]+)"?', told)
    for name in (posixpath.basename(found[1]) if found else "", unquote(posixpath.basename(urlsplit(url).path)), other):
        if name and name not in (".", "..") and "/" not in name and "\0" not in name:
            return name
    raise InvalidParameter(f"cannot determine filename from url: {url}")


def _finish(path: Path, modified: str) -> None:
    """Mode and time of a fetched file."""
    os.chmod(path, 0o600)
    when = 0.0
    if modified:
        from email.utils import parsedate_to_datetime

        with contextlib.suppress(ValueError, TypeError):
            when = parsedate_to_datetime(modified).timestamp()
    os.utime(path, (when, when))


def verify(path: Path, checksum: str) -> None:
    """Raises SystemFailure where a file is not what --checksum says. In a thread."""
    algorithm = checksum.partition(":")[0]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if f"{algorithm}:{found}" != checksum:
        raise SystemFailure(f"digest mismatch {algorithm}:{found}: {checksum}")
