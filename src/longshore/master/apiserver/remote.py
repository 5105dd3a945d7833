"""Another server that a kubeconfig names, asked by POST: webhooks of authentication, authorization, audit and admission.

Source: k8s.io/apiserver/pkg/util/webhook.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longshore.machinery.http import Client

ATTEMPTS, FIRST_WAIT, FACTOR, JITTER = 5, 0.5, 1.5, 0.2
_MAX_ANSWER, _MAX_KEPT = 1 << 20, 8192


class RemoteError(ValueError):
    """The server answered with something else than success; `status` is its HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"webhook returned status {status}")
        self.status = status


def worth_retrying(error: Exception) -> bool:
    """Whether asking again may help: no connection, too busy, a failure of its own."""
    return not isinstance(error, RemoteError) or error.status >= 500 or error.status == 429


class Remembered(OrderedDict[Any, tuple[float, Any]]):
    """Answers until they are too old."""

    def find(self, key: Any) -> Any:
        found = self.get(key)
        if found is None or found[0] < time.monotonic():
            return None
        return found[1]

    def keep(self, key: Any, value: Any, seconds: float) -> None:
        self[key] = (time.monotonic() + seconds, value)
        while len(self) > _MAX_KEPT:
            self.popitem(last=False)


class Remote:
    """A server by kubeconfig (its current context). timeout: seconds for one attempt; first_wait: after the first
    failure, half as much again after each further one; retry: whether to try again after an error.
    """

    def __init__(
        self,
        file: Path,
        *,
        timeout: float = 30.0,
        first_wait: float | None = None,
        retry: Callable[[Exception], bool] = worth_retrying,
    ) -> None:
        self._file = file
        self._timeout, self._retry = timeout, retry
        self._first_wait = FIRST_WAIT if first_wait is None else first_wait
        self._client: Client | None = None
        self._url = ""

    def open(self) -> None:
        """Reads the kubeconfig. ConfigError or OSError."""
        from longshore.client.config import load  # the whole client comes with it: where there is such a server

        config = load(self._file)
        field = config.authorization()
        headers = [("Authorization", field)] if field else []
        self._url = config.server
        self._client = Client(ssl=config.ssl_context(), headers=headers, server_hostname=config.server_name or None)

    async def post(self, body: bytes) -> bytes:
        """The answer to a JSON body. OSError, TimeoutError or RemoteError in the end."""
        if self._client is None:
            self.open()
        assert self._client is not None
        fields = [("Content-Type", "application/json"), ("Accept", "application/json")]
        wait = self._first_wait
        for left in reversed(range(ATTEMPTS)):
            try:
                response = await self._client.request(
                    "POST", self._url, headers=fields, body=body, timeout=self._timeout
                )
                answer = await response.read(_MAX_ANSWER)
                if response.status < 300:
                    return answer
                raise RemoteError(response.status)
            except (OSError, TimeoutError, RemoteError) as error:
                if not left or not self._retry(error):
                    raise
            await asyncio.sleep(wait * (1 + random.random() * JITTER))
            wait *= FACTOR
        raise AssertionError("unreachable")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
