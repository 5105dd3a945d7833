from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.engine.images.conftest import busybox, make_store, registry, store

from longshore.engine.images.store import ImageStore

from .kit import Kit

__all__ = ["make_store", "registry", "store"]


@pytest.fixture
async def kit(store: ImageStore, tmp_path: Path) -> AsyncIterator[Kit]:
    await busybox(store)
    made = Kit(store, tmp_path)
    await made.start()
    yield made
    await made.close()
