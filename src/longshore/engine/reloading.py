"""SIGHUP: daemon.json read again, and what of it takes effect without a restart.

Source: moby daemon/reload.go, reload_unix.go.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine import runtimes
from longshore.engine.configuration import Configuration, ConfigurationError

if TYPE_CHECKING:
    from longshore.engine.server import Engine

log = logging.getLogger("longshore.engine")

#: Stay as they are where the file says nothing.
_KEPT = ("debug", "labels", "insecure_registries", "registry_mirrors", "live_restore", "shutdown_timeout", "runtimes", "shm_size")  # fmt: skip
#: Become dockerd's own value again where the file says nothing.
_RESET = ("downloads", "uploads", "attempts", "features")
#: An empty text says nothing.
_CHOSEN = ("default_runtime", "cgroup_namespace", "ipc_mode")


def reload(engine: Engine, read: Callable[[], Mapping[str, Any]]) -> None:
    """Take over what has changed. read: gives the settings of the file, by the names of Configuration.

    A file that dockerd would refuse changes nothing, and is told of in the log.
    """
    log.info("Got signal to reload configuration")
    try:
        found = read()
        new = merged(engine.configuration, found)
        programs = runtimes.programs(new.runtimes, engine.runtime_scripts)
    except (ConfigurationError, OSError) as error:
        log.error("Error reloading configuration: %s", error)
        return
    engine.configure(new, programs)
    told = attributes(new)
    log.info("Reloaded configuration: %s", told)
    engine.events.emit("daemon", "reload", engine.id, {**told, "name": socket.gethostname()})


def merged(old: Configuration, found: Mapping[str, Any]) -> Configuration:
    """The settings after a reload. Raises ConfigurationError."""
    fresh = Configuration()
    changes = {name: found[name] for name in _KEPT if name in found}
    changes |= {name: found.get(name) or getattr(fresh, name) for name in _RESET}
    changes |= {name: found[name] for name in _CHOSEN if found.get(name)}
    new = replace(old, **changes)
    new.check()
    return new


def attributes(given: Configuration) -> dict[str, str]:
    """What the event tells."""

    def texts(values: tuple[str, ...]) -> str:
        return orjson.dumps(values).decode()

    def flag(value: bool) -> str:
        return str(value).lower()

    features = " ".join(f"{name}:{flag(value)}" for name, value in sorted(given.features.items()))
    return {
        "debug": flag(given.debug),
        "default-cgroupns-mode": given.default_cgroup_namespace,
        "default-ipc-mode": given.ipc_mode or "private",
        "default-runtime": given.default_runtime or runtimes.STOCK[0],
        "default-shm-size": str(given.shm_size or 64 << 20),
        "features": f"map[{features}]",
        "insecure-registries": texts(given.insecure_registries),
        "labels": texts(given.labels),
        "live-restore": flag(given.live_restore),
        "max-concurrent-downloads": str(given.downloads),
        "max-concurrent-uploads": str(given.uploads),
        "max-download-attempts": str(given.attempts),
        "registry-mirrors": texts(given.registry_mirrors),
        "runtimes": " ".join(f"{name}:{entry.get('path') or ''}" for name, entry in given.runtimes.items()),
        "shutdown-timeout": str(given.shutdown_timeout),
    }
