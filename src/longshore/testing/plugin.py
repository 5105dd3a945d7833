"""The pytest plugin's entry point: fixtures that give a test a real API server of its own.

    def test_my_operator(longshore):
        core = kubernetes.client.CoreV1Api(longshore.client())

Nothing is imported until a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from longshore.testing.server import LoopThread, RunningAPIServer


@pytest.fixture(scope="session")
def _longshore_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopThread]:
    from longshore.testing.server import LoopThread

    thread = LoopThread(tmp_path_factory.mktemp("longshore"))
    yield thread
    thread.close()


@pytest.fixture
def longshore_factory(_longshore_thread: LoopThread) -> Iterator[Callable[..., RunningAPIServer]]:
    """Starts API servers: `longshore_factory(flags)` with kube-apiserver's flags; all end with the test."""
    started: list[RunningAPIServer] = []

    def start(*flags: str) -> RunningAPIServer:
        started.append(_longshore_thread.start(flags))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def longshore(longshore_factory: Callable[..., RunningAPIServer]) -> RunningAPIServer:
    """An API server of this test's own: store in memory, RBAC, validation, admission, custom resources, watches."""
    return longshore_factory()
