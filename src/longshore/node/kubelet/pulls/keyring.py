"""All logins that a pod has for an image, in upstream's order: its secrets, the node's own, the providers'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from longshore.node.kubelet.pulls.credentials import Login, lookup, of_config, of_secret, repository
from longshore.node.kubelet.pulls.providers import Provider

Pod = dict[str, Any]


class Keyring:
    """root: the kubelet's, whose config.json (a docker configuration) holds the node's own logins."""

    def __init__(self, root: Path, providers: Sequence[Provider] = ()) -> None:
        self._file, self._providers = root / "config.json", providers

    async def logins(self, image: str, pod: Pod, secrets: Iterable[Mapping[str, Any]]) -> list[Login]:
        """What to try one after another; none: only without a login."""
        name = repository(image)
        found = lookup(name, [entry for secret in secrets for entry in of_secret(secret)])
        found += lookup(name, of_config(self._own()))
        for provider in self._providers:
            found += lookup(name, await provider.entries(name, pod))
        return list(dict.fromkeys(found))

    def _own(self) -> Any:
        try:
            return orjson.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
