from __future__ import annotations

from tests.engine.images.conftest import make_store, registry, store

__all__ = ["make_store", "registry", "store"]
