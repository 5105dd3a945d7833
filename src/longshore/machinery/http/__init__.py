"""The one HTTP/1.1 core of all parts: a server and a client on asyncio transports and httptools.

Door: `Server`, `Client` and what they hand out. Does not belong here: routes, error shapes, anything of one API.
"""

from .client import Client, ClientResponse
from .errors import ClientError, ConnectError, ProtocolError
from .flow import Duplex, tunnel
from .headers import Headers
from .message import BodyTooLarge, BodyWriter, Chunk, Handler, Peer, Request, RequestTimeout, Response
from .receiving import pour
from .server import Server, bind, plain_error
from .tls import accept_any_certificate, client_context, server_context

__all__ = [
    "BodyTooLarge",
    "BodyWriter",
    "Chunk",
    "Client",
    "ClientError",
    "ClientResponse",
    "ConnectError",
    "Duplex",
    "Handler",
    "Headers",
    "Peer",
    "ProtocolError",
    "Request",
    "RequestTimeout",
    "Response",
    "Server",
    "accept_any_certificate",
    "bind",
    "client_context",
    "plain_error",
    "pour",
    "server_context",
    "tunnel",
]
