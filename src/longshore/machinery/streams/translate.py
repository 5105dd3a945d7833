"""What an API server puts between new clients and kubelets: WebSocket v5 to SPDY, and SPDY out of WebSocket messages.

Sources: k8s.io/apiserver/pkg/util/proxy (streamtranslator.go, streamtunnel.go, translatinghandler.go).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from longshore.machinery.errors import StatusError
from longshore.machinery.http import ClientError, Duplex, Request
from longshore.wire import portforward as pf
from longshore.wire import remotecommand as rc

from . import remotecommand, spdy, websocket
from .channel import Channel
from .remotecommand import Options, RemoteSession


def wants_translation(request: Request) -> bool:
    """Whether an exec or attach must be translated: a WebSocket client that offers the stream close protocol, v5."""
    return websocket.is_websocket(request) and rc.V5 in websocket.offered(request)


def wants_tunnel(request: Request) -> bool:
    """Whether a port-forward is SPDY inside WebSocket messages."""
    return websocket.is_websocket(request) and any(p.startswith(pf.TUNNEL_PREFIX) for p in websocket.offered(request))


async def _pump(source: Channel, target: Channel) -> None:
    try:
        async for data in source:
            target.write(data)
            await target.drain()
    except ConnectionError:
        pass
    target.close()


async def remote_command(request: Request, options: Options, dial: Callable[[], Awaitable[RemoteSession]]) -> None:
    """Serves a WebSocket v5 client from a SPDY session. Raises Refused before the upgrade.

    dial: opens the far session. As upstream, the client is upgraded first: what goes wrong with the far side is told
    on the error channel.
    """
    near = await remotecommand.accept(request, options, websocket_protocols=(rc.V5,))
    try:
        far = await dial()
    except StatusError as error:
        await near.finish({k: v for k, v in error.status().items() if k not in ("kind", "apiVersion")})
        return
    except (spdy.UpgradeError, ClientError, ConnectionError, TimeoutError) as error:
        await near.finish(rc.failure(str(error)))
        return
    inward: list[asyncio.Task[Any]] = []
    outward: list[asyncio.Task[Any]] = []
    try:
        if near.stdin is not None and far.stdin is not None:
            inward.append(asyncio.create_task(_pump(near.stdin, far.stdin)))
        if options.tty:
            inward.append(asyncio.create_task(_sizes(near, far)))
        for source, target in ((far.stdout, near.stdout), (far.stderr, near.stderr)):
            if source is not None and target is not None:
                outward.append(asyncio.create_task(_pump(source, target)))
        ending = asyncio.create_task(_status(far, outward))
        gone = asyncio.create_task(near.closed())
        inward += [ending, gone]
        await asyncio.wait((ending, gone), return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            await near.finish(ending.result())
        else:
            near.abort()
    finally:
        far.close()
        for task in (*inward, *outward):
            task.cancel()


async def _sizes(near: remotecommand.RemoteCommand, far: RemoteSession) -> None:
    async for columns, rows in near.resize:
        far.resize(columns, rows)


async def _status(far: RemoteSession, outward: list[asyncio.Task[Any]]) -> dict[str, Any]:
    status = await far.status()
    if outward:
        await asyncio.wait(outward)
    return status


async def port_forward(request: Request, dial: Callable[[], Awaitable[Duplex]]) -> None:
    """Tunnels a WebSocket client's SPDY octets to a raw connection that `dial` upgraded to SPDY. Raises Refused.

    The far side is asked first, so that its refusal (what `dial` raises) can still be answered.
    """
    far = await dial()
    try:
        socket = await websocket.accept(request, [pf.TUNNEL_PROTOCOL])
    except BaseException:
        far.abort()
        raise
    await websocket.carry(websocket.MessageStream(socket), far)
