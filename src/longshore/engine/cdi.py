"""Container Device Interface: a device's qualified name ("vendor.com/class=name") becomes edits of a container.

Source: CDI specification 1.1 (SPEC.md): where files are, names, containerEdits.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
import yaml

#: later folders go before earlier ones
FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))
SIZE_LIMIT = 4 << 20
_NAME = re.compile(
    r"(?P<kind>[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?)=(?P<device>[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?)"
)
_HOOKS = frozenset(
    ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
)  # fmt: skip


class CdiError(Exception):
    """Devices cannot be given; the text says which."""


def _specs(folders: Iterable[Path]) -> tuple[dict[str, list[dict[str, Any]]], dict[Path, str]]:
    """kind -> the specs of it, those of later folders first; and what is wrong with files, which are left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    wrong: dict[Path, str] = {}
    for folder in reversed(list(folders)):
        try:
            files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".yaml"))
        except OSError:
            continue
        for file in files:
            try:
                if file.stat().st_size > SIZE_LIMIT:
                    raise ValueError(f"it has more than {SIZE_LIMIT} bytes")
                data = file.read_bytes()
                spec = orjson.loads(data) if file.suffix == ".json" else yaml.safe_load(data)
                found.setdefault(str(spec["kind"]), []).append(spec)
            except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
                wrong[file] = f"failed to read CDI Spec {str(file)!r}: {error}".replace("\n", " ")
    return found, wrong


def devices(folders: Iterable[Path] = FOLDERS) -> tuple[list[str], dict[Path, str]]:
    """The qualified names of all devices, sorted, and what is wrong with files. Blocking."""
    known, wrong = _specs(folders)
    names = {
        f"{kind}={device.get('name')}"
        for kind, specs in known.items()
        for spec in specs
        for device in spec.get("devices") or ()
    }
    return sorted(name for name in names if _NAME.fullmatch(name)), wrong


def _device(specs: Iterable[Mapping[str, Any]], name: str) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    for spec in specs:
        for device in spec.get("devices") or ():
            if str(device.get("name")) == name:
                return spec, device
    return None


def notes(name: str, folders: Iterable[Path] = FOLDERS) -> dict[str, str]:
    """What is noted about a device ("vendor.com/class=name"), its class first. Blocking."""
    kind, _, device = name.partition("=")
    found = _device(_specs(folders)[0].get(kind, ()), device)
    if found is None:
        return {}
    told = {**(found[0].get("annotations") or {}), **(found[1].get("annotations") or {})}
    return {str(key): str(value).lower() if isinstance(value, bool) else str(value) for key, value in told.items()}


def inject(spec: dict[str, Any], names: Iterable[str], folders: Iterable[Path] = FOLDERS) -> None:
    """Put devices into an OCI configuration. Blocking. Raises CdiError."""
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return
    known, _ = _specs(folders)
    edits: list[Mapping[str, Any]] = []
    whole: list[int] = []
    lost = []
    for name in wanted:
        match = _NAME.fullmatch(name)
        found = _device(known.get(match["kind"], ()), match["device"]) if match else None
        if found is None:
            lost.append(name)
            continue
        # What holds for all devices of a file is done once.
        if id(found[0]) not in whole:
            whole.append(id(found[0]))
            edits.append(found[0].get("containerEdits") or {})
        edits.append(found[1].get("containerEdits") or {})
    if lost:
        raise CdiError(f"CDI device injection failed: unresolvable CDI devices {', '.join(lost)}")
    try:
        for edit in edits:
            _apply(spec, edit)
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise CdiError(f"CDI device injection failed: {error}") from error


def _apply(spec: dict[str, Any], edit: Mapping[str, Any]) -> None:
    process, linux = spec["process"], spec["linux"]
    for variable in edit.get("env") or ():
        name = str(variable).partition("=")[0]
        process["env"] = [v for v in process["env"] if v.partition("=")[0] != name] + [str(variable)]
    for node in edit.get("deviceNodes") or ():
        entry, rule = _node(node, process["user"])
        linux["devices"] = [d for d in linux.get("devices", ()) if d["path"] != entry["path"]] + [entry]
        linux["resources"].setdefault("devices", []).append(rule)
    for mount in edit.get("mounts") or ():
        options = [str(o) for o in mount.get("options") or ("rbind", "ro")]
        target = str(mount["containerPath"])
        spec["mounts"] = [m for m in spec["mounts"] if m["destination"] != target]
        spec["mounts"].append({"destination": target, "source": str(mount["hostPath"]), "options": options,
                               "type": str(mount.get("type") or "bind")})  # fmt: skip
    for hook in edit.get("hooks") or ():
        kind = str(hook["hookName"])
        if kind not in _HOOKS:
            raise ValueError(f"invalid hook name {kind!r}")
        entry = {k: hook[k] for k in ("path", "args", "env", "timeout") if hook.get(k) is not None}
        spec.setdefault("hooks", {}).setdefault(kind, []).append(entry)
    groups = [int(g) for g in edit.get("additionalGids") or () if int(g) > 0]
    if groups:
        known = list(process["user"].get("additionalGids") or ())
        process["user"]["additionalGids"] = known + [g for g in groups if g not in known]


def _node(node: Mapping[str, Any], user: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A device node and its cgroup rule; what the file does not say is the host's."""
    inside = str(node["path"])
    host = str(node.get("hostPath") or inside)
    kind, major, minor = str(node.get("type") or ""), node.get("major"), node.get("minor")
    if not kind or major is None or minor is None:
        info = os.stat(host)
        if not (stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)):
            raise ValueError(f"{host} is no device")
        kind = kind or ("c" if stat.S_ISCHR(info.st_mode) else "b")
        major = os.major(info.st_rdev) if major is None else major
        minor = os.minor(info.st_rdev) if minor is None else minor
    entry: dict[str, Any] = {"path": inside, "type": kind, "major": int(major), "minor": int(minor)}
    for name in ("fileMode", "uid", "gid"):
        if node.get(name) is not None:
            entry[name] = int(node[name])
    if "uid" not in entry and user.get("uid"):
        entry["uid"] = user["uid"]
    if "gid" not in entry and user.get("gid"):
        entry["gid"] = user["gid"]
    rule = {"allow": True, "type": kind, "major": int(major), "minor": int(minor),
            "access": str(node.get("permissions") or "rwm")}  # fmt: skip
    return entry, rule
