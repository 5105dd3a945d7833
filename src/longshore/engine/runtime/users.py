"""Who a process in a container runs as: `user[:group]` looked up in the container's own passwd and group files.

Source: Docker's documented USER syntax; the texts of errors are the engine's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from longshore.machinery import rooted

_LIMIT = 4 * 2**20
_MAX_ID = 2**31 - 1


class UnknownUser(ValueError):
    """No such user or group in the container, or an id out of range."""


@dataclass(frozen=True, slots=True)
class User:
    """Numeric ids, supplementary groups and the home folder ("/" when the passwd file does not know the user)."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


def _lines(root: Path, path: str) -> list[list[str]]:
    try:
        data = rooted.read_file(root, path, _LIMIT)
    except OSError:
        return []
    return [line.split(":") for line in data.decode(errors="replace").splitlines() if line and not line.startswith("#")]


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def resolve_user(root: Path, user: str, extra_groups: Iterable[str] = ()) -> User:
    """Resolve "", "name", "uid", "name:group", "uid:gid" against the passwd and group files under `root`.

    extra_groups: names or numbers to add to the supplementary groups. Raises UnknownUser.
    """
    name, _, group = user.partition(":")
    passwd, groups_file = _lines(root, "/etc/passwd"), _lines(root, "/etc/group")
    wanted = name or "0"
    number = _number(wanted)
    entry = next((p for p in passwd if len(p) >= 4 and p[0] == wanted), None)
    if entry is None and number is not None:
        entry = next((p for p in passwd if len(p) >= 4 and p[2] == str(number)), None)
    home = "/"
    if entry is not None:
        uid, gid = _number(entry[2]) or 0, _number(entry[3]) or 0
        home = entry[5] if len(entry) > 5 and entry[5] else "/"
    elif number is not None:
        if not 0 <= number <= _MAX_ID:
            raise UnknownUser("uids and gids must be in range 0-2147483647")
        uid, gid = number, 0
    else:
        raise UnknownUser(f"unable to find user {wanted}: no matching entries in passwd file")

    def group_id(text: str) -> int:
        found = next((g for g in groups_file if len(g) >= 3 and g[0] == text), None)
        if found is not None:
            return _number(found[2]) or 0
        value = _number(text)
        if value is None:
            raise UnknownUser(f"unable to find group {text}: no matching entries in group file")
        if not 0 <= value <= _MAX_ID:
            raise UnknownUser("uids and gids must be in range 0-2147483647")
        return value

    supplementary: set[int] = set()
    if group:
        gid = group_id(group)
    elif entry is not None:
        for g in groups_file:
            if len(g) >= 4 and entry[0] in g[3].split(","):
                value = _number(g[2])
                if value is not None:
                    supplementary.add(value)
    supplementary.update(group_id(g) for g in extra_groups)
    return User(uid, gid, tuple(sorted(supplementary)), home if os.path.isabs(home) else "/")
