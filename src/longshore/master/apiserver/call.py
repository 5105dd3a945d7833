"""What the server's parts hand one another while a request is served."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from longshore.machinery.http import Request
from longshore.master.apiserver.context import ANONYMOUS, UserInfo
from longshore.master.apiserver.negotiation import PLAIN, Form
from longshore.master.apiserver.paths import PathInfo
from longshore.master.apiserver.scheme import Endpoint


@dataclass(slots=True)
class Call:
    """One resource request on its way: what was asked, by whom, and what the answer will look like."""

    request: Request
    info: PathInfo
    endpoint: Endpoint
    verb: str
    user: UserInfo = ANONYMOUS
    form: Form = PLAIN
    warnings: list[str] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)
    body: bytes = b""  # what was sent, for the audit
    sent: tuple[Any, str] | None = None  # resource and version that the body was decoded as

    @property
    def namespace(self) -> str:
        return self.info.namespace

    @property
    def name(self) -> str:
        return self.info.name

    def warn(self, text: str) -> None:
        """Add a Warning header to the answer (each text once)."""
        if text not in self.warnings:
            self.warnings.append(text)


Object = dict[str, Any]
