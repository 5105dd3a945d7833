"""What a fresh server makes by itself, and makes again when it is gone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from longshore.machinery.errors import StatusError

if TYPE_CHECKING:
    from longshore.master.apiserver.server import APIServer

Object = dict[str, Any]
log = logging.getLogger("longshore.apiserver.bootstrap")
NAMESPACES = ("kube-system", "kube-public", "kube-node-lease", "default")


class Bootstrap:
    """Creates the objects that upstream's server creates."""

    def __init__(self, server: APIServer) -> None:
        self.server = server

    async def run(self) -> None:
        await self._namespaces()

    async def ensure(self, group: str, resource: str, namespace: str, obj: Object) -> None:
        """Create an object unless it is there."""
        if self.server.api.get(group, resource, namespace, obj["metadata"]["name"]) is not None:
            return
        try:
            await self.server.api.create(group, resource, namespace, obj)
        except StatusError as error:
            if error.reason != "AlreadyExists":
                log.warning("%s %s could not be made: %s", resource, obj["metadata"]["name"], error.message)

    async def _namespaces(self) -> None:
        for name in NAMESPACES:
            await self.ensure("", "namespaces", "", {"metadata": {"name": name}})
