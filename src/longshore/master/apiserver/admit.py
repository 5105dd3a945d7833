"""The chain of admission plugins as the write path sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longshore.master.apiserver.call import Call
from longshore.master.apiserver.context import API, AdmissionPlugin, AdmissionRequest, Attributes, Operation

Object = dict[str, Any]


class Admission:
    """Runs the plugins that have something to say on an operation: first all that change, then all that check."""

    def __init__(self, plugins: Sequence[AdmissionPlugin] = ()) -> None:
        self.plugins = list(plugins)
        self.api: API | None = None
        self._handling: dict[tuple[str, str, str, str], list[AdmissionPlugin]] = {}

    def set(self, plugins: Sequence[AdmissionPlugin]) -> None:
        self.plugins = list(plugins)
        self._handling.clear()

    def attributes(self, call: Call, verb: str = "") -> Attributes:
        info, endpoint = call.info, call.endpoint
        return Attributes(
            call.user, verb or call.verb, endpoint.group, endpoint.version, endpoint.plural, info.subresource,
            info.namespace, info.name, call.request.path,
        )  # fmt: skip

    def request(
        self,
        call: Call,
        operation: Operation | str,
        obj: Object | None,
        old: Object | None,
        options: Object,
        dry_run: bool,
        kind: tuple[str, str, str] | None = None,
    ) -> AdmissionRequest:
        """What the plugins get to see of a call."""
        endpoint = call.endpoint
        assert self.api is not None
        return AdmissionRequest(
            self.attributes(call), operation, obj, old, options, dry_run, self.api,  # type: ignore[arg-type]
            kind or (endpoint.group, endpoint.version, endpoint.kind), call.warnings, call.annotations,
        )  # fmt: skip

    def handling(self, request: AdmissionRequest) -> list[AdmissionPlugin]:
        a = request.attributes
        key = (request.operation, a.resource, a.subresource, a.group)
        found = self._handling.get(key)
        if found is None:
            if len(self._handling) > 4096:
                self._handling.clear()
            found = self._handling[key] = [
                p for p in self.plugins if p.handles(request.operation, a.resource, a.subresource, a.group)
            ]
        return found

    async def admit(self, request: AdmissionRequest) -> None:
        for plugin in self.handling(request):
            await plugin.admit(request)

    async def validate(self, request: AdmissionRequest) -> None:
        for plugin in self.handling(request):
            await plugin.validate(request)
