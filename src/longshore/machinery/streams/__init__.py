"""Streams that an HTTP upgrade gives: remote command and port-forward over SPDY/3.1 and WebSocket.

Door: `accept_command`, `connect_command`, `serve_port_forward`, `connect_port_forward`, and the translators that an API
server needs. Does not belong here: byte formats (wire/), what a command or a port is.
"""

from longshore.wire.remotecommand import SUCCESS, Options, exit_code, exit_status, failure

from .channel import ByteStream, Channel, Refused
from .portforward import Forwarder
from .portforward import connect as connect_port_forward
from .portforward import serve as serve_port_forward
from .remotecommand import RemoteCommand, RemoteSession
from .remotecommand import accept as accept_command
from .remotecommand import connect as connect_command
from .remotecommand import connect_websocket as connect_command_websocket
from .spdy import UpgradeError

__all__ = [
    "SUCCESS",
    "ByteStream",
    "Channel",
    "Forwarder",
    "Options",
    "Refused",
    "RemoteCommand",
    "RemoteSession",
    "UpgradeError",
    "accept_command",
    "connect_command",
    "connect_command_websocket",
    "connect_port_forward",
    "exit_code",
    "exit_status",
    "failure",
    "serve_port_forward",
]
