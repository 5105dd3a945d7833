"""A token bucket: what may happen at once, and how often after that."""

from __future__ import annotations

import time


class TokenBucket:
    """Full at first. rate: tokens a second; burst: what it holds.

    Source: golang.org/x/time/rate (Limiter).
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst, self._tokens, self._counted = rate, burst, float(burst), time.monotonic()

    def take(self) -> bool:
        """Take a token if one is there."""
        self._fill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def reserve(self) -> float:
        """Take a token, be it one that is still to come. Returns the seconds until it is there."""
        self._fill()
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

    def _fill(self) -> None:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._counted) * self._rate)
        self._counted = now
