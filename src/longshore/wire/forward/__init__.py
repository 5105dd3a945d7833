"""The Fluent forward protocol, version 1, without I/O.

Source: github.com/fluent/fluentd/wiki "Forward Protocol Specification v1". A connection carries msgpack values: the
handshake (HELO, PING, PONG) where a shared key is set, then events in one of four modes (message, forward, packed,
compressed packed); an event chunk with an id is answered with `{"ack": id}` when it is kept.
"""

from .messages import (
    DEFAULT_LIMIT,
    AuthenticationFailed,
    Batch,
    Event,
    Extension,
    ForwardError,
    chunk_id,
    decode_message,
    encode_ack,
    encode_batch,
    encode_event,
    event_time,
    pack_entries,
    unpack_entries,
    unpack_value,
)
from .session import Acknowledgements, Client, Server

__all__ = [
    "DEFAULT_LIMIT",
    "Acknowledgements",
    "AuthenticationFailed",
    "Batch",
    "Client",
    "Event",
    "Extension",
    "ForwardError",
    "Server",
    "chunk_id",
    "decode_message",
    "encode_ack",
    "encode_batch",
    "encode_event",
    "event_time",
    "pack_entries",
    "unpack_entries",
    "unpack_value",
]
