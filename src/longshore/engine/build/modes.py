"""--chmod: a file's new mode, from octal digits or chmod(1)'s symbols ("u=rwX,go-w"). Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

from longshore.engine.errors import InvalidParameter

Mode = Callable[[int, bool], int]

_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=][rwxXst]*|[-+=][ugo])+)")
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)")
_SHIFT = {"u": 6, "g": 3, "o": 0}


def parse_mode(text: str) -> Mode:
    """The change that a --chmod means: from a file's mode bits, and whether it is a folder, to new bits.

    Raises InvalidParameter.
    """
    if re.fullmatch(r"[0-7]{1,4}", text):
        number = int(text, 8)
        return lambda mode, folder: number
    clauses: list[tuple[str, list[tuple[str, str]]]] = []
    for part in text.split(","):
        found = _CLAUSE.fullmatch(part)
        if not found:
            raise InvalidParameter(
                f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
                if text[:1].isdigit()
                else f"invalid mode '{text}'"
            )
        clauses.append((found[1] or "a", [(a[1], a[2]) for a in _ACTION.finditer(found[2])]))

    def change(mode: int, folder: bool) -> int:
        for who, actions in clauses:
            whom = "ugo" if "a" in who else who
            for operator, what in actions:
                mode = _apply(mode, folder, whom, operator, what)
        return mode

    return change


def _apply(mode: int, folder: bool, whom: str, operator: str, what: str) -> int:
    bits = 0
    mask = 0
    for one in whom:
        shift = _SHIFT[one]
        mask |= 7 << shift
        if what and what in "ugo":
            bits |= (mode >> _SHIFT[what] & 7) << shift
            continue
        for letter in what:
            if letter in "rwx":
                bits |= {"r": 4, "w": 2, "x": 1}[letter] << shift
            elif letter == "X" and (folder or mode & 0o111):
                bits |= 1 << shift
            elif letter == "s" and one in "ug":
                bits |= 0o4000 if one == "u" else 0o2000
            elif letter == "t":
                bits |= 0o1000
    if operator == "+":
        return mode | bits
    if operator == "-":
        return mode & ~bits
    if "u" in whom:
        mask |= 0o4000
    if "g" in whom:
        mask |= 0o2000
    return mode & ~mask | bits
