"""Service account tokens bound to pods: asked for, kept, renewed in time.

Source: kubernetes pkg/kubelet/token/token_manager.go (renewed after 80 % of their life, or after 24 hours).
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from longshore.client.resources import SERVICE_ACCOUNTS
from longshore.client.rest import Client

Pod = dict[str, Any]
_DAY = 86400.0
DEFAULT_SECONDS = 3600


class TokenManager:
    """Tokens by pod, audience and lifetime."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._tokens: dict[tuple[str, str, str, int], tuple[str, float, float]] = {}

    async def get(self, pod: Pod, audience: str, seconds: int) -> tuple[str, float]:
        """(token, when to renew it in seconds since 1970). Raises StatusError or OSError when none can be had."""
        metadata = pod["metadata"]
        account = pod["spec"].get("serviceAccountName") or "default"
        key = (metadata["uid"], account, audience, seconds)
        kept = self._tokens.get(key)
        now = time.time()
        if kept is not None and now < kept[1]:
            return kept[0], kept[1]
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": seconds,
                "boundObjectRef": {
                    "apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"],
                },
            },
        }  # fmt: skip
        try:
            answer = await self._client.create(
                SERVICE_ACCOUNTS, request, metadata["namespace"], name=account, subresource="token"
            )
        except Exception:
            if kept is not None and now < kept[2]:
                # Not renewed, but still valid: better than none; the next sync tries again.
                return kept[0], now + 60
            raise
        status = answer["status"]
        expires = datetime.fromisoformat(status["expirationTimestamp"].replace("Z", "+00:00")).timestamp()
        renew = min(now + (expires - now) * 0.8, now + _DAY)
        self._tokens[key] = (status["token"], renew, expires)
        return status["token"], renew

    def forget(self, uid: str) -> None:
        for key in [k for k in self._tokens if k[0] == uid]:
            del self._tokens[key]
