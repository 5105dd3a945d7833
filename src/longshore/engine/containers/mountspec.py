"""What to mount into a container: the forms of Binds, Mounts, Volumes, VolumesFrom and Tmpfs, checked and made one.

Source: Docker Engine API, HostConfig; the texts of errors are dockerd's.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from typing import Any

from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.machinery import mounts

Json = dict[str, Any]

_RW = {"rw", "ro"}
_LABEL = {"z", "Z"}
_CONSISTENCY = {"consistent", "cached", "delegated"}
_COPY = {"nocopy"}
PROPAGATION = {"private", "rprivate", "slave", "rslave", "shared", "rshared"}
_VOLUME_NAME = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$")
_TMPFS_FLAGS = {
    "size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol", "ro", "rw", "noexec", "exec", "nosuid", "suid", "nodev",
    "dev", "noatime", "atime", "nodiratime", "diratime", "relatime", "norelatime", "strictatime", "nostrictatime", "sync",
    "async", "dirsync", "mand", "nomand", "bind", "rbind", "private", "rprivate", "shared", "rshared", "slave", "rslave",
    "unbindable", "runbindable", "remount", "defaults",
}  # fmt: skip


def _valid_mode(mode: str) -> bool:
    if mode == "":
        return True
    seen = {"rw": 0, "label": 0, "consistency": 0, "copy": 0, "propagation": 0}
    for word in mode.split(","):
        if word in _RW:
            seen["rw"] += 1
        elif word in _LABEL:
            seen["label"] += 1
        elif word in _CONSISTENCY:
            seen["consistency"] += 1
        elif word in _COPY:
            seen["copy"] += 1
        elif word in PROPAGATION:
            seen["propagation"] += 1
        else:
            return False
    return all(count <= 1 for count in seen.values())


def propagation_of(mode: str) -> str:
    """The propagation word in a mode; "rprivate" when there is none."""
    return next((word for word in mode.split(",") if word in PROPAGATION), "rprivate")


def readonly(mode: str) -> bool:
    return "ro" in mode.split(",")


def _target(path: str) -> None:
    if not path:
        raise InvalidParameter("field Target must not be empty")
    if posixpath.normpath(path) in ("/", "//"):
        raise InvalidParameter("invalid specification: destination can't be '/'")
    if not path.startswith("/"):
        raise InvalidParameter(f"invalid mount path: '{path}' mount path must be absolute")


def parse_bind(raw: str, driver: str = "") -> Json:
    """One entry of HostConfig.Binds as a mount point. Raises InvalidParameter."""
    wrong = InvalidParameter(f"invalid volume specification: '{raw}'")
    parts = raw.split(":", 2)
    if not parts[0]:
        raise wrong
    mode = ""
    if len(parts) == 1:
        source, target = "", parts[0]
    elif len(parts) == 2:
        if _valid_mode(parts[1]):
            # A volume and a mode, but no target.
            raise wrong
        source, target = parts
    else:
        source, target, mode = parts
    if not _valid_mode(mode):
        raise InvalidParameter(f"invalid mode: {mode}")
    try:
        _target(target)
    except InvalidParameter as error:
        kind = "bind" if source.startswith("/") else "volume"
        raise InvalidParameter(
            f"invalid volume specification: '{raw}': invalid mount config for type \"{kind}\": {error.message}"
        ) from None
    has_propagation = any(word in PROPAGATION for word in mode.split(","))
    if source.startswith("/"):
        if "nocopy" in mode.split(","):
            raise InvalidParameter(f"invalid volume specification: '{raw}'")
        return {
            "Type": "bind",
            "Source": posixpath.normpath(source),
            "Destination": posixpath.normpath(target),
            "Mode": mode,
            "RW": not readonly(mode),
            "Propagation": propagation_of(mode),
            "_create": True,
        }
    if has_propagation:
        raise InvalidParameter(
            f"invalid volume specification: '{raw}': invalid mount config for type \"volume\": "
            "field BindOptions must not be specified"
        )
    if source and (not _VOLUME_NAME.match(source)):
        from longshore.engine.volumes.service import check_name

        try:
            check_name(source)
        except InvalidParameter as error:
            raise InvalidParameter(f"create {source}: {error.message}") from None
    return {
        "Type": "volume",
        "Name": source,
        "Source": "",
        "Destination": posixpath.normpath(target),
        "Driver": driver or "local",
        "Mode": mode or "z",
        "RW": not readonly(mode),
        "Propagation": "",
        "_nocopy": "nocopy" in mode.split(","),
    }


def guard_engine(point: Json, roots: Sequence[str], *, asked: bool) -> None:
    """A bind of the engine's own folders (or of what holds them) gets rslave, so that no mount of a container is held
    elsewhere. asked: whether the propagation was given. Raises InvalidParameter for another than rslave and rshared."""
    if point["Type"] != "bind":
        return
    source = point["Source"]
    root = next((r for r in roots if posixpath.commonpath([source, r]) in (source, r)), None)
    if root is None:
        return
    if not asked:
        point["Propagation"], point["_guarded"] = "rslave", True
    elif point["Propagation"] not in ("rslave", "rshared"):
        raise InvalidParameter(
            'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within the '
            f'daemon root, daemon root: "{root}", bind mount source: "{source}", propagation: "{point["Propagation"]}"'
        )


def propagation(source: str, wanted: str, *, asked: bool) -> str:
    """The propagation that a bind of a path gets; asked: whether it was given. Raises SystemFailure for one that the
    mount which the path lies on cannot give."""
    if wanted not in ("shared", "rshared", "slave", "rslave"):
        return wanted
    real = os.path.realpath(source)
    holding = [m for m in mounts.table() if real == m.path or real.startswith(m.path.rstrip("/") + "/")]
    # Of several at one place the last one is seen.
    on = max(enumerate(holding), key=lambda found: (len(found[1].path), found[0]))[1]
    if "shared:" in on.propagation or ("slave" in wanted and "master:" in on.propagation):
        return wanted
    if not asked:
        return "rprivate"
    kind = "shared or slave" if "slave" in wanted else "shared"
    raise SystemFailure(f"path {source} is mounted on {on.path} but it is not a {kind} mount")


def check_option_kinds(mount: Json) -> None:
    """Options that belong to another type of mount are refused before anything else. Raises InvalidParameter."""
    kind = mount.get("Type") or ""
    for field, wanted in (
        ("BindOptions", "bind"),
        ("VolumeOptions", "volume"),
        ("ImageOptions", "image"),
        ("TmpfsOptions", "tmpfs"),
    ):
        if mount.get(field) is not None and kind != wanted:
            raise InvalidParameter(f'{field} must not be specified on mount type "{kind}"')


def check_mount(mount: Json) -> None:
    """Check one entry of HostConfig.Mounts. Raises InvalidParameter."""
    kind = mount.get("Type") or ""

    def fail(text: str) -> InvalidParameter:
        return InvalidParameter(f'invalid mount config for type "{kind}": {text}')

    try:
        _target(mount.get("Target") or "")
    except InvalidParameter as error:
        raise fail(error.message) from None
    source = mount.get("Source") or ""
    if kind == "bind":
        if not source:
            raise fail("field Source must not be empty")
        for field in ("VolumeOptions", "ImageOptions"):
            if mount.get(field) is not None:
                raise fail(f"field {field} must not be specified")
        options = mount.get("BindOptions") or {}
        word = options.get("Propagation") or ""
        if word and word not in PROPAGATION:
            raise fail(f"invalid propagation mode: {word}")
        if not source.startswith("/"):
            raise fail(f"invalid mount path: '{source}' mount path must be absolute")
        top, below = options.get("ReadOnlyNonRecursive"), options.get("ReadOnlyForceRecursive")
        if top and not mount.get("ReadOnly"):
            raise fail("mount options conflict: !ReadOnly && BindOptions.ReadOnlyNonRecursive")
        if below and not mount.get("ReadOnly"):
            raise fail("mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive")
        if top and below:
            raise fail("mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")
        if not options.get("CreateMountpoint") and not os.path.lexists(source):
            raise fail(f"bind source path does not exist: {source}")
    elif kind == "volume":
        for field in ("BindOptions", "ImageOptions"):
            if mount.get(field) is not None:
                raise fail(f"field {field} must not be specified")
        subpath = (mount.get("VolumeOptions") or {}).get("Subpath") or ""
        if subpath:
            if not source:
                raise fail("must not set Subpath when using anonymous volumes")
            if posixpath.isabs(subpath) or posixpath.normpath(subpath).startswith(".."):
                raise fail("subpath must be a relative path within the volume")
        if not source and mount.get("ReadOnly"):
            raise fail("must not set ReadOnly mode when using anonymous volumes")
    elif kind == "tmpfs":
        for field in ("BindOptions", "ImageOptions"):
            if mount.get(field) is not None:
                raise fail(f"field {field} must not be specified")
        if source:
            raise fail("field Source must not be specified")
        tmpfs_options(mount)
    elif kind == "image":
        for field in ("BindOptions", "VolumeOptions"):
            if mount.get(field) is not None:
                raise fail(f"field {field} must not be specified")
        if not source:
            raise fail("field Source must not be empty")
        subpath = (mount.get("ImageOptions") or {}).get("Subpath") or ""
        if posixpath.isabs(subpath) or posixpath.normpath(subpath).startswith(".."):
            raise fail("subpath must be a relative path within the volume")
    else:
        raise fail("mount type unknown")


def parse_mount(mount: Json) -> Json:
    """One entry of HostConfig.Mounts as a mount point."""
    check_mount(mount)
    kind = mount["Type"]
    target = posixpath.normpath(mount["Target"])
    writable = not mount.get("ReadOnly")
    if kind == "bind":
        options = mount.get("BindOptions") or {}
        return {
            "Type": "bind",
            "Source": posixpath.normpath(mount["Source"]),
            "Destination": target,
            "Mode": "",
            "RW": writable,
            "Propagation": options.get("Propagation") or "rprivate",
            "_create": bool(options.get("CreateMountpoint")),
            "_nonrecursive": bool(options.get("NonRecursive")),
            "_readonly": "top"
            if options.get("ReadOnlyNonRecursive")
            else ("all" if options.get("ReadOnlyForceRecursive") else ""),
        }
    if kind == "volume":
        options = mount.get("VolumeOptions") or {}
        driver = options.get("DriverConfig") or {}
        return {
            "Type": "volume",
            "Name": mount.get("Source") or "",
            "Source": "",
            "Destination": target,
            "Driver": driver.get("Name") or "local",
            "Mode": "z",
            "RW": writable,
            "Propagation": "",
            "_nocopy": bool(options.get("NoCopy")),
            "_labels": options.get("Labels"),
            "_options": driver.get("Options"),
            "_subpath": options.get("Subpath") or "",
        }
    if kind == "image":
        options = mount.get("ImageOptions") or {}
        return {
            "Type": "image",
            "Name": mount["Source"],
            "Source": "",
            "Destination": target,
            "Mode": "",
            "RW": False,
            "Propagation": "rprivate",
            "_subpath": options.get("Subpath") or "",
        }
    return {"Type": "tmpfs", "Source": "", "Destination": target, "Mode": "", "RW": writable, "Propagation": ""}


def tmpfs_options(mount: Json) -> list[str]:
    """The mount options of a tmpfs given among Mounts. Raises InvalidParameter."""
    given = mount.get("TmpfsOptions") or {}
    options = []
    if mount.get("ReadOnly"):
        options.append("ro")
    if given.get("Mode"):
        options.append(f"mode={given['Mode']:o}")
    size = given.get("SizeBytes") or 0
    if size:
        for unit, suffix in ((1 << 30, "g"), (1 << 20, "m"), (1 << 10, "k")):
            if size % unit == 0:
                options.append(f"size={size // unit}{suffix}")
                break
        else:
            options.append(f"size={size}")
    for pair in given.get("Options") or []:
        if len(pair) not in (1, 2):
            raise InvalidParameter("invalid option array length")
        options.append("=".join(pair))
    return options


def check_tmpfs(destination: str) -> None:
    """Check a key of HostConfig.Tmpfs. Raises InvalidParameter."""
    if posixpath.normpath(destination) in ("/", "//"):
        raise InvalidParameter("invalid specification: destination can't be '/'")
    if not destination.startswith("/"):
        raise InvalidParameter(f"invalid mount path: '{destination}' mount path must be absolute")


def tmpfs_data(options: str) -> list[str]:
    """The options of a HostConfig.Tmpfs value over Docker's defaults. Raises ValueError with dockerd's text."""
    words = [word for word in options.split(",") if word]
    for word in words:
        if word.split("=", 1)[0] not in _TMPFS_FLAGS:
            raise ValueError(
                f'invalid tmpfs option "{word.partition("=")[0]}"'
                if "=" in word
                else f'invalid tmpfs option ["{word}"]'
            )
    defaults = ["noexec", "nosuid", "nodev"]
    chosen = [d for d in defaults if d.removeprefix("no") not in words and d not in words]
    return [*chosen, *words]


def parse_volumes_from(text: str) -> tuple[str, str]:
    """(container, mode) of an entry of VolumesFrom. Raises InvalidParameter."""
    if not text:
        raise InvalidParameter("volumes-from specification cannot be an empty string")
    name, _, mode = text.partition(":")
    if not mode:
        return name, "rw"
    if not _valid_mode(mode) or any(word in PROPAGATION | _COPY for word in mode.split(",")):
        raise InvalidParameter(f"invalid mode: {mode}")
    return name, mode
