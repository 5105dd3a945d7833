"""What the API server carries through to others: exec, attach, port-forward and log to kubelets; pod, service, node proxy.

Door: `Proxying(...).handlers()`, by (group, plural, subresource). Does not belong here: what a stream carries
(machinery.streams), who may open one (auth).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from longshore.machinery.http import Response
from longshore.master.apiserver.call import Call

if TYPE_CHECKING:
    from longshore.master.apiserver.admit import Admission
    from longshore.master.apiserver.context import API

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
    """Answers the connect subresources. The code that carries streams is loaded with the first of them.

    admission: asked with CONNECT before anything is opened. certificate, key, ca: see Kubelets.
    """

    def __init__(
        self,
        api: API,
        admission: Admission,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        ca: Path | None = None,
    ) -> None:
        self._arguments = api, admission, certificate, key, ca
        self._connects: Connects | None = None

    def handlers(self) -> dict[tuple[str, str, str], Handler]:
        """By (group, plural, subresource)."""
        return {subresource: partial(self._answer, subresource) for subresource in SUBRESOURCES}

    async def _answer(self, subresource: tuple[str, str, str], call: Call) -> Response | None:
        if self._connects is None:
            from .handlers import Connects

            api, admission, certificate, key, ca = self._arguments
            self._connects = Connects(api, admission, certificate=certificate, key=key, ca=ca)
        return await self._connects.handlers[subresource](call)

    async def close(self) -> None:
        if self._connects is not None:
            await self._connects.close()


__all__ = ["Proxying"]
