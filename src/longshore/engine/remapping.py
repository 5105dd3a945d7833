"""`userns-remap`: whose subordinate ids the containers of the Docker API have in place of the host's.

Source: moby daemon/daemon_unix.go (parseRemappedRoot, setupRemappedRoot, setupDaemonRoot), daemon/internal/usergroup;
subuid(5), subgid(5).
"""

from __future__ import annotations

import grp
import logging
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

from longshore.engine.configuration import ConfigurationError
from longshore.engine.containers import namespaces
from longshore.machinery import netns, users
from longshore.machinery.users import Mapping, Owners

log = logging.getLogger("longshore.engine")

DEFAULT_USER = "dockremap"
SUBUID, SUBGID = Path("/etc/subuid"), Path("/etc/subgid")
_FIRST, _LENGTH = 100_000, 65_536


def resolve(setting: str) -> tuple[tuple[Mapping, ...], tuple[Mapping, ...]] | None:
    """The user and group ids that a setting means; None for no remapping.

    setting: "", "default" (the user dockremap, made where it is missing), a user or uid, with ":" and a group or gid.
    Raises ConfigurationError with dockerd's texts.
    """
    if not setting:
        return None
    user = _user(setting)
    if user.pw_name == "root":
        log.warning("User namespaces: root cannot be remapped with itself; user namespaces are OFF")
        return None
    if not users.supported():
        raise ConfigurationError("userns-remap needs user namespaces and ID-mapped mounts of overlayfs (Linux 5.19)")
    log.info("User namespaces: ID ranges will be mapped to subuid/subgid ranges of: %s", user.pw_name)
    return _mappings(SUBUID, user), _mappings(SUBGID, user)


def _user(setting: str) -> pwd.struct_passwd:
    """The user whose ranges are meant; user and group are there. Raises ConfigurationError."""
    parts = setting.split(":")
    if len(parts) > 2:
        raise ConfigurationError(f'Invalid user/group specification in --userns-remap: "{setting}"')
    if _is_number(parts[0]):
        try:
            user = pwd.getpwuid(int(parts[0]))
        except KeyError as error:
            raise ConfigurationError(f"Uid {parts[0]} has no entry in /etc/passwd: {error.args[0]}") from None
        group = parts[0]
    else:
        name = DEFAULT_USER if parts[0] == "default" else parts[0]
        try:
            user = pwd.getpwnam(name)
        except KeyError as error:
            if parts[0] != "default":
                raise ConfigurationError(f'Error during uid lookup for "{name}": {error.args[0]}') from None
            return _make_user()
        group = name
    _check_group(parts[1] if len(parts) == 2 else group, given=len(parts) == 2)
    return user


def _check_group(group: str, *, given: bool) -> None:
    try:
        if _is_number(group):
            grp.getgrgid(int(group))
        else:
            grp.getgrnam(group)
    except KeyError as error:
        if _is_number(group):
            file = "/etc/passwd" if given else "/etc/group"
            raise ConfigurationError(f"Gid {group} has no entry in {file}: {error.args[0]}") from None
        what = "groupname" if given else "gid"
        raise ConfigurationError(f'Error during {what} lookup for "{group}": {error.args[0]}') from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 1 << 31


def _make_user() -> pwd.struct_passwd:
    """The user dockremap with ranges of its own, by the system's own programs. Raises ConfigurationError."""
    failed = f'Error during "{DEFAULT_USER}" user creation: '
    if shutil.which("adduser"):
        command = ["adduser", "--system", "--shell", "/bin/false", "--no-create-home", "--disabled-login", "--disabled-password", "--group", DEFAULT_USER]  # fmt: skip
    elif shutil.which("useradd"):
        command = ["useradd", "-r", "-s", "/bin/false", DEFAULT_USER]
    else:
        raise ConfigurationError(failed + "cannot add user; no useradd/adduser binary found")
    commands = [command]
    for file, option in ((SUBUID, "-v"), (SUBGID, "-w")):
        entries = _entries(file)
        if not any(name == DEFAULT_USER for name, _, _ in entries):
            first = _free_range((begin, count) for _, begin, count in entries)
            commands.append(["usermod", option, f"{first}-{first + _LENGTH - 1}", DEFAULT_USER])
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise ConfigurationError(f"{failed}{command[0]}: {error.strerror}") from None
        if done.returncode:
            raise ConfigurationError(f"{failed}{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return pwd.getpwnam(DEFAULT_USER)


def _free_range(taken: Iterable[tuple[int, int]]) -> int:
    first = _FIRST
    for begin, count in sorted(taken):
        if begin < first + _LENGTH and first < begin + count:
            first = begin + count
    return first


def _entries(file: Path) -> list[tuple[str, int, int]]:
    """(user's name or uid, first id, how many) of each line; lines that say nothing are left out."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        parts = line.split("#")[0].strip().split(":")
        if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit() and int(parts[2]):
            found.append((parts[0], int(parts[1]), int(parts[2])))
    return found


def _mappings(file: Path, user: pwd.struct_passwd) -> tuple[Mapping, ...]:
    found: list[Mapping] = []
    inside = 0
    for name, first, count in _entries(file):
        if name in (user.pw_name, str(user.pw_uid)):
            found.append((inside, first, count))
            inside += count
    if not found:
        raise ConfigurationError(f'error creating ID mappings: no subuid ranges found for user "{user.pw_name}"')
    return tuple(found)


def prepare(mappings: tuple[tuple[Mapping, ...], tuple[Mapping, ...]], data: Path, run: Path) -> tuple[Owners, Path]:
    """The namespace that mounts are mapped with, pinned under `run`, and the folder in `data` of containers with it.

    data: the engine's data folder; containers and volumes of a mapping lie in a folder of it that is named by the ids of
    root, as dockerd's. Blocking. Raises ConfigurationError, OSError.
    """
    folder = run / "userns"
    netns.delete(folder / "user")
    users.make(folder, [], *mappings)
    owners = Owners(folder / "user", *mappings)
    uid, gid = owners.root
    own = data / f"{uid}.{gid}"
    own.mkdir(exist_ok=True)
    os.chown(own, os.getuid(), gid)
    os.chmod(own, 0o710)
    folder.chmod(0o711)
    _check_way(folder, uid, gid)
    return owners, own


def _check_way(folder: Path, uid: int, gid: int) -> None:
    """A container's root user must be able to reach its root file system. Raises ConfigurationError."""
    for above in folder.parents:
        info = os.stat(above)
        allowed = (
            info.st_mode & stat.S_IXOTH
            or (info.st_uid == uid and info.st_mode & stat.S_IXUSR)
            or (info.st_gid == gid and info.st_mode & stat.S_IXGRP)
        )
        if not allowed:
            raise ConfigurationError(
                f"a subdirectory in your graphroot path ({folder}) restricts access to the remapped root uid/gid; "
                f"please fix by allowing 'o+x' permissions on existing directories: {above}"
            )


def release(run: Path) -> None:
    """Take away what `prepare` pinned, and what is left of single containers; none may run. Blocking."""
    folder = run / "userns"
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.is_dir():
                namespaces.release(entry)
        namespaces.release(folder)
