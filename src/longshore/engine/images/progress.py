"""Progress as dockerd's JSON messages: {"status", "progressDetail", "progress", "id"}."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_INTERVAL = 0.1


def human_size(size: float) -> str:
    """Four significant digits with a decimal unit: "1.982MB". Source: go-units HumanSize."""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size /= 1000
        unit += 1
    text = f"{size:.4g}"
    if "e" in text:
        text = f"{size:.0f}"
    return text + _UNITS[unit]


def bar(current: int, total: int) -> str:
    """The drawn bar of a message, for old clients. Source: moby pkg/jsonmessage, JSONProgress.String."""
    if current <= 0 and total <= 0:
        return ""
    if total <= 0:
        return f"{human_size(current):>8}"
    percent = min(100, current * 100 // total) // 2
    spaces = " " * (50 - percent)
    numbers = f"{human_size(current):>8}" if current > total else f"{human_size(current):>8}/{human_size(total)}"
    return f"[{'=' * percent}>{spaces}] {numbers}"


class Meter:
    """Messages about one layer; the moving ones at most ten times a second."""

    def __init__(self, progress: Callable[[dict[str, Any]], None], layer: str) -> None:
        self._progress, self._id = progress, layer
        self._last = 0.0

    def say(self, status: str) -> None:
        self._progress({"status": status, "progressDetail": {}, "id": self._id})

    def move(self, status: str, current: int, total: int, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._last < _INTERVAL:
            return
        self._last = now
        detail = {"current": current, **({"total": total} if total else {})}
        self._progress({"status": status, "progressDetail": detail, "progress": bar(current, total), "id": self._id})
