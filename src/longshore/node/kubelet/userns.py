"""User namespaces of pods: each pod with hostUsers false gets 65,536 ids of the host that no other pod has.

What a pod was given is kept beside its volumes, as upstream keeps it. Source: kubernetes pkg/kubelet/userns.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import orjson

from longshore.node.kubelet.config import Config
from longshore.wire.cri import cri

Pod = dict[str, Any]
LENGTH = 65536
#: blocks of ids below 2**31; the first is the host's own
_BLOCKS = 32767


class UserNamespaceError(Exception):
    """A pod cannot have a user namespace of its own; the text says why."""


class UserNamespaces:
    """The blocks of ids that this node's pods have."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._blocks: dict[str, int] | None = None
        # Several nodes of one machine begin at places of their own.
        digest = hashlib.blake2b(os.fsencode(config.root), digest_size=4).digest()
        self._begin = int.from_bytes(digest, "big") % _BLOCKS

    def _file(self, uid: str) -> Path:
        return self._config.pod_folder(uid) / "userns"

    def _known(self) -> dict[str, int]:
        """uid -> block, of every pod that has a folder here."""
        if self._blocks is None:
            self._blocks = {}
            for file in (self._config.root / "pods").glob("*/userns"):
                try:
                    kept = orjson.loads(file.read_bytes())
                    self._blocks[file.parent.name] = int(kept["uidMappings"][0]["hostId"]) // LENGTH
                except (OSError, ValueError, KeyError, IndexError, TypeError):
                    continue
        return self._blocks

    def forget(self, uid: str) -> None:
        """The pod and its folder have gone."""
        self._known().pop(uid, None)

    def options(self, pod: Pod, handler: str, supported: bool) -> Any | None:
        """The pod's UserNamespace message; None where it says nothing of users. Blocking.

        handler: its RuntimeClass's; supported: whether that can do it. Raises UserNamespaceError.
        """
        wanted = pod["spec"].get("hostUsers")
        if wanted is None:
            return None
        if wanted:
            return cri.UserNamespace(mode=cri.NODE)
        if not supported:
            what = f'RuntimeClass handler "{handler}"' if handler else "runtime"
            raise UserNamespaceError(f"can't set `spec.hostUsers: false`, {what} does not support user namespaces")
        uid = pod["metadata"]["uid"]
        known = self._known()
        if uid not in known:
            taken = set(known.values())
            block = next((b for i in range(_BLOCKS) if (b := 1 + (self._begin + i) % _BLOCKS) not in taken), None)
            if block is None:
                raise UserNamespaceError("could not find an empty slot to allocate a user namespace")
            mapping = {"hostId": block * LENGTH, "containerId": 0, "length": LENGTH}
            file = self._file(uid)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                part = file.with_name(".userns")
                part.write_bytes(orjson.dumps({"uidMappings": [mapping], "gidMappings": [mapping]}))
                os.replace(part, file)
            except OSError as error:
                raise UserNamespaceError(f"could not keep the user namespace: {error.strerror}") from error
            known[uid] = block
        mapping = cri.IDMapping(host_id=known[uid] * LENGTH, container_id=0, length=LENGTH)
        return cri.UserNamespace(mode=cri.POD, uids=[mapping], gids=[mapping])
