"""Signal names and numbers as dockerd takes them: "KILL", "SIGKILL", "9", "SIGRTMIN+3"."""

from __future__ import annotations

import signal

from longshore.engine.errors import InvalidParameter

_NAMES = {s.name.removeprefix("SIG"): int(s) for s in signal.Signals if not s.name.startswith("SIGRT")}
_NAMES |= {"CLD": 17, "IOT": 6, "IO": 29, "UNUSED": 31, "POLL": 29, "STKFLT": 16, "PWR": 30}
_NAMES |= {"RTMIN": 34, "RTMAX": 64}
_NAMES |= {f"RTMIN+{n}": 34 + n for n in range(1, 16)} | {f"RTMAX-{n}": 64 - n for n in range(1, 15)}
_NUMBERS = set(_NAMES.values())


def parse(text: str) -> int:
    """The signal's number. Raises InvalidParameter."""
    if text.lstrip("+-").isdigit():
        number = int(text)
        if number == 0:
            raise InvalidParameter(f"invalid signal: {text}")
        return number
    number = _NAMES.get(text.upper().removeprefix("SIG"), 0)
    if not number:
        raise InvalidParameter(f"invalid signal: {text}")
    return number


def known(number: int) -> bool:
    """Whether Linux has this signal."""
    return number in _NUMBERS
