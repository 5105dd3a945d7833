"""The CRI log format (kubernetes/kubernetes design: kubelet-cri-logging): `TIME STREAM TAG MESSAGE\\n`.

TIME is RFC 3339 with nanoseconds, STREAM stdout or stderr, TAG `F` (full) or `P` (the line goes on in the next
record of the same stream); tags are separated by colons, the first one counts. Longshore's store adds a tag of its own
for lines that came over the network with line breaks in them: `F:e`, whose message has them escaped (backslash, n).
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from typing import NamedTuple


class Line(NamedTuple):
    """One record: time in nanoseconds since 1970, b"stdout" or b"stderr", whether the line ends here, its bytes."""

    time: int
    stream: bytes
    full: bool
    message: bytes


_seconds: dict[bytes, int] = {}


def parse_time(text: bytes) -> int:
    """RFC 3339 to nanoseconds since 1970. Raises ValueError.

    The seconds' part is looked up: records of one second share it.
    """
    head = text[:19]
    seconds = _seconds.get(head)
    if seconds is None:
        if len(head) != 19 or head[4:5] != b"-" or head[10:11] not in (b"T", b"t", b" "):
            raise ValueError(f"not a time: {text[:40]!r}")
        seconds = calendar.timegm(
            (int(head[:4]), int(head[5:7]), int(head[8:10]), int(head[11:13]), int(head[14:16]), int(head[17:19]))
        )
        if len(_seconds) > 4096:
            _seconds.clear()
        _seconds[head] = seconds
    rest = text[19:]
    nanoseconds = 0
    if rest[:1] == b".":
        digits = 1
        while digits < len(rest) and rest[digits : digits + 1].isdigit():
            digits += 1
        nanoseconds = int((rest[1:digits] + b"000000000")[:9])
        rest = rest[digits:]
    if rest in (b"Z", b"z"):
        return seconds * 1_000_000_000 + nanoseconds
    if len(rest) == 6 and rest[:1] in b"+-" and rest[3:4] == b":":
        offset = (int(rest[1:3]) * 60 + int(rest[4:6])) * 60
        seconds += -offset if rest[:1] == b"+" else offset
        return seconds * 1_000_000_000 + nanoseconds
    raise ValueError(f"not a time: {text[:40]!r}")


def parse_line(raw: bytes) -> Line:
    """One record without its newline. Raises ValueError when it is not in the format."""
    try:
        time, stream, tag, message = raw.split(b" ", 3)
    except ValueError:
        parts = raw.split(b" ")
        if len(parts) != 3:
            raise ValueError(f"not a CRI log record: {raw[:80]!r}") from None
        time, stream, tag = parts
        message = b""
    if stream not in (b"stdout", b"stderr"):
        raise ValueError(f"not a CRI log record: {raw[:80]!r}")
    if tag == b"F:e":
        message = re.sub(rb"\\(.)", lambda m: b"\n" if m[1] == b"n" else m[1], message)
    return Line(parse_time(time), stream, not tag.startswith(b"P"), message)


def lines(block: bytes) -> Iterator[Line]:
    """The records of a block of whole lines; what is not in the format is passed over."""
    for raw in block.split(b"\n"):
        if raw:
            try:
                yield parse_line(raw)
            except ValueError:
                continue


_WHOLE = frozenset({b" stdout F ", b" stderr F "})
_KNOWN = _WHOLE | {b" stdout P ", b" stderr P "}
#: Longest text of a time: `2024-01-02T03:04:05.123456789+00:00`.
LONGEST_TIME = 35
_HEAD = 10  # octets of ` stdout F `


def columns(block: bytes) -> tuple[bytes, bytes, int, bool] | None:
    """A block of whole records taken apart at once: times, rest, records, whether each is a whole line.

    times: the records' times one after another, all of one length; rest: the records without them, with newlines
    between. None where times differ in length or a record is in another form: such blocks are read line by line.
    """
    lines = block.split(b"\n")
    width = block.find(b" ")
    if lines.pop() or not lines or not 0 < width <= LONGEST_TIME:
        return None
    heads = {line[width : width + _HEAD] for line in lines}
    if not heads <= _KNOWN:
        return None
    times = b"".join([line[:width] for line in lines])
    return times, b"\n".join([line[width:] for line in lines]), len(lines), heads <= _WHOLE


def text_of(block: bytes) -> tuple[bytes, bytes] | None:
    """The stream and the text of a block whose records are all of one stream, pieces of lines joined; None: otherwise."""
    width = block.find(b" ")
    stream = block[width + 1 : width + 7]
    lines = block.split(b"\n")
    if lines.pop() or not lines or stream not in (b"stdout", b"stderr") or width > LONGEST_TIME:
        return None
    whole, piece = b" %b F " % stream, b" %b P " % stream
    end = width + _HEAD
    heads = {line[width:end] for line in lines}
    if heads == {whole}:
        lines.append(b" " * end)  # what the last newline stands before
        return stream, b"\n".join([line[end:] for line in lines])
    if not heads <= {whole, piece}:
        return None
    tag = end - 2
    return stream, b"".join([line[end:] + b"\n" if line[tag] == 70 else line[end:] for line in lines])  # 70: F


def joined(records: Iterator[Line]) -> Iterator[Line]:
    """Join partial records into whole lines, a stream at a time; an unfinished last line is given as it stands."""
    open_parts: dict[bytes, tuple[int, list[bytes]]] = {}
    for record in records:
        held = open_parts.get(record.stream)
        if not record.full:
            if held is None:
                open_parts[record.stream] = (record.time, [record.message])
            else:
                held[1].append(record.message)
        elif held is None:
            yield record
        else:
            del open_parts[record.stream]
            held[1].append(record.message)
            yield Line(held[0], record.stream, True, b"".join(held[1]))
    for stream, (time, parts) in open_parts.items():
        yield Line(time, stream, False, b"".join(parts))


def format_line(time: int, stream: bytes, message: bytes, full: bool = True) -> bytes:
    """One record with its newline; time in nanoseconds since 1970."""
    if b"\n" in message:
        message = message.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
        return b"%s %s F:e %s\n" % (format_time(time), stream, message)
    return b"%s %s %s %s\n" % (format_time(time), stream, b"F" if full else b"P", message)


_texts: dict[int, bytes] = {}


def format_time(time: int) -> bytes:
    """Nanoseconds since 1970 as RFC 3339 in UTC with nine digits."""
    seconds, nanoseconds = divmod(time, 1_000_000_000)
    head = _texts.get(seconds)
    if head is None:
        import time as clock

        head = clock.strftime("%Y-%m-%dT%H:%M:%S", clock.gmtime(seconds)).encode()
        if len(_texts) > 4096:
            _texts.clear()
        _texts[seconds] = head
    return b"%s.%09dZ" % (head, nanoseconds)
