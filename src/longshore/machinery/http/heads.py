"""Heads: a request's octets to a Request, an answer's status and fields to octets."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import httptools

from .body import Body, ChunkedBody, LengthBody
from .flow import Inbox
from .headers import Headers
from .message import REASONS, BadTarget, Request

if TYPE_CHECKING:
    from .connection import Connection

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_METHODS = {m.encode(): m for m in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
_STATUS_LINES = {code: f"HTTP/1.1 {code} {reason}\r\n".encode() for code, reason in REASONS.items()}
_TOKEN = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ")
_date: tuple[int, bytes] = (0, b"")


class RefusedRequest(Exception):
    """What came is no request that can be handled: the status and text of the answer."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message


def date_line() -> bytes:
    """The Date field, made once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, f"Date: {formatdate(now, usegmt=True)}\r\n".encode())
    return _date[1]


def status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Status {status}\r\n".encode()


def header_lines(headers: Sequence[tuple[str, str]]) -> bytes:
    """Fields as octets. Line breaks in a value become spaces, so that a value cannot make a field of its own."""
    if not headers:
        return b""
    text = "".join([f"{name}: {value}\0" for name, value in headers])
    if "\r" in text or "\n" in text:
        text = text.replace("\r", " ").replace("\n", " ")
    return text.replace("\0", "\r\n").encode("utf-8", "surrogateescape")


class HeadParser:
    """Requests' heads through httptools, a whole one at a time. One parser serves all requests without a body."""

    __slots__ = ("_complete", "_fields", "_keep", "_parser", "_url")

    def __init__(self) -> None:
        self._parser: Any = None
        self._url = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._complete = self._keep = False

    # what httptools calls

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        self._complete = True
        self._keep = self._parser.should_keep_alive()

    def release(self) -> None:
        """Lets the parser go: it holds this object, and a cycle would wait for the garbage collector."""
        self._parser = None

    def parse(self, connection: Connection, head: bytes) -> tuple[Request, Body | None]:
        """The request of a head (up to and with its empty line), and the framing of its body; RefusedRequest."""
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        self._url, self._fields, self._complete = b"", [], False
        unknown = b""
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._parser = None
        except httptools.HttpParserInvalidMethodError:
            # httptools knows a list of methods; any token is one, and it is the handler that does not take it
            unknown = self._unknown_method(head)
        except httptools.HttpParserError as error:
            raise RefusedRequest(400, "Bad Request") from error
        if not self._complete:
            raise RefusedRequest(400, "Bad Request")
        line_end = head.find(b"\r\n")
        version = head[line_end - 8 : line_end]
        if version == b"HTTP/1.1":
            minor = "1.1"
        elif version == b"HTTP/1.0":
            minor = "1.0"
        else:
            raise RefusedRequest(505, "HTTP Version Not Supported")
        headers = Headers.of_wire(self._fields)
        first = headers.first()
        if len(first) != len(self._fields) and len(headers.getall("host")) > 1:
            raise RefusedRequest(400, "Bad Request: too many Host headers")
        if b"host" not in first and minor == "1.1":
            raise RefusedRequest(400, "Bad Request: missing required Host header")
        name = unknown or parser.get_method()
        method = _METHODS.get(name) or name.decode()
        if method == "CONNECT":
            raise RefusedRequest(405, "Method Not Allowed")
        target = self._url.decode("utf-8", "surrogateescape")
        try:
            request = Request(connection, method, target, headers, version=minor, keep_alive=self._keep)
        except BadTarget as error:
            raise RefusedRequest(400, f"Bad Request: {error}") from error
        coding = first.get(b"transfer-encoding")
        length = first.get(b"content-length")
        if coding is None and (length is None or length == b"0"):
            return request, None
        return request, self._body(connection, request, headers, coding, length)

    def _unknown_method(self, head: bytes) -> bytes:
        """Parses a head whose method httptools does not know; the method."""
        found = _TOKEN.match(head)
        if found is None:
            raise RefusedRequest(400, "Bad Request")
        self._url, self._fields, self._complete = b"", [], False
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(b"POST" + head[found.end(1) :])
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            raise RefusedRequest(400, "Bad Request") from error
        self._parser = None
        return found[1]

    def _body(
        self, connection: Connection, request: Request, headers: Headers, coding: bytes | None, length: bytes | None
    ) -> Body | None:
        body: Body
        if coding is not None:
            if length is not None or request.version == "1.0":
                raise RefusedRequest(400, "Bad Request")
            if coding.strip().lower() != b"chunked" or len(headers.getall("transfer-encoding")) > 1:
                raise RefusedRequest(501, "Unsupported transfer encoding")
            body = ChunkedBody()
            request._length = None
        else:
            text = (length or b"").strip()
            if not text.isdigit():
                raise RefusedRequest(400, "Bad Request")
            request._length = int(text)
            if not request._length:
                return None
            body = LengthBody(request._length)
        self._parser = None  # it would wait for a body that it is never given
        request._inbox = Inbox(connection.pause_reading, connection.resume_reading)
        expect = headers.get("expect")
        if expect is not None:
            if expect.lower() != "100-continue":
                raise RefusedRequest(417, "Expectation Failed")
            request._continue = request.version == "1.1"
        return body
