"""The sessions that clients have open."""

from __future__ import annotations

import asyncio

from longshore.engine.build.buildkit.session import Session
from longshore.engine.errors import SystemFailure


class Sessions:
    """The sessions that are open, by id."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}
        self._arrived = asyncio.Condition()

    async def add(self, session: Session) -> None:
        self._open[session.id] = session
        async with self._arrived:
            self._arrived.notify_all()

    def remove(self, session: Session) -> None:
        if self._open.get(session.id) is session:
            del self._open[session.id]
        session.close()

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._open

    async def get(self, session_id: str, wait: float = 5.0) -> Session:
        """A session; one that is not there yet is waited for. Raises SystemFailure("no active session for ...")."""
        try:
            async with asyncio.timeout(wait), self._arrived:
                await self._arrived.wait_for(lambda: session_id in self._open)
        except TimeoutError:
            raise SystemFailure(f"no active session for {session_id}: context deadline exceeded") from None
        return self._open[session_id]
