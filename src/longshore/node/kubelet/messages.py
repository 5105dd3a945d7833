"""Termination messages: what an ended container wrote to its message file, or its log's end.

Source: kubernetes pkg/kubelet/kuberuntime (getTerminationMessage, readLastStringFromContainerLogs).
"""

from __future__ import annotations

import os
from pathlib import Path

from longshore.node.kubelet.runtime import EXITED, MESSAGE_PATH, MESSAGE_POLICY, Container

FILE_LIMIT = 4096
LOG_LINES, LOG_BYTES = 80, 2048
_KEPT = 2000


class TerminationMessages:
    """Reads each ended container's message once."""

    def __init__(self) -> None:
        self._read: dict[str, str] = {}

    def read(self, container: Container) -> str:
        """The message of an ended container; the runtime's own text where it wrote none."""
        if container.state != EXITED:
            return container.message
        if container.id not in self._read:
            if len(self._read) >= _KEPT:
                self._read.clear()
            self._read[container.id] = self._find(container)
        return self._read[container.id]

    @staticmethod
    def _find(container: Container) -> str:
        path = container.annotations.get(MESSAGE_PATH, "")
        text = ""
        source = next((m.host_path for m in container.mounts if path and m.container_path == path), "")
        if source:
            try:
                text = _tail(Path(source), FILE_LIMIT).decode("utf-8", "replace")
            except FileNotFoundError:
                text = ""
            except OSError as error:
                text = f"Error on reading termination log {source}: {error.strerror}"
        fallback = container.annotations.get(MESSAGE_POLICY) == "FallbackToLogsOnError"
        if not text and fallback and container.exit_code != 0 and container.log_path:
            text = last_lines(Path(container.log_path))
        return text or container.message


def _tail(path: Path, limit: int) -> bytes:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - limit))
        return file.read(limit)


def last_lines(path: Path) -> str:
    """The last lines of a CRI log, at most 80 of them and 2048 bytes."""
    try:
        data = _tail(path, 256 * 1024)
    except OSError as error:
        return f"Error on reading termination message from logs: {error.strerror}"
    texts: list[bytes] = []
    partial = b""
    for line in data.split(b"\n"):
        parts = line.split(b" ", 3)
        if len(parts) < 4:
            continue
        partial += parts[3]
        if parts[2].startswith(b"F"):
            texts.append(partial + b"\n")
            partial = b""
    if partial:
        texts.append(partial)
    return b"".join(texts[-LOG_LINES:])[-LOG_BYTES:].decode("utf-8", "replace")
