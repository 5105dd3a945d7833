"""A step of a build in a user namespace (userns-remap): its roots and mounts shown with the owners that it has inside.

Layers, caches and secrets keep the ids that they have in an image; what a step writes becomes a layer as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longshore.engine.build.step import Mount, RunStep
from longshore.engine.containers import namespaces, ocispec
from longshore.machinery import mounts, users
from longshore.machinery.users import Owners


def enter(
    step: RunStep, spec: dict[str, Any], owners: Owners, folder: Path, *, sandbox: Path | None
) -> Callable[[], None]:
    """Make a step's user namespace and put it, and the mounts as seen in it, into the OCI configuration.

    folder: for pins. sandbox: where its network namespace is to be pinned; None: the runtime makes one, or it has the
    host's. Returns what undoes it after the step. Blocking. Raises OSError.
    """
    roots = {root.id: root for root in (step.overlay, *(mount.root for mount in step.mounts)) if root is not None}
    for root in roots.values():
        root.unmount()
        root.mount(volatile=bool(root.lowers), owners=owners)
    joined, _ = namespaces.make(folder, owners, step.root, sandbox=sandbox, joined=None)
    try:
        spec["root"]["path"] = str(joined.root)
        shown = {mount.target: _shown(mount, folder / str(n), owners) for n, mount in enumerate(step.mounts)}
        for entry in spec["mounts"]:
            if entry["destination"] in shown:
                entry.update(shown[entry["destination"]])
            elif entry["destination"] == "/sys" and step.network == "host":
                # A new sysfs needs a network namespace of the step's own.
                entry.update(type="bind", source="/sys", options=["rbind", "ro"])
        ocispec.join_users(spec, joined.owners, asked=False)
    except BaseException:
        namespaces.release(folder)
        raise
    return lambda: namespaces.release(folder)


def _shown(mount: Mount, place: Path, owners: Owners) -> dict[str, Any]:
    """What of a mount's entry changes. Raises OSError."""
    if mount.kind == "tmpfs" or (mount.kind == "bind" and mount.root is not None):
        return {}
    options = dict(option.partition("=")[::2] for option in mount.options)
    source = options["lowerdir"] if mount.kind == "overlay" else mount.source
    if mount.root is None:
        if os.path.isdir(source):
            place.mkdir()
        else:
            place.touch()
        namespace = os.open(owners.namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            users.mount(source, place, namespace, recursive=True)
        finally:
            os.close(namespace)
        source = str(place)
    if mount.kind == "bind":
        return {"source": source}
    # What is written goes nowhere, so it may keep the host's ids.
    info = os.stat(source)
    os.chown(options["upperdir"], info.st_uid, info.st_gid)
    merged = place.with_name(place.name + "-merged")
    merged.mkdir()
    options["lowerdir"] = source
    mounts.mount("overlay", merged, "overlay", [",".join(f"{key}={value}" for key, value in options.items())])
    return {"source": str(merged), "type": "bind", "options": ["rbind", "rw"]}
