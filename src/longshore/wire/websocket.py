"""WebSocket (RFC 6455): opening handshake values and framing for both sides, without I/O."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from dataclasses import dataclass
from enum import Enum

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED, NO_STATUS = 1000, 1001, 1002, 1003, 1005
BAD_DATA, POLICY, TOO_BIG, INTERNAL = 1007, 1008, 1009, 1011
DEFAULT_LIMIT = 16 * 1024 * 1024


class WebSocketError(Exception):
    """The peer broke the protocol. `code` belongs into the close frame."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message, its fragments joined."""

    data: bytes
    text: bool = False


@dataclass(frozen=True, slots=True)
class Ping:
    data: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    code: int = NO_STATUS
    reason: str = ""


Event = Message | Ping | Pong | Close


class _More(Enum):
    MORE = 0


MORE = _More.MORE  # the frame is not all there yet


def new_key() -> str:
    """A Sec-WebSocket-Key."""
    return base64.b64encode(os.urandom(16)).decode()


def accept_key(key: str) -> str:
    """The Sec-WebSocket-Accept for a Sec-WebSocket-Key (section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode("latin-1", "replace") + GUID).digest()).decode()


def valid_key(key: str) -> bool:
    """Whether a Sec-WebSocket-Key is base64 of 16 octets."""
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def mask(data: bytes, key: bytes) -> bytes:
    """XOR with the masking key over and over (section 5.3); its own inverse."""
    if not data:
        return b""
    n = len(data)
    pad = (key * (n // 4 + 1))[:n]
    return (int.from_bytes(data, "little") ^ int.from_bytes(pad, "little")).to_bytes(n, "little")


def frame(opcode: int, data: bytes, *, client: bool, fin: bool = True) -> bytes:
    """One frame; a client's is masked with a fresh key."""
    n = len(data)
    first = (0x80 if fin else 0) | opcode
    bit = 0x80 if client else 0
    if n < 126:
        head = bytes((first, bit | n))
    elif n < 65536:
        head = struct.pack("!BBH", first, bit | 126, n)
    else:
        head = struct.pack("!BBQ", first, bit | 127, n)
    if client:
        key = os.urandom(4)
        return head + key + mask(data, key)
    return head + data


def close_payload(code: int, reason: str = "") -> bytes:
    """The body of a close frame; the reason is cut to what fits at a character's end."""
    if code == NO_STATUS:
        return b""
    return struct.pack("!H", code) + reason.encode()[:123].decode("utf-8", "ignore").encode()


class Receiver:
    """Octets in, events out.

    client: whether we are the client (then frames must come unmasked, else masked). limit: octets of a message.
    """

    def __init__(self, *, client: bool, limit: int = DEFAULT_LIMIT) -> None:
        self._client = client
        self._limit = limit
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._size = 0
        self._opcode = 0  # of the message under way, 0 between messages
        self.closed = False

    def feed(self, data: bytes) -> list[Event]:
        """Events that `data` completes. WebSocketError when the peer broke the protocol or a limit."""
        self._buffer += data
        events: list[Event] = []
        while not self.closed:
            event = self._frame()
            if event is MORE:
                break
            if isinstance(event, Message | Ping | Pong | Close):
                events.append(event)
        return events

    def _frame(self) -> Event | _More | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return MORE
        first, second = buffer[0], buffer[1]
        opcode, fin, masked, length = first & 0x0F, bool(first & 0x80), bool(second & 0x80), second & 0x7F
        if first & 0x70:
            raise WebSocketError(PROTOCOL_ERROR, "reserved bits are set")
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise WebSocketError(PROTOCOL_ERROR, f"unknown opcode {opcode}")
        if masked is self._client:
            raise WebSocketError(PROTOCOL_ERROR, "bad MASK bit")
        pos = 2
        if opcode >= CLOSE:
            if not fin or length > 125:
                raise WebSocketError(PROTOCOL_ERROR, "control frame is fragmented or too long")
        elif length == 126:
            if len(buffer) < 4:
                return MORE
            (length,) = struct.unpack_from("!H", buffer, 2)
            pos = 4
        elif length == 127:
            if len(buffer) < 10:
                return MORE
            (length,) = struct.unpack_from("!Q", buffer, 2)
            pos = 10
        if opcode < CLOSE and self._size + length > self._limit:
            raise WebSocketError(TOO_BIG, "message is too big")
        if opcode in (TEXT, BINARY) and self._opcode:
            raise WebSocketError(PROTOCOL_ERROR, "a message began inside another")
        if opcode == CONTINUATION and not self._opcode:
            raise WebSocketError(PROTOCOL_ERROR, "continuation without a message")
        start = pos + 4 if masked else pos
        if len(buffer) < start + length:
            return MORE
        payload = bytes(buffer[start : start + length])
        if masked:
            payload = mask(payload, bytes(buffer[pos:start]))
        del buffer[: start + length]
        if opcode == PING:
            return Ping(payload)
        if opcode == PONG:
            return Pong(payload)
        if opcode == CLOSE:
            return self._close(payload)
        self._opcode = opcode or self._opcode
        self._parts.append(payload)
        self._size += length
        if not fin:
            return None
        whole = payload if len(self._parts) == 1 else b"".join(self._parts)
        text = self._opcode == TEXT
        self._parts, self._size, self._opcode = [], 0, 0
        if text:
            try:
                whole.decode()
            except UnicodeDecodeError:
                raise WebSocketError(BAD_DATA, "text is not UTF-8") from None
        return Message(whole, text)

    def _close(self, payload: bytes) -> Close:
        self.closed = True
        if not payload:
            return Close()
        if len(payload) == 1:
            raise WebSocketError(PROTOCOL_ERROR, "bad close payload")
        (code,) = struct.unpack_from("!H", payload)
        if code < 1000 or code in (1004, 1005, 1006, 1015) or 1016 <= code < 3000 or code >= 5000:
            raise WebSocketError(PROTOCOL_ERROR, f"bad close code {code}")
        try:
            return Close(code, payload[2:].decode())
        except UnicodeDecodeError:
            raise WebSocketError(BAD_DATA, "close reason is not UTF-8") from None
