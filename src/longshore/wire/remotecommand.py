"""The remote command protocols: names, channels, terminal sizes and the Status at the end.

Sources: k8s.io/apimachinery/pkg/util/remotecommand, k8s.io/apimachinery/pkg/util/httpstream/wsstream,
k8s.io/kubelet/pkg/cri/streaming/remotecommand.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

# SPDY's X-Stream-Protocol-Version, newest first
V5, V4, V3, V2, V1 = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
)
SPDY_SERVER_PROTOCOLS = (V4, V3, V2, V1)
SPDY_CLIENT_PROTOCOLS = (V5, V4, V3, V2, V1)
# WebSocket subprotocols: V4 and V5 carry binary messages, these base64 text
BASE64_V4, BASE64_V1 = "v4.base64.channel.k8s.io", "base64.channel.k8s.io"
WEBSOCKET_SERVER_PROTOCOLS = (V5, V4, BASE64_V4, V1, BASE64_V1)

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
CLOSE_SIGNAL = 255
STREAM_TYPES = {"stdin": STDIN, "stdout": STDOUT, "stderr": STDERR, "error": ERROR, "resize": RESIZE}
STREAM_NAMES = {v: k for k, v in STREAM_TYPES.items()}


class ChannelError(ValueError):
    """A message that is none of the channel protocol."""


@dataclass(frozen=True, slots=True)
class Options:
    """Which streams a session has. With a terminal there is no stderr of its own (NewOptions of upstream)."""

    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    tty: bool = False

    def problem(self) -> str:
        """Why these options are refused; "" when they are right."""
        if self.tty and self.stderr:
            return "tty and stderr cannot both be true"
        if not (self.stdin or self.stdout or self.stderr):
            return "you must specify at least one of stdin, stdout, stderr"
        return ""


def encode(protocol: str, channel: int, data: bytes) -> tuple[bytes, bool]:
    """A message for `channel`, and whether it is text."""
    if "base64" in protocol:
        return b"%d" % channel + base64.b64encode(data), True
    return bytes((channel,)) + data, False


def decode(protocol: str, message: bytes) -> tuple[int, bytes]:
    """The channel and payload of a message; ChannelError when it is none."""
    if not message:
        raise ChannelError("empty message")
    if "base64" in protocol:
        if not 0x30 <= message[0] <= 0x39:
            raise ChannelError("no channel digit")
        try:
            return message[0] - 0x30, base64.b64decode(message[1:], validate=True)
        except binascii.Error as error:
            raise ChannelError("bad base64") from error
    return message[0], message[1:]


class SizeParser:
    """Terminal sizes from the resize stream: one JSON object after another, as Go's json.Decoder takes them."""

    LIMIT = 4096

    def __init__(self) -> None:
        self._text = ""

    def feed(self, data: bytes) -> list[tuple[int, int]]:
        """(columns, rows) of each whole object. ChannelError for what is no such object."""
        self._text += data.decode("utf-8", "replace")
        out: list[tuple[int, int]] = []
        decoder = json.JSONDecoder()
        while text := self._text.lstrip():
            try:
                value, end = decoder.raw_decode(text)
            except (ValueError, RecursionError):
                if len(text) > self.LIMIT or not text.startswith("{"):
                    raise ChannelError("bad terminal size") from None
                break
            self._text = text[end:]
            size = []
            for name in ("Width", "Height"):
                number = value.get(name, value.get(name.lower(), 0)) if isinstance(value, dict) else None
                if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 65536:
                    raise ChannelError("bad terminal size")
                size.append(number)
            out.append((size[0], size[1]))
        else:
            self._text = ""
        return out


def size_message(columns: int, rows: int) -> bytes:
    """A terminal size for the resize stream."""
    return b'{"Width":%d,"Height":%d}\n' % (columns, rows)


SUCCESS: dict[str, Any] = {"metadata": {}, "status": "Success"}


def exit_status(code: int, what: str = "") -> dict[str, Any]:
    """The Status of a command that ended with `code`; `what` is the runtime's text."""
    if code == 0:
        return SUCCESS
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: {what or f'exit status {code}'}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def failure(why: str) -> dict[str, Any]:
    """The Status of a session that did not work (apierrors.NewInternalError)."""
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"Internal error occurred: {why}",
        "reason": "InternalError",
        "details": {"causes": [{"message": why}]},
        "code": 500,
    }


def status_payload(protocol: str, status: dict[str, Any]) -> bytes:
    """What goes on the error stream: a Status since v4, before it a text, and only when something failed."""
    if protocol in (V5, V4, BASE64_V4):
        return json.dumps(status, separators=(",", ":")).encode()
    return b"" if status.get("status") == "Success" else str(status.get("message", "")).encode()


def parse_status(protocol: str, data: bytes) -> dict[str, Any]:
    """The Status that the error stream held."""
    if protocol in (V5, V4, BASE64_V4):
        if not data:
            return failure("error stream closed without a status")
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        return value if isinstance(value, dict) else failure(f"error stream protocol error: {data[:200]!r}")
    return failure(data.decode("utf-8", "replace")) if data else SUCCESS


def exit_code(status: dict[str, Any]) -> int | None:
    """The exit code that a Status tells: 0 for success, None when the session itself failed."""
    if status.get("status") == "Success":
        return 0
    if status.get("reason") == "NonZeroExitCode":
        for cause in (status.get("details") or {}).get("causes") or ():
            if cause.get("reason") == "ExitCode" and str(cause.get("message", "")).isdigit():
                return int(cause["message"])
    return None
