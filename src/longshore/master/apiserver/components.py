"""componentstatuses: whether the store answers, and whether the leases of scheduler and controllers are held.

Upstream asks two fixed ports of its own machine; here the parts may be anywhere, so what they last said counts.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from longshore.machinery.errors import not_found
from longshore.machinery.http import Response
from longshore.master.apiserver import rendering
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.selection import selection

Object = dict[str, Any]
_LEASES = {"controller-manager": "kube-controller-manager", "scheduler": "kube-scheduler"}
_DEPRECATED = "v1 ComponentStatus is deprecated in v1.19+"


class Components:
    """Answers GET and LIST. api: LocalAPI; store_alive: "" when the store answers, else what is wrong."""

    def __init__(self, api: Any, store_alive: Callable[[], str]) -> None:
        self._api = api
        self._store_alive = store_alive

    async def handle(self, call: Call) -> Response:
        call.warn(_DEPRECATED)
        every = {name: self._status(name) for name in ("controller-manager", "etcd-0", "scheduler")}
        if call.name:
            if call.name not in every:
                raise not_found("", "componentstatuses", call.name)
            return rendering.tree_answer(call, every[call.name])
        chosen = selection(call)
        shown = [o for n, o in every.items() if not chosen or not chosen.name or chosen.name == n]
        return rendering.trees_answer(call, shown, {"resourceVersion": ""})

    def _status(self, name: str) -> Object:
        wrong = self._store_alive() if name == "etcd-0" else self._lease(_LEASES[name])
        condition = {"type": "Healthy", "status": "True", "message": "ok"}
        if wrong is None:  # a part that holds no lease, or is not there
            condition |= {"status": "Unknown", "message": ""}
        elif wrong:
            condition |= {"status": "False", "message": wrong}
        return {
            "kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [condition],
        }  # fmt: skip

    def _lease(self, name: str) -> str | None:
        lease = self._api.get("coordination.k8s.io", "leases", "kube-system", name)
        if lease is None:
            return None
        spec = lease["spec"]
        try:
            renewed = datetime.fromisoformat(str(spec.get("renewTime", "")).replace("Z", "+00:00"))
        except ValueError:
            return f'lease "{name}" has not been renewed'
        late = (datetime.now(UTC) - renewed).total_seconds()
        if not spec.get("holderIdentity") or late > (spec.get("leaseDurationSeconds") or 15):
            return f'lease "{name}" was renewed {late:.0f} s ago'
        return ""
