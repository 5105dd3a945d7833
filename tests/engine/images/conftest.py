from __future__ import annotations

import asyncio
import io
import subprocess
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longshore.engine.images import references
from longshore.engine.images.model import Image
from longshore.engine.images.store import ImageStore
from longshore.registry.server import serve

Start = Callable[..., Awaitable[str]]
BUSYBOX = "/bin/busybox"


def tar_of(files: dict[str, Any]) -> bytes:
    """A tar from name to content: bytes, ("link", target), ("hard", target), ("dir", mode) or a TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, what in files.items():
            info = tarfile.TarInfo(name)
            data = b""
            if isinstance(what, bytes):
                info.size, data = len(what), what
            elif isinstance(what, tarfile.TarInfo):
                info = what
            elif what[0] == "link":
                info.type, info.linkname = tarfile.SYMTYPE, what[1]
            elif what[0] == "hard":
                info.type, info.linkname = tarfile.LNKTYPE, what[1]
            elif what[0] == "dir":
                info.type, info.mode = tarfile.DIRTYPE, what[1]
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def busybox_tar() -> bytes:
    """A root with a static busybox and a link for each applet."""
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    binary = tarfile.TarInfo("bin/busybox")
    data = Path(BUSYBOX).read_bytes()
    binary.mode, binary.size = 0o755, len(data)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("bin", "etc", "tmp", "root", "usr/bin"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        archive.addfile(binary, io.BytesIO(data))
        passwd = b"root:x:0:0:root:/root:/bin/sh\nuser:x:5:6::/:/bin/sh\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(passwd)
        archive.addfile(entry, io.BytesIO(passwd))
        for applet in applets:
            if applet != "busybox":
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
    return out.getvalue()


async def once(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 65536):
        yield data[start : start + 65536]


async def imported(store: ImageStore, name: str, files: dict[str, Any], **options: Any) -> Image:
    return await store.import_(once(tar_of(files)), name=references.parse(name).with_default_tag(), **options)


async def busybox(store: ImageStore) -> Image:
    run = {"Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
    return await store.import_(
        once(busybox_tar()), name=references.parse("busybox:latest"), message="base", run_config=run
    )


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[Callable[..., ImageStore]]:
    """Makes stores; without a name the same one again stands for another engine's."""
    made: list[ImageStore] = []

    def make(name: str = "one", owner: str = "", **options: Any) -> ImageStore:
        store = ImageStore(tmp_path / name, state=tmp_path / f"{name}-{owner}state", owner=owner, **options)
        made.append(store)
        return store

    yield make
    for store in made:
        for (container,) in store.database.all("SELECT container FROM uses WHERE owner=?", store.owner):
            store.release(container)
        store.close()


@pytest.fixture
def store(make_store: Callable[..., ImageStore]) -> ImageStore:
    return make_store()


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts registries of ours; gives the host:port of each."""
    tasks: list[asyncio.Task[None]] = []

    async def start(**options: Any) -> str:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        options.setdefault("data_dir", tmp_path / f"registry{len(tasks)}")
        tasks.append(asyncio.create_task(serve(port=0, ready=port.set_result, **options)))
        return f"127.0.0.1:{await port}"

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
