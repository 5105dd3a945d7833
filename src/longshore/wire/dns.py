"""DNS messages (RFC 1035, 2782, 3596, 6891): bytes to messages and back, with name compression and limits.

Names are presentation text that ends with a dot; a dot or backslash inside a label is escaped, other odd octets are
`\\DDD`. Case is kept. Hostile packets: every length is checked, a compression pointer must point backwards, a name has
at most 255 octets; what breaks a rule raises DNSError.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field
from typing import Any

A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, OPT, ANY = 1, 2, 5, 6, 12, 15, 16, 28, 33, 41, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16
QUERY = 0

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010

_HEAD = struct.Struct("!6H")
_QUESTION = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")
_SRV = struct.Struct("!HHH")
_SOA = struct.Struct("!5I")
MOST_RECORDS = 4096


class DNSError(ValueError):
    """A message that breaks the rules (FORMERR)."""


@dataclass(frozen=True, slots=True)
class Question:
    """name, type (`A`, `SRV` ...), class."""

    name: str
    type: int
    klass: int = IN


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record; ttl in seconds.

    data: A, AAAA: the address as text; NS, CNAME, PTR: a name; SRV: (priority, weight, port, target);
    MX: (preference, name); TXT: a tuple of bytes; SOA: (mname, rname, serial, refresh, retry, expire, minimum);
    all others: bytes.
    """

    name: str
    type: int
    ttl: int
    data: Any
    klass: int = IN


@dataclass(slots=True)
class Message:
    """A query or an answer. flags: the bits QR AA TC RD RA AD CD; edns: the sender's UDP size, None without OPT."""

    id: int = 0
    flags: int = 0
    opcode: int = QUERY
    rcode: int = NOERROR
    questions: list[Question] = field(default_factory=list)
    answers: list[Record] = field(default_factory=list)
    authority: list[Record] = field(default_factory=list)
    additional: list[Record] = field(default_factory=list)
    edns: int | None = None
    edns_version: int = 0
    dnssec_ok: bool = False


# ---------------------------------------------------------------------------------------------------------- names


def labels_of(name: str) -> list[bytes]:
    """A presentation name's labels as octets. Raises DNSError (empty or long labels, long names)."""
    if name in (".", ""):
        return []
    if "\\" not in name:
        try:
            labels = [label.encode("ascii") for label in name.rstrip(".").split(".")]
        except UnicodeEncodeError as error:
            raise DNSError(f"not a domain name: {name!r}") from error
    else:
        labels = _unescape(name)
    if any(not 0 < len(label) < 64 for label in labels) or sum(len(label) + 1 for label in labels) > 254:
        raise DNSError(f"not a domain name: {name!r}")
    return labels


def _unescape(name: str) -> list[bytes]:
    labels: list[bytes] = []
    current = bytearray()
    at = 0
    while at < len(name):
        char = name[at]
        if char == "\\":
            if name[at + 1 : at + 4].isdigit() and len(name[at + 1 : at + 4]) == 3 and int(name[at + 1 : at + 4]) < 256:
                current.append(int(name[at + 1 : at + 4]))
                at += 4
                continue
            if at + 1 >= len(name) or not name[at + 1].isascii():
                raise DNSError(f"not a domain name: {name!r}")
            current.append(ord(name[at + 1]))
            at += 2
            continue
        if char == ".":
            labels.append(bytes(current))
            current.clear()
        elif char.isascii():
            current.append(ord(char))
        else:
            raise DNSError(f"not a domain name: {name!r}")
        at += 1
    if current:
        labels.append(bytes(current))
    return labels


_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_*/+=:@!#$%&'^`{|}~[]<>,?")


def name_of(labels: list[bytes]) -> str:
    """Labels as presentation text with a dot at the end."""
    if not labels:
        return "."
    parts = []
    for label in labels:
        if all(octet in _PLAIN for octet in label):
            parts.append(label.decode("ascii"))
        else:
            parts.append(
                "".join(chr(o) if o in _PLAIN else ("\\" + chr(o) if o in b".\\" else f"\\{o:03d}") for o in label)
            )
    return ".".join(parts) + "."


def _read_name(data: bytes, at: int) -> tuple[list[bytes], int]:
    """A name and the offset behind it. A pointer must point before the name's own parts."""
    labels: list[bytes] = []
    after = -1
    size = 0
    lowest = at
    while True:
        if at >= len(data):
            raise DNSError("a name is cut off")
        length = data[at]
        if length < 64:
            if length == 0:
                return labels, at + 1 if after < 0 else after
            size += length + 1
            if size > 254 or at + 1 + length > len(data):
                raise DNSError("a name is too long or cut off")
            labels.append(data[at + 1 : at + 1 + length])
            at += 1 + length
        elif length >= 192:
            if at + 1 >= len(data):
                raise DNSError("a name is cut off")
            target = (length & 63) << 8 | data[at + 1]
            if after < 0:
                after = at + 2
            if target >= lowest:
                raise DNSError("a name points forward")
            lowest = at = target
        else:
            raise DNSError("a label of an unknown kind")


# --------------------------------------------------------------------------------------------------------- decode


def decode(data: bytes) -> Message:
    """A message from its octets. Raises DNSError."""
    if len(data) < 12:
        raise DNSError("shorter than a header")
    number, bits, questions, answers, authority, additional = _HEAD.unpack_from(data)
    if questions + answers + authority + additional > MOST_RECORDS:
        raise DNSError("too many records")
    message = Message(number, bits & 0x87B0, bits >> 11 & 15, bits & 15)
    at = 12
    for _ in range(questions):
        labels, at = _read_name(data, at)
        if at + 4 > len(data):
            raise DNSError("a question is cut off")
        message.questions.append(Question(name_of(labels), *_QUESTION.unpack_from(data, at)))
        at += 4
    for count, section in (
        (answers, message.answers),
        (authority, message.authority),
        (additional, message.additional),
    ):
        for _ in range(count):
            record, at = _read_record(data, at)
            if record.type == OPT:
                if message.edns is not None:
                    raise DNSError("more than one OPT record")
                message.edns = max(512, record.klass)
                message.edns_version = record.ttl >> 16 & 255
                message.dnssec_ok = bool(record.ttl & 0x8000)
                message.rcode |= (record.ttl >> 24) << 4
            else:
                section.append(record)
    return message


def _read_record(data: bytes, at: int) -> tuple[Record, int]:
    labels, at = _read_name(data, at)
    if at + 10 > len(data):
        raise DNSError("a record is cut off")
    kind, klass, ttl, length = _RECORD.unpack_from(data, at)
    at += 10
    end = at + length
    if end > len(data):
        raise DNSError("a record is cut off")
    return Record(name_of(labels), kind, ttl, _read_data(data, at, end, kind), klass), end


def _read_data(data: bytes, at: int, end: int, kind: int) -> Any:
    try:
        if kind == A:
            return str(ipaddress.IPv4Address(data[at:end]))
        if kind == AAAA:
            return str(ipaddress.IPv6Address(data[at:end]))
        if kind in (NS, CNAME, PTR):
            return _whole_name(data, at, end)
        if kind == SRV:
            return (*_SRV.unpack_from(data, at), _whole_name(data, at + 6, end))
        if kind == MX:
            return (struct.unpack_from("!H", data, at)[0], _whole_name(data, at + 2, end))
        if kind == SOA:
            mname, next_at = _read_name(data, at)
            rname, next_at = _read_name(data, next_at)
            if next_at + 20 != end:
                raise DNSError("an SOA record of a wrong length")
            return (name_of(mname), name_of(rname), *_SOA.unpack_from(data, next_at))
    except (ipaddress.AddressValueError, struct.error) as error:
        raise DNSError(f"bad data of a record of type {kind}") from error
    if kind == TXT:
        texts: list[bytes] = []
        while at < end:
            size = data[at]
            if at + 1 + size > end:
                raise DNSError("a text is cut off")
            texts.append(data[at + 1 : at + 1 + size])
            at += 1 + size
        return tuple(texts)
    return data[at:end]


def _whole_name(data: bytes, at: int, end: int) -> str:
    labels, after = _read_name(data, at)
    if after != end:
        raise DNSError("a record's name does not fill it")
    return name_of(labels)


# --------------------------------------------------------------------------------------------------------- encode


class _Writer:
    """Octets with names compressed against those already written (RFC 1035, 4.1.4)."""

    def __init__(self) -> None:
        self.out = bytearray(12)
        self._seen: dict[tuple[bytes, ...], int] = {}

    def name(self, name: str, compress: bool = True) -> None:
        labels = labels_of(name)
        for index in range(len(labels)):
            key = tuple(labels[index:])
            known = self._seen.get(key) if compress else None
            if known is not None:
                self.out += struct.pack("!H", 0xC000 | known)
                return
            if len(self.out) < 0x4000:
                self._seen.setdefault(key, len(self.out))
            self.out.append(len(labels[index]))
            self.out += labels[index]
        self.out.append(0)

    def record(self, record: Record) -> None:
        self.name(record.name)
        self.out += _RECORD.pack(record.type, record.klass, record.ttl, 0)
        start = len(self.out)
        self._data(record)
        struct.pack_into("!H", self.out, start - 2, len(self.out) - start)

    def _data(self, record: Record) -> None:
        kind, data = record.type, record.data
        if kind == A:
            self.out += ipaddress.IPv4Address(data).packed
        elif kind == AAAA:
            self.out += ipaddress.IPv6Address(data).packed
        elif kind in (NS, CNAME, PTR):
            self.name(data)
        elif kind == SRV:
            self.out += _SRV.pack(*data[:3])
            self.name(data[3], compress=False)  # RFC 2782: the target is never compressed
        elif kind == MX:
            self.out += struct.pack("!H", data[0])
            self.name(data[1])
        elif kind == SOA:
            self.name(data[0])
            self.name(data[1])
            self.out += _SOA.pack(*data[2:])
        elif kind == TXT:
            for text in data:
                if len(text) > 255:
                    raise DNSError("a text of more than 255 octets")
                self.out.append(len(text))
                self.out += text
        else:
            self.out += data


def encode(message: Message, limit: int = 65535) -> bytes:
    """A message's octets, at most `limit`: past it whole records are left out and TC is set (RFC 2181, 9)."""
    writer = _Writer()
    out = writer.out
    room = limit - (11 if message.edns is not None else 0)
    for question in message.questions:
        writer.name(question.name)
        out += _QUESTION.pack(question.type, question.klass)
    counts = [0, 0, 0]
    truncated = False
    for index, section in enumerate((message.answers, message.authority, message.additional)):
        for record in section:
            before = len(out)
            writer.record(record)
            if len(out) > room:
                del out[before:]
                # What is additional may be left out silently; the answer may not.
                truncated = truncated or index < 2
                break
            counts[index] += 1
        if truncated:
            break
    if message.edns is not None:
        out += b"\0" + _RECORD.pack(
            OPT, message.edns, message.rcode >> 4 << 24 | (0x8000 if message.dnssec_ok else 0), 0
        )
    flags = message.flags | (TC if truncated else 0)
    bits = flags | message.opcode << 11 | message.rcode & 15
    additional = counts[2] + (message.edns is not None)
    _HEAD.pack_into(out, 0, message.id, bits, len(message.questions), counts[0], counts[1], additional)
    return bytes(out)


def reverse_name(address: str) -> str:
    """The name under which an address has its PTR records."""
    return ipaddress.ip_address(address).reverse_pointer + "."
