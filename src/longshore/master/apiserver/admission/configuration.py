"""The admission configuration file: what each plugin is told, in the file itself or in one that it names.

Source: k8s.io/apiserver/pkg/admission/config.go, pkg/server/options/admission.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longshore.api import decoding
from longshore.master.apiserver import configfile
from longshore.master.apiserver.configfile import ConfigurationError

Object = dict[str, Any]
_VERSIONS = ("apiserver.config.k8s.io/v1", "apiserver.k8s.io/v1alpha1")
_LEGACY = {"imagePolicy": "ImagePolicyWebhook", "podNodeSelectorPluginConfig": "PodNodeSelector"}


class PluginConfiguration:
    """What the file tells the plugins. folder: where relative file names start from."""

    def __init__(self, file: Path | None = None) -> None:
        self.folder = file.parent if file is not None else Path()
        self._given: dict[str, Object] = {}
        if file is None:
            return
        data = file.read_bytes()
        value = self._parsed(data, str(file))
        legacy = [plugin for key, plugin in _LEGACY.items() if key in value]
        if legacy and "kind" not in value:
            self._given = dict.fromkeys(legacy, value)
            return
        found = configfile.parse(data, str(file), "AdmissionConfiguration", _VERSIONS)
        for entry in found.get("plugins") or ():
            name, inside, path = entry.get("name"), entry.get("configuration"), entry.get("path")
            if inside is not None:
                self._given.setdefault(name, inside)
            elif path:
                other = self.folder / path
                self._given.setdefault(name, self._parsed(other.read_bytes(), str(other)))

    @staticmethod
    def _parsed(data: bytes, name: str) -> Object:
        try:
            found = decoding.parse_yaml(data).value
        except ValueError as error:
            raise ConfigurationError(f"{name}: {error}") from None
        if not isinstance(found, dict):
            raise ConfigurationError(f"{name}: not an object")
        return found

    def of(self, plugin: str, kind: str = "", versions: Sequence[str] = ()) -> Object | None:
        """What a plugin is told, None when nothing. kind, versions: what it has to be ("": unversioned)."""
        found = self._given.get(plugin)
        if found is not None and kind:
            if found.get("kind") != kind:
                raise ConfigurationError(f'couldn\'t init admission plugin "{plugin}": expected {kind}')
            if found.get("apiVersion") not in versions:
                raise ConfigurationError(
                    f'couldn\'t init admission plugin "{plugin}": no kind "{kind}" is registered for version'
                    f' "{found.get("apiVersion", "")}"'
                )
        return found
