"""Both sides of a forward connection: octets in, batches or acknowledgements out, and the handshake before them.

Source: github.com/fluent/fluentd/wiki "Forward Protocol Specification v1".
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from typing import Any

import msgpack

from .messages import (
    BROKEN,
    DEFAULT_LIMIT,
    AuthenticationFailed,
    Batch,
    ForwardError,
    decode_message,
    octets,
    text_of,
    unpacker_of,
)


class Acknowledgements:
    """Reads a receiver's answers."""

    def __init__(self) -> None:
        self._unpacker = unpacker_of(65536)

    def feed(self, data: bytes) -> list[str]:
        """The chunks that `data` acknowledges. Raises ForwardError."""
        try:
            self._unpacker.feed(data)
            return [text_of(value.get("ack", "")) for value in self._unpacker if isinstance(value, dict)]
        except (*BROKEN, msgpack.BufferFull) as error:
            raise ForwardError(f"not an acknowledgement: {error}") from None


def _digest(*parts: bytes) -> str:
    return hashlib.sha512(b"".join(parts)).hexdigest()


class _Side:
    """What both sides share: octets in, values out, answers waiting to be sent."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._unpacker = unpacker_of(limit)
        self._out: list[bytes] = []

    def _values(self, data: bytes) -> Iterable[Any]:
        try:
            self._unpacker.feed(data)
            yield from self._unpacker
        except ForwardError:
            raise
        except msgpack.BufferFull:
            raise ForwardError(f"a message is longer than {self._limit} octets") from None
        except BROKEN as error:
            raise ForwardError(f"not msgpack: {error}") from None

    def _say(self, value: object) -> None:
        self._out.append(msgpack.packb(value, use_bin_type=True, unicode_errors="surrogateescape"))

    def output(self) -> bytes:
        """What is to be sent now."""
        out, self._out = self._out, []
        return b"".join(out)


class Server(_Side):
    """The receiving side of a connection.

    shared_key: None for no handshake; users: name to password, None for no user authentication.
    """

    def __init__(
        self,
        hostname: str = "",
        *,
        shared_key: str | None = None,
        users: Mapping[str, str] | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> None:
        super().__init__(limit)
        self._hostname = hostname
        self._key = shared_key
        self._users = users
        self.ready = shared_key is None
        self.closing = False
        self._nonce, self._salt = os.urandom(16), os.urandom(16)
        if shared_key is not None:
            self._say(
                ["HELO", {"nonce": self._nonce, "auth": self._salt if users is not None else b"", "keepalive": True}]
            )

    def feed(self, data: bytes) -> list[Batch]:
        """The batches that `data` completes; `closing` afterwards: send the output, then end. Raises ForwardError."""
        batches: list[Batch] = []
        for value in self._values(data):
            if self.closing:
                break
            if not self.ready:
                self._ping(value)
                continue
            batch = decode_message(value, self._limit)
            if batch is not None:
                batches.append(batch)
        return batches

    def _ping(self, value: object) -> None:
        if not isinstance(value, list) or len(value) != 6 or value[0] != "PING":
            raise ForwardError("PING is expected")
        host, salt, digest, user, password = (octets(part) for part in value[1:])
        key = (self._key or "").encode()
        reason = ""
        if not hmac.compare_digest(_digest(salt, host, self._nonce, key).encode(), digest):
            reason = "shared_key mismatch"
        elif self._users is not None:
            known = self._users.get(user.decode("utf-8", "replace"))
            expected = _digest(self._salt, user, (known or "").encode()).encode()
            if not hmac.compare_digest(expected, password) or known is None:
                reason = "username/password mismatch"
        if reason:
            self.closing = True
            self._say(["PONG", False, reason, "", ""])
            return
        self.ready = True
        self._say(["PONG", True, "", self._hostname, _digest(salt, self._hostname.encode(), self._nonce, key)])


class Client(_Side):
    """The sending side of a connection; `ready` when batches may be sent."""

    def __init__(
        self, hostname: str = "", *, shared_key: str | None = None, username: str = "", password: str = ""
    ) -> None:
        super().__init__(2**20)
        self._hostname, self._key, self._user, self._password = hostname, shared_key, username, password
        self._salt = os.urandom(16)
        self._nonce: bytes | None = None
        self.ready = shared_key is None

    def feed(self, data: bytes) -> list[str]:
        """The chunk ids that `data` acknowledges. Raises AuthenticationFailed, ForwardError."""
        acknowledged: list[str] = []
        for value in self._values(data):
            if self.ready:
                if isinstance(value, dict) and isinstance(value.get("ack"), str | bytes):
                    acknowledged.append(text_of(value["ack"]))
            elif self._nonce is None:
                self._helo(value)
            else:
                self._pong(value)
        return acknowledged

    def _helo(self, value: object) -> None:
        if not isinstance(value, list) or len(value) != 2 or value[0] != "HELO" or not isinstance(value[1], dict):
            raise ForwardError("HELO is expected")
        self._nonce = octets(value[1].get("nonce", b""))
        auth = octets(value[1].get("auth", b""))
        digest = _digest(self._salt, self._hostname.encode(), self._nonce, (self._key or "").encode())
        user = self._user if auth else ""
        password = _digest(auth, self._user.encode(), self._password.encode()) if auth else ""
        self._say(["PING", self._hostname, self._salt, digest, user, password])

    def _pong(self, value: object) -> None:
        if not isinstance(value, list) or len(value) != 5 or value[0] != "PONG":
            raise ForwardError("PONG is expected")
        if value[1] is not True:
            raise AuthenticationFailed(f"authentication failed: {text_of(value[2])[:200]}")
        host = octets(value[3])
        expected = _digest(self._salt, host, self._nonce or b"", (self._key or "").encode()).encode()
        if not hmac.compare_digest(expected, octets(value[4])):
            raise AuthenticationFailed("shared key mismatch")
        self.ready = True
