from __future__ import annotations

import pytest

from support.admission import Objects


@pytest.fixture
def api() -> Objects:
    out = Objects()
    out.put("", "namespaces", {"metadata": {"name": "a"}, "status": {"phase": "Active"}})
    out.put("", "serviceaccounts", {"metadata": {"name": "default", "namespace": "a"}})
    return out
