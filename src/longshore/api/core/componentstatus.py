"""core: ComponentStatus, which nobody stores."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.strategy import Object, Strategy

_SHOWN = {"True": "Healthy", "False": "Unhealthy"}


class ComponentStatus(Strategy):
    """Whether a part of the control plane works."""

    def row(self, obj: Object, now: datetime) -> list[Any]:
        status, message, error = "Unknown", "", ""
        for condition in obj.get("conditions") or ():
            if condition.get("type") == "Healthy":
                status = _SHOWN.get(condition.get("status", ""), "Unknown")
                message, error = condition.get("message", ""), condition.get("error", "")
                break
        return [obj["metadata"]["name"], status, message, error]
