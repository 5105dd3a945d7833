"""CNI 1.1: pod networks from an administrator's configuration in /etc/cni/net.d, by running its plugins.

Source: CNI specification 1.1 (containernetworking/cni SPEC.md).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from longshore.machinery import process

log = logging.getLogger("longshore.engine.cri.cni")
PLUGIN_FOLDERS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"), Path("/usr/libexec/cni"))
CONFIG_FOLDER = Path("/etc/cni/net.d")
TIMEOUT = 120.0
#: Versions of the specification that are spoken, the newest first.
VERSIONS = ("1.1.0", "1.0.0", "0.4.0", "0.3.1", "0.3.0")
#: Error codes by which a plugin says that it cannot serve now (STATUS): not at all, or not new pods.
UNAVAILABLE = (50, 51)


class CniError(Exception):
    """A plugin failed or the configuration is wrong; the text says which and why. code: the plugin's, 0 for none."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


def load(folder: Path = CONFIG_FOLDER) -> dict[str, Any] | None:
    """The first network list by file name (a single .conf is a list of one); None where there is none.

    Raises CniError for a file that is no configuration.
    """
    try:
        names = sorted(n for n in os.listdir(folder) if n.endswith((".conf", ".conflist", ".json")))
    except OSError:
        return None
    for name in names:
        path = folder / name
        try:
            found = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise CniError(f"{path}: {error}") from error
        if not isinstance(found, dict):
            raise CniError(f"{path}: not an object")
        if "plugins" not in found:
            if "type" not in found:
                raise CniError(f"{path}: neither plugins nor type")
            found = {
                "cniVersion": found.get("cniVersion", "0.4.0"),
                "name": found.get("name", name),
                "plugins": [found],
            }
        if not found["plugins"] or not found.get("name"):
            raise CniError(f"{path}: a network needs a name and plugins")
        offered = found.pop("cniVersions", None)
        if offered:
            # 1.1: the newest that both sides speak.
            spoken = [version for version in VERSIONS if version in offered]
            if not spoken:
                raise CniError(f"{path}: none of the versions {', '.join(map(str, offered))} is supported")
            found["cniVersion"] = spoken[0]
        elif found.get("cniVersion", "0.4.0") not in VERSIONS:
            raise CniError(f"{path}: version {found['cniVersion']!r} is not supported")
        return found
    return None


def _program(kind: str, folders: Sequence[Path]) -> str:
    if "/" in kind:
        raise CniError(f"invalid plugin type {kind!r}")
    for folder in folders:
        if os.access(folder / kind, os.X_OK):
            return str(folder / kind)
    found = shutil.which(kind)
    if found is None:
        raise CniError(f"failed to find plugin {kind!r} in path {[str(f) for f in folders]}")
    return found


class CniNetwork:
    """One network list, run for sandboxes."""

    def __init__(self, conf: Mapping[str, Any], folders: Sequence[Path] = PLUGIN_FOLDERS) -> None:
        self.conf, self._folders = dict(conf), folders

    @property
    def name(self) -> str:
        return str(self.conf["name"])

    async def add(
        self, sandbox_id: str, namespace: Path, *, arguments: Mapping[str, str], capabilities: Mapping[str, Any]
    ) -> dict[str, Any]:
        """ADD through the whole list; the result (current form). On failure what was done is undone. Raises CniError."""
        result: dict[str, Any] | None = None
        done: list[Any] = []
        for plugin in self.conf["plugins"]:
            done.append(plugin)
            try:
                result = await self._run("ADD", plugin, sandbox_id, str(namespace), arguments, capabilities, result)
            except CniError:
                await self._undo(done, sandbox_id, str(namespace), arguments, capabilities, result)
                raise
        return result or {}

    async def delete(
        self,
        sandbox_id: str,
        namespace: Path | None,
        *,
        arguments: Mapping[str, str],
        capabilities: Mapping[str, Any],
        result: dict[str, Any] | None,
    ) -> None:
        """DEL in reverse order; namespace None when it has gone already. Raises CniError."""
        where = str(namespace) if namespace is not None else ""
        for plugin in reversed(self.conf["plugins"]):
            await self._run("DEL", plugin, sandbox_id, where, arguments, capabilities, result)

    @property
    def _is_1_1(self) -> bool:
        return str(self.conf.get("cniVersion", "")) == "1.1.0"

    async def status(self) -> None:
        """Ask the plugins whether they can serve (1.1's STATUS; earlier versions have none). Raises CniError."""
        if self._is_1_1:
            for plugin in self.conf["plugins"]:
                await self._run("STATUS", plugin, "", "", {}, {}, None)

    async def collect(self, sandboxes: Sequence[str]) -> None:
        """Have the plugins forget everything but these sandboxes (1.1's GC). What fails is logged."""
        if not self._is_1_1 or self.conf.get("disableGC"):
            return
        valid = [{"containerID": sandbox, "ifname": "eth0"} for sandbox in sandboxes]
        for plugin in self.conf["plugins"]:
            try:
                await self._run("GC", {**plugin, "cni.dev/valid-attachments": valid}, "", "", {}, {}, None)
            except CniError as error:
                log.warning("collecting garbage: %s", error)

    async def _undo(self, plugins: list[Any], *rest: Any) -> None:
        for plugin in reversed(plugins):
            try:
                await self._run("DEL", plugin, *rest)
            except CniError as error:
                log.warning("undoing %s: %s", plugin.get("type"), error)

    async def _run(
        self,
        command: str,
        plugin: Mapping[str, Any],
        sandbox_id: str,
        namespace: str,
        arguments: Mapping[str, str],
        capabilities: Mapping[str, Any],
        previous: dict[str, Any] | None,
    ) -> dict[str, Any] | None:
        kind = str(plugin.get("type", ""))
        version = self.conf.get("cniVersion", "0.4.0")
        conf = {k: v for k, v in plugin.items() if k != "capabilities"}
        conf.update(name=self.name, cniVersion=version)
        asked = plugin.get("capabilities") or {}
        runtime = {k: v for k, v in capabilities.items() if asked.get(k) and v}
        if runtime:
            conf["runtimeConfig"] = runtime
        if previous is not None:
            conf["prevResult"] = previous
        env = {**os.environ, "CNI_COMMAND": command, "CNI_PATH": ":".join(str(f) for f in self._folders)}
        if sandbox_id:
            env.update(
                CNI_CONTAINERID=sandbox_id,
                CNI_NETNS=namespace,
                CNI_IFNAME="eth0",
                CNI_ARGS=";".join(f"{k}={v}" for k, v in arguments.items()),
            )
        try:
            done = await process.run(
                [_program(kind, self._folders)], stdin=orjson.dumps(conf), env=env, timeout=TIMEOUT, check=False
            )
        except (TimeoutError, OSError) as error:
            raise CniError(f"plugin type={kind!r} failed ({command.lower()}): {error or 'timed out'}") from error
        try:
            answer = orjson.loads(done.stdout) if done.stdout.strip() else None
        except orjson.JSONDecodeError:
            answer = None
        if done.returncode != 0:
            text = (answer or {}).get("msg") if isinstance(answer, dict) else ""
            details = (answer or {}).get("details") if isinstance(answer, dict) else ""
            words = "; ".join(filter(None, (text, details))) or done.stderr.decode(errors="replace").strip()
            code = answer.get("code") if isinstance(answer, dict) else 0
            raise CniError(
                f"plugin type={kind!r} failed ({command.lower()}): {words or done.returncode}",
                code if isinstance(code, int) else 0,
            )
        return answer if isinstance(answer, dict) else None


def addresses(result: Mapping[str, Any]) -> list[str]:
    """The pod's addresses in a result (of the interface inside the sandbox), IPv4 and IPv6 in order of appearance."""
    interfaces = result.get("interfaces") or []
    found = []
    for entry in result.get("ips") or ():
        index = entry.get("interface")
        if index is not None and index < len(interfaces) and not interfaces[index].get("sandbox"):
            continue
        found.append(str(entry["address"]).partition("/")[0])
    return found
