from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from longshore.machinery.http import Client
from longshore.registry.server import serve

Start = Callable[..., Awaitable[str]]


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts registries; gives the host:port of each."""
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


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Client() as made:
        yield made
