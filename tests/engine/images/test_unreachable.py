"""Registries that cannot be reached: found out once for all who wait, remembered for some seconds, never for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from longshore.engine.cri.images import Images
from longshore.engine.errors import SystemFailure
from longshore.engine.images import registries as module
from longshore.engine.images.distribution import Session
from longshore.engine.images.registries import Registries
from longshore.machinery.grpc import RpcError
from longshore.machinery.http.errors import ConnectError
from longshore.wire.cri import cri


class Dead:
    """Stands in for Session.ping: counts, and fails after a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.count, self.seconds = 0, seconds
        dead = self

        async def ping(self: Session) -> None:
            dead.count += 1
            await asyncio.sleep(dead.seconds)
            raise ConnectError("dial tcp: lookup registry.test: no such host")

        monkeypatch.setattr(Session, "ping", ping)


async def refused(registries: Registries, path: str) -> str:
    with pytest.raises(SystemFailure) as caught:
        await registries.session("registry.test", path, auth=None, actions="pull")
    return caught.value.message


async def test_a_slow_failure_is_shared_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW_FAILURE", 0.05)
    dead = Dead(monkeypatch, 0.2)
    registries = Registries()
    texts = await asyncio.gather(*(refused(registries, f"tools/{n}") for n in range(8)))
    assert dead.count == 1 and len(set(texts)) == 1 and "no such host" in texts[0]
    await refused(registries, "tools/9")
    assert dead.count == 1
    monkeypatch.setattr(module, "UNREACHABLE_SECONDS", 0.0)
    registries._unreachable.clear()
    await refused(registries, "tools/9")
    await refused(registries, "tools/9")
    assert dead.count == 3


async def test_a_quick_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that is just being started must not seem dead for seconds."""
    dead = Dead(monkeypatch, 0.0)
    registries = Registries()
    for _ in range(3):
        await refused(registries, "tools")
    assert dead.count == 3


class Store:
    """An image store whose pulls wait to be let go."""

    root = Path("/nonexistent")

    def __init__(self) -> None:
        self.count, self.cancelled = 0, 0
        self.go = asyncio.Event()

    async def pull(self, *_: Any, **__: Any) -> Any:
        self.count += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise SystemFailure("unreachable")

    def find(self, _: str) -> Any:
        raise SystemFailure("none")


def asked(name: str, user: str = "") -> Any:
    auth = cri.AuthConfig(username=user) if user else None
    return cri.PullImageRequest(image=cri.ImageSpec(image=name), auth=auth)


async def test_pulls_of_one_image_share_an_attempt() -> None:
    store = Store()
    images = Images(store)  # type: ignore[arg-type]
    pulls = [asyncio.create_task(images.pull_image(asked("tools"))) for _ in range(5)]
    other = asyncio.create_task(images.pull_image(asked("tools", "somebody")))
    await asyncio.sleep(0.01)
    # With other credentials the answer may be another.
    assert store.count == 2
    pulls[0].cancel()
    await asyncio.sleep(0.01)
    assert store.cancelled == 0
    store.go.set()
    results = await asyncio.gather(*pulls[1:], other, return_exceptions=True)
    assert all(isinstance(r, RpcError) for r in results) and not images._pulls


async def test_a_pull_that_nobody_waits_for_ends() -> None:
    store = Store()
    images = Images(store)  # type: ignore[arg-type]
    pulls = [asyncio.create_task(images.pull_image(asked("tools"))) for _ in range(2)]
    await asyncio.sleep(0.01)
    for pull in pulls:
        pull.cancel()
    await asyncio.gather(*pulls, return_exceptions=True)
    await asyncio.sleep(0.01)
    assert store.cancelled == 1 and not images._pulls
