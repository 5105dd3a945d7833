"""A build's context: the client's tar (or a URL's content) unpacked into a folder, with its Dockerfile."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from longshore.engine.build import git, ignore
from longshore.engine.build.ignore import Ignore
from longshore.engine.errors import EngineError, InvalidParameter, SystemFailure
from longshore.engine.images import compression
from longshore.engine.images.compression import BrokenStream
from longshore.engine.images.database import own_process
from longshore.engine.images.extract import ExtractError, Extractor, remove_path
from longshore.engine.images.streams import consume, in_thread
from longshore.machinery import rooted
from longshore.wire.tar import TarError, TarReader

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore

_DOCKERFILE_LIMIT = 4 << 20
DEFAULT_NAME = "Dockerfile"


class Context:
    """An unpacked context. root: its folder; whole: the folder to remove with it; name, dockerfile: the Dockerfile's path
    in it and its bytes."""

    def __init__(self, root: Path) -> None:
        self.root = self.whole = root
        self.name = DEFAULT_NAME
        self.dockerfile = b""
        self.hidden: Ignore | None = None
        self.alone = False  # nothing but a Dockerfile

    def read(self, name: str) -> None:
        """Take the Dockerfile from the context. Raises SystemFailure, InvalidParameter."""
        self.name = name or DEFAULT_NAME
        try:
            data = rooted.read_file(self.root, self.name, _DOCKERFILE_LIMIT + 1)
        except OSError:
            if name and name != DEFAULT_NAME:
                raise SystemFailure(f"Cannot locate specified Dockerfile: {self.name}") from None
            try:
                data = rooted.read_file(self.root, "dockerfile", _DOCKERFILE_LIMIT + 1)
            except OSError:
                raise SystemFailure(f"Cannot locate specified Dockerfile: {self.name}") from None
        if not data:
            raise InvalidParameter(f"the Dockerfile ({self.name}) cannot be empty")
        self.dockerfile = data
        try:
            patterns = ignore.parse(rooted.read_file(self.root, ".dockerignore", _DOCKERFILE_LIMIT))
        except OSError:
            return
        rules = Ignore(patterns)
        # The client left out what the file says, but had to send these two.
        names = [file for file in (".dockerignore", self.name) if rules.matches(file)]
        self.hidden = Ignore(names) if names else None

    async def close(self) -> None:
        await in_thread(remove_path, self.whole)


def new_folder(store: ImageStore) -> Path:
    """A folder for a context; its name tells the process, so that a later start can clean up after a crash."""
    pid, start = own_process()
    folder = store.root / "builds" / f"context-{pid}-{start}-{secrets.token_hex(6)}"
    folder.mkdir(mode=0o700, parents=True)
    return folder


async def from_tar(store: ImageStore, body: AsyncIterable[bytes], name: str | None) -> Context:
    """The context that a request's body holds (a tar in any compression). name: its Dockerfile (None: not read).

    Raises EngineError.
    """
    folder = new_folder(store)

    def work(read: Callable[[int], bytes]) -> None:
        reader = TarReader(compression.reader(read))
        space = os.statvfs(folder)
        with Extractor(folder, whiteouts="keep", keep_dirs=False, limit=space.f_bavail * space.f_frsize) as extractor:
            extractor.extract(reader)

    context = Context(folder)
    try:
        await consume(body, work)
        if name is not None:
            context.read(name)
    except (TarError, BrokenStream, ExtractError) as error:
        await context.close()
        raise SystemFailure(str(error)) from None
    except BaseException:
        await context.close()
        raise
    return context


async def from_git(store: ImageStore, reference: git.GitReference, name: str) -> Context:
    """The context that a git repository is. Raises EngineError."""
    folder = Context(new_folder(store))
    try:
        await git.checkout(reference, folder.root)
        context = Context(await git.inner(folder.root, reference))
        context.whole = folder.root
        context.read(name)
    except EngineError as error:
        await folder.close()
        raise type(error)(f"unable to prepare context: {error.message}") from None
    except BaseException:
        await folder.close()
        raise
    return context


async def from_url(store: ImageStore, url: str, name: str | None) -> Context:
    """The context at an http(s) URL: a tar, or a Dockerfile alone. name: as for from_tar. Raises EngineError."""
    from longshore.engine.images.distribution import connection_text
    from longshore.machinery.http import Client
    from longshore.machinery.http.errors import ClientError

    if not url.startswith(("http://", "https://")):
        raise SystemFailure(f"Error downloading remote context {url}: unsupported scheme")
    failed = f"error downloading remote context {url}: "
    async with Client() as client:
        try:
            response = await client.request("GET", url, timeout=None)
        except (ClientError, TimeoutError) as error:
            raise SystemFailure(failed + connection_text("GET", url, error)) from None
        if response.status >= 400:
            raise InvalidParameter(f"{failed}failed to GET {url} with status {response.status} {response.reason}: ")
        kind = (response.headers.get("Content-Type") or "").partition(";")[0].strip()
        if kind != "text/plain":
            return await from_tar(store, response.chunks(), name)
        data = await response.read(_DOCKERFILE_LIMIT)
    context = Context(new_folder(store))
    (context.root / DEFAULT_NAME).write_bytes(data)
    context.alone = True
    try:
        context.read(DEFAULT_NAME)
    except BaseException:
        await context.close()
        raise
    return context
