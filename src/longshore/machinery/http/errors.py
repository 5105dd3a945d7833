"""What can go wrong for a client, in the words of Go's net/http, which probes and proxies show to people."""

from __future__ import annotations


class ClientError(OSError):
    """A request got no answer. `errno` is set where the kernel gave one."""

    def __str__(self) -> str:
        return self.strerror or " ".join(map(str, self.args))


class ConnectError(ClientError):
    """No connection: refused, unreachable, no such host, TLS not agreed. The request was not sent."""


class ProtocolError(ClientError):
    """The peer's answer is not HTTP, or was cut."""
