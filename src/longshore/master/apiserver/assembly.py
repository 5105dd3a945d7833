"""Puts the rooms of the API server together: authentication, authorization, admission, proxying and the special resources."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longshore.master.apiserver.server import APIServer


async def assemble(server: APIServer) -> None:
    """Wire everything into a server whose caches are loaded."""
