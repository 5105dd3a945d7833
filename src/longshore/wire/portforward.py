"""The port-forward protocols: stream headers over SPDY, channel pairs over WebSocket, SPDY tunnelled in WebSocket.

Sources: k8s.io/kubelet/pkg/cri/streaming/portforward, k8s.io/client-go/tools/portforward.
"""

from __future__ import annotations

import struct

PROTOCOL = "portforward.k8s.io"  # X-Stream-Protocol-Version
TUNNEL_PREFIX = "SPDY/3.1+"
TUNNEL_PROTOCOL = TUNNEL_PREFIX + PROTOCOL  # the WebSocket subprotocol of kubectl 1.31 and later
WEBSOCKET_PROTOCOLS = ("v4.channel.k8s.io", "v4.base64.channel.k8s.io")  # a pair of channels for each port
STREAM_TYPE, PORT, REQUEST_ID = "streamtype", "port", "requestid"
DATA, ERROR = "data", "error"


class BadStream(ValueError):
    """A stream whose headers do not name a port or a type."""


def stream_port(headers: dict[str, list[str]]) -> tuple[str, int, str]:
    """(type, port, request id) of a stream that a client opened. BadStream in upstream's words."""
    kind = next(iter(headers.get(STREAM_TYPE, ())), "")
    text = next(iter(headers.get(PORT, ())), "")
    if not text:
        raise BadStream(f'"{PORT}" header is required')
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise BadStream(f'unable to parse "{text}" as a port')
    if not kind:
        raise BadStream('"streamType" header is required')
    if kind not in (DATA, ERROR):
        raise BadStream(f'invalid stream type "{kind}"')
    return kind, int(text), next(iter(headers.get(REQUEST_ID, ())), "")


def stream_headers(kind: str, port: int, request_id: int) -> dict[str, str]:
    """The headers of a stream that a client opens."""
    return {"streamType": kind, "port": str(port), "requestID": str(request_id)}


def parse_ports(values: list[str]) -> list[int]:
    """The `port` query parameters of a WebSocket request; BadStream in upstream's words."""
    ports: list[int] = []
    for value in values:
        for text in value.split(","):
            if not text.isdigit() or not 0 < int(text) < 65536:
                raise BadStream(f"invalid port '{text}'")
            ports.append(int(text))
    if not ports:
        raise BadStream('query parameter "port" is required')
    return ports


def port_message(port: int) -> bytes:
    """The first payload on either channel of a pair: which port it is, little-endian."""
    return struct.pack("<H", port)
