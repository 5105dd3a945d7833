"""What the API server carries through to others: exec, attach, port-forward and log to kubelets; pod, service, node proxy.

Door: `Proxying(...).handlers()`, by (group, plural, subresource). Does not belong here: what a stream carries
(machinery.streams), who may open one (auth).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from longshore.machinery.http import Response
from longshore.master.apiserver.call import Call

if TYPE_CHECKING:
    from .handlers import Connects

Handler = Callable[[Call], Awaitable[Response | None]]
SUBRESOURCES = (
    ("", "pods", "exec"),
    ("", "pods", "attach"),
    ("", "pods", "portforward"),
    ("", "pods", "log"),
    ("", "pods", "proxy"),
    ("", "services", "proxy"),
    ("", "nodes", "proxy"),
)


class Proxying:
    """Answers the connect subresources. load: makes what does so, and is called with the first of them."""

    def __init__(self, load: Callable[[], Connects]) -> None:
        self._load = load
        self._connects: Connects | None = None

    def handlers(self) -> dict[tuple[str, str, str], Handler]:
        """By (group, plural, subresource)."""
        return {subresource: partial(self._answer, subresource) for subresource in SUBRESOURCES}

    async def _answer(self, subresource: tuple[str, str, str], call: Call) -> Response | None:
        if self._connects is None:
            self._connects = self._load()
        return await self._connects.handlers[subresource](call)

    async def close(self) -> None:
        if self._connects is not None:
            await self._connects.close()


__all__ = ["Proxying"]
