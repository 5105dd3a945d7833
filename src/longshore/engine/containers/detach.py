"""Detach keys: the sequence by which a client leaves a container's terminal without ending it.

Source: Docker documentation, "Override the detach sequence".
"""

from __future__ import annotations

DEFAULT = b"\x10\x11"  # ctrl-p,ctrl-q
_SPECIAL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse(text: str) -> bytes:
    """ "ctrl-p,ctrl-q" as bytes; "" is the default. Raises ValueError."""
    if not text:
        return DEFAULT
    codes = bytearray()
    for key in text.split(","):
        if len(key) == 1:
            codes += key.encode()
            continue
        name = key.removeprefix("ctrl-")
        if name == key or len(name) != 1:
            raise ValueError(f"Unknown character: '{key}'")
        if "a" <= name <= "z":
            codes.append(ord(name) - ord("a") + 1)
        elif name in _SPECIAL:
            codes.append(_SPECIAL[name])
        else:
            raise ValueError(f"Unknown character: '{key}'")
    return bytes(codes)


def shown(text: str) -> str:
    """As exec inspect gives them: the bytes in base64, "" when none were set."""
    if not text:
        return ""
    import base64

    return base64.b64encode(parse(text)).decode()


class Watcher:
    """Looks for the sequence in input that comes in pieces; holds back what may be its beginning."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(what is to be passed on, whether the sequence was complete)."""
        out = bytearray()
        keys = self._keys
        for byte in data:
            if byte == keys[self._matched]:
                self._matched += 1
                if self._matched == len(keys):
                    return bytes(out), True
                continue
            if self._matched:
                out += keys[: self._matched]
                self._matched = 0
                if byte == keys[0]:
                    self._matched = 1
                    if len(keys) == 1:
                        return bytes(out), True
                    continue
            out.append(byte)
        return bytes(out), False
