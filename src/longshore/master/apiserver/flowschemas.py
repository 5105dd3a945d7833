"""The condition Dangling of every FlowSchema: whether the priority level that it names is there.

Source: k8s.io/apiserver/pkg/util/flowcontrol/apf_controller.go (presyncFlowSchemaStatus, syncOne).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from longshore.api import times
from longshore.machinery.errors import StatusError
from longshore.master.apiserver.local import LocalAPI

Object = dict[str, Any]
log = logging.getLogger("longshore.apiserver.fairness")
GROUP = "flowcontrol.apiserver.k8s.io"
MANAGER = "api-priority-and-fairness-config-consumer-v1"
_RETRY_SECONDS = 1.0


def dangling(level: str, found: bool) -> Object:
    """The condition of a schema that names a priority level, as of now."""
    named = f'This FlowSchema references the PriorityLevelConfiguration object named "{level}"'
    return {
        "type": "Dangling",
        "status": "False" if found else "True",
        "lastTransitionTime": times.now(),
        "reason": "Found" if found else "NotFound",
        "message": f"{named} and it exists" if found else f"{named} but there is no such object",
    }


class FlowSchemaStatus:
    """Keeps the condition true while the server runs."""

    def __init__(self, api: LocalAPI) -> None:
        self._api = api
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Looks at all schemas when one of them, or a priority level, has changed."""
        for plural in ("flowschemas", "prioritylevelconfigurations"):
            self._api.on_change(GROUP, plural, lambda namespace, name: self._changed.set())
        while True:
            await self._changed.wait()
            self._changed.clear()
            for schema in self._api.list(GROUP, "flowschemas"):
                try:
                    await self._keep(schema)
                except StatusError as error:
                    # Somebody was faster: their change wakes us.
                    if error.code not in (404, 409):
                        log.warning("the status of flow schema %s: %s", schema["metadata"]["name"], error.message)
                        asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._changed.set)

    async def _keep(self, schema: Object) -> None:
        level = schema["spec"]["priorityLevelConfiguration"]["name"]
        wanted = dangling(level, self._api.peek(GROUP, "prioritylevelconfigurations", "", level) is not None)
        conditions = (schema.get("status") or {}).get("conditions") or []
        there: Object = next((c for c in conditions if c.get("type") == "Dangling"), {})
        if all(there.get(key) == wanted[key] for key in ("status", "reason", "message")):
            return
        others = [c for c in conditions if c.get("type") != "Dangling"]
        schema["status"] = {**(schema.get("status") or {}), "conditions": [*others, wanted]}
        await self._api.update(GROUP, "flowschemas", "", schema, "status", MANAGER)
