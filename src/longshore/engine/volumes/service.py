"""`VolumeService`: the local driver. A volume is a folder `_data`, or what its options mount there while it is used.

Source: Docker Engine API, Volume; the texts of errors are dockerd's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from longshore.engine import durable
from longshore.engine.errors import Conflict, InvalidParameter, NotFound, SystemFailure
from longshore.machinery import mounts
from longshore.machinery.users import Owners

Json = dict[str, Any]

ANONYMOUS = "com.docker.volume.anonymous"
_NAME = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$")
_PASSWORD = re.compile(r"password=[^,]*")
_OPTIONS = {"type", "o", "device", "size"}


def check_name(name: str) -> None:
    """Raises InvalidParameter for what is no volume name."""
    if len(name) == 1:
        raise InvalidParameter("volume name is too short, names should be at least two alphanumeric characters")
    if not _NAME.match(name):
        raise InvalidParameter(
            f'"{name}" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. '
            "If you intended to pass a host directory, use absolute path"
        )


def check_size(text: str) -> None:
    """Raises InvalidParameter for a size: there are no quotas."""
    if not text:
        return
    number = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s?([kKmMgGtTpP]?)[iI]?[bB]?", text)
    if number is None:
        raise InvalidParameter(f"invalid size: '{text}'")
    if float(number[1]) > 0:
        raise InvalidParameter("quota size requested but no quota support")


class VolumeService:
    """Volumes under `root`, and who uses them. emit: takes the events create, mount, unmount, destroy and prune.

    owners: whose root new volumes belong to, None: the host's.
    """

    def __init__(
        self, root: Path, emit: Callable[[str, str, str, Mapping[str, str]], None], owners: Owners | None = None
    ) -> None:
        self._root = root
        self._owner = owners.root if owners is not None else None
        self._emit = emit
        self._volumes: dict[str, Json] = {}
        self._users: dict[str, set[str]] = {}
        self._mounted: dict[str, set[str]] = {}
        self._mounting: dict[str, threading.Lock] = {}
        root.mkdir(parents=True, exist_ok=True, mode=0o701)
        for folder in sorted(root.iterdir()):
            if not folder.is_dir() or folder.name.startswith("."):
                continue
            record: Json = {"labels": None, "options": None, "created": _created(folder)}
            with contextlib.suppress(OSError, orjson.JSONDecodeError):
                record.update(orjson.loads((folder / "opts.json").read_bytes()))
            self._volumes[folder.name] = record

    def path(self, name: str) -> Path:
        """The folder that containers see."""
        return self._root / name / "_data"

    def show(self, name: str) -> Json:
        """As inspect gives it. Raises NotFound."""
        record = self._get(name)
        return {
            "CreatedAt": record["created"],
            "Driver": "local",
            "Labels": record["labels"],
            "Mountpoint": str(self.path(name)),
            "Name": name,
            "Options": record["options"],
            "Scope": "local",
        }

    def _get(self, name: str) -> Json:
        record = self._volumes.get(name)
        if record is None:
            raise NotFound(f"get {name}: no such volume")
        return record

    def exists(self, name: str) -> bool:
        return name in self._volumes

    def create(
        self,
        name: str = "",
        driver: str = "",
        *,
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """Make a volume, or find the one of that name; returns the name. Raises InvalidParameter, NotFound."""
        if not name:
            name = secrets.token_hex(32)
            labels = {**(labels or {}), ANONYMOUS: ""}
        if driver not in ("", "local"):
            raise NotFound(f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found')
        if name in self._volumes:
            return name
        try:
            check_name(name)
            for option in options or {}:
                if option not in _OPTIONS:
                    raise InvalidParameter(f'invalid option: "{option}"')
            check_size((options or {}).get("size", ""))
            if options and set(options) & {"device", "o", "type"} and not set(options) <= {"size"}:
                for needed in ("device", "type"):
                    if needed not in options:
                        raise InvalidParameter(f'missing required option: "{needed}"')
        except InvalidParameter as error:
            raise InvalidParameter(f"create {name}: {error.message}") from None
        folder = self._root / name
        try:
            folder.mkdir(mode=0o701)
            (folder / "_data").mkdir(mode=0o755)
            os.chmod(folder / "_data", 0o755)
            if self._owner is not None:
                os.chown(folder / "_data", *self._owner)
            record: Json = {
                "labels": dict(labels) if labels is not None else None,
                "options": dict(sorted(options.items())) if options else None,
                "created": _created(folder),
            }
            (folder / ".opts.json.new").write_bytes(orjson.dumps(record))
            os.replace(folder / ".opts.json.new", folder / "opts.json")
        except FileExistsError:
            raise Conflict(f"create {name}: volume is being made") from None
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise SystemFailure(f"create {name}: {error.strerror}") from None
        self._volumes[name] = record
        self._emit("volume", "create", name, {"driver": "local"})
        return name

    def keep(self, name: str) -> None:
        """Make the volume survive a lost power supply. Blocking."""
        durable.sync(self._root / name / "opts.json")
        durable.sync(self._root / name)
        durable.sync(self._root)

    def use(self, name: str, container: str) -> None:
        """A container refers to the volume: it cannot be removed meanwhile."""
        self._users.setdefault(name, set()).add(container)

    def release(self, name: str, container: str) -> None:
        self._users.get(name, set()).discard(container)

    def users(self, name: str) -> list[str]:
        """Ids of the containers that refer to the volume."""
        return sorted(self._users.get(name, ()))

    def mount(self, name: str, user: str) -> Path:
        """Make the volume's content available for a running container. Raises NotFound, SystemFailure.

        Blocking, perhaps for minutes, where `has_device` and nobody has it yet.
        """
        record = self._get(name)
        where = self.path(name)
        if self.has_device(name):
            with self._mounting.setdefault(name, threading.Lock()):
                if not mounts.is_mounted(where):
                    _mount(record["options"], where)
        self._mounted.setdefault(name, set()).add(user)
        return where

    def has_device(self, name: str) -> bool:
        """Whether the content is what options mount, perhaps from another machine. Raises NotFound."""
        return bool((self._get(name)["options"] or {}).get("device"))

    def adopt(self, name: str, user: str) -> None:
        """A container that ran on while the engine was away has the content."""
        self._mounted.setdefault(name, set()).add(user)

    def mounted(self, name: str, user: str) -> bool:
        """Whether a running container has the content."""
        return user in self._mounted.get(name, ())

    def unmount(self, name: str, user: str) -> None:
        """A container stopped using the content; what options mounted goes with the last one."""
        holders = self._mounted.get(name, set())
        holders.discard(user)
        record = self._volumes.get(name)
        if not holders and record and (record["options"] or {}).get("device"):
            with contextlib.suppress(OSError):
                mounts.unmount(self.path(name))

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a volume that nobody uses. Raises NotFound, Conflict."""
        if name not in self._volumes:
            if force:
                return
            raise NotFound(f"get {name}: no such volume")
        users = self.users(name)
        if users:
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        with contextlib.suppress(OSError):
            mounts.unmount_below(self.path(name))
        record = self._volumes.pop(name)
        try:
            gone = self._root / f".gone-{name}"
            os.rename(self._root / name, gone)
            durable.sync(self._root)
            shutil.rmtree(gone)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._volumes[name] = record
            raise SystemFailure(f"remove {name}: {error.strerror}") from None
        self._users.pop(name, None)
        self._mounting.pop(name, None)
        self._emit("volume", "destroy", name, {"driver": "local"})

    def list(self) -> Iterable[str]:
        """The names of all volumes."""
        return list(self._volumes)

    def record(self, name: str) -> Json:
        """labels, options and created of a volume."""
        return self._get(name)

    def size(self, name: str) -> int:
        """Bytes that the volume's files take. Blocking."""
        total = 0
        seen: set[int] = set()
        for where, _, files in os.walk(self.path(name)):
            for file in files:
                with contextlib.suppress(OSError):
                    info = os.lstat(os.path.join(where, file))
                    if info.st_ino not in seen:
                        seen.add(info.st_ino)
                        total += info.st_size
        return total


def _mount(options: Mapping[str, str], where: Path) -> None:
    """Mount what a volume's options name. Raises SystemFailure in dockerd's words, without passwords."""
    device, words = options["device"], [word for word in options.get("o", "").split(",") if word]
    failed = f"error while mounting volume '{where}': failed to mount local volume: "
    try:
        device, words = _addressed(options["type"], device, words)
    except OSError as error:
        raise SystemFailure(f"{failed}error resolving passed in network volume address: {error.strerror}") from None
    try:
        mounts.mount(device, where, options["type"], words)
    except OSError as error:
        flags, data = mounts.parse_options(words)
        shown = f", flags: {flags:#x}" if flags else ""
        shown += f", data: {_PASSWORD.sub('password=********', data)}" if data else ""
        reason = (error.strerror or "").lower()
        raise SystemFailure(f"{failed}mount {device}:{where}{shown}: {reason}") from None


def _addressed(kind: str, device: str, words: list[str]) -> tuple[str, list[str]]:
    """Device and options with addresses for names: the kernel's nfs and cifs look up none. Raises OSError."""
    if kind not in ("nfs", "cifs"):
        return device, words
    named = next((word for word in words if word.startswith("addr=")), "")
    if named:
        return device, ["addr=" + _address(word[5:]) if word is named else word for word in words]
    host = urlsplit(device).hostname if kind == "cifs" else None
    if host:
        device = device.replace(f"//{host}", f"//{_address(host)}", 1)
    return device, words


def _address(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return str(socket.getaddrinfo(name, None)[0][4][0])


def _created(folder: Path) -> str:
    try:
        seconds = folder.stat().st_ctime
    except OSError:
        seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
