"""What configMap, secret, downwardAPI and projected volumes hold, from the objects they name.

Sources: kubernetes pkg/volume/{configmap,secret,downwardapi,projected}.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from longshore.node.kubelet import downward
from longshore.node.kubelet.env import Lookup
from longshore.node.kubelet.volumes.atomic import File

Pod = dict[str, Any]
#: (pod, audience, seconds) -> (token, when to renew)
TokenSource = Callable[[Pod, str, int], Awaitable[tuple[str, float]]]


class PayloadError(Exception):
    """An object or key that a volume needs is not there; the text is upstream's."""


@dataclass(slots=True)
class Sources:
    """Where payloads come from: objects, tokens, the pod's present addresses, the node's allocatable resources."""

    lookup: Lookup
    token: TokenSource
    status: Callable[[Pod], Mapping[str, Any]]
    allocatable: Callable[[], Mapping[str, str]]
    trust_bundle: Callable[[Mapping[str, Any]], Awaitable[bytes | None]]


def _items(
    data: Mapping[str, bytes], items: Iterable[Mapping[str, Any]] | None, mode: int, what: str, optional: bool
) -> dict[str, File]:
    if not items:
        return {name: File(value, mode) for name, value in data.items()}
    found: dict[str, File] = {}
    for item in items:
        if item["key"] not in data:
            if optional:
                continue
            raise PayloadError(f"{what} references non-existent {'config' if 'configmap' in what else 'secret'} key: {item['key']}")  # fmt: skip
        found[item["path"]] = File(data[item["key"]], item.get("mode") or mode)
    return found


def object_bytes(kind: str, obj: Mapping[str, Any]) -> dict[str, bytes]:
    """The decoded data of a ConfigMap or Secret."""
    if kind == "Secret":
        return {k: base64.b64decode(v) for k, v in (obj.get("data") or {}).items()}
    found = {k: v.encode() for k, v in (obj.get("data") or {}).items()}
    found.update((k, base64.b64decode(v)) for k, v in (obj.get("binaryData") or {}).items())
    return found


async def _object(
    kind: str, namespace: str, name: str, source: Mapping[str, Any], mode: int, sources: Sources
) -> dict[str, File]:
    optional = bool(source.get("optional"))
    obj = await sources.lookup(kind, namespace, name)
    word = "configmap" if kind == "ConfigMap" else "secret"
    if obj is None:
        if optional:
            return {}
        raise PayloadError(f'{word} "{name}" not found')
    return _items(object_bytes(kind, obj), source.get("items"), mode, word, optional)


def _downward(pod: Pod, items: Iterable[Mapping[str, Any]], mode: int, sources: Sources) -> dict[str, File]:
    found: dict[str, File] = {}
    for item in items or ():
        try:
            if "fieldRef" in item:
                text = downward.field(pod, item["fieldRef"]["fieldPath"], sources.status(pod))
            else:
                text = downward.resource(pod, item["resourceFieldRef"], "", sources.allocatable())
        except ValueError as error:
            raise PayloadError(str(error)) from error
        found[item["path"]] = File(text.encode(), item.get("mode") or mode)
    return found


async def collect(pod: Pod, volume: Mapping[str, Any], sources: Sources) -> tuple[dict[str, File], float]:
    """(files by path, when to look again in seconds since 1970, 0: on change only). Raises PayloadError."""
    namespace = pod["metadata"]["namespace"]
    if "configMap" in volume:
        source = volume["configMap"]
        mode = source.get("defaultMode", 0o644)
        return await _object("ConfigMap", namespace, source["name"], source, mode, sources), 0.0
    if "secret" in volume:
        source = volume["secret"]
        mode = source.get("defaultMode", 0o644)
        return await _object("Secret", namespace, source["secretName"], source, mode, sources), 0.0
    if "downwardAPI" in volume:
        source = volume["downwardAPI"]
        return _downward(pod, source.get("items") or (), source.get("defaultMode", 0o644), sources), 0.0
    return await _projected(pod, volume["projected"], sources)


async def _projected(pod: Pod, projected: Mapping[str, Any], sources: Sources) -> tuple[dict[str, File], float]:
    namespace = pod["metadata"]["namespace"]
    mode = projected.get("defaultMode", 0o644)
    files: dict[str, File] = {}
    again = 0.0
    problems: list[str] = []
    for source in projected.get("sources") or ():
        try:
            for key, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
                if key in source:
                    files.update(await _object(kind, namespace, source[key]["name"], source[key], mode, sources))
            if "downwardAPI" in source:
                files.update(_downward(pod, source["downwardAPI"].get("items") or (), mode, sources))
            if "serviceAccountToken" in source:
                wanted = source["serviceAccountToken"]
                token, renew = await sources.token(
                    pod, wanted.get("audience") or "", int(wanted.get("expirationSeconds") or 3600)
                )
                again = min(again or renew, renew)
                files[wanted["path"]] = File(token.encode(), *_token_access(pod, mode))
            if "clusterTrustBundle" in source:
                wanted = source["clusterTrustBundle"]
                bundle = await sources.trust_bundle(wanted)
                if bundle is None and not wanted.get("optional"):
                    raise PayloadError(f"unable to fetch ClusterTrustBundle {wanted.get('name') or wanted.get('signerName')}")  # fmt: skip
                if bundle is not None:
                    files[wanted["path"]] = File(bundle, mode)
                    again = min(again or 1e18, time.time() + 300)
        except PayloadError as error:
            problems.append(str(error))
    if problems:
        raise PayloadError(problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]")
    return files, again


def _token_access(pod: Pod, mode: int) -> tuple[int, int | None]:
    """Mode and owner of a token file: one user's own when all containers run as that user, else the volume's mode."""
    context = pod["spec"].get("securityContext") or {}
    if context.get("fsGroup") is not None:
        return 0o600, None
    users = set()
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod["spec"].get(group) or ():
            own = (container.get("securityContext") or {}).get("runAsUser", context.get("runAsUser"))
            users.add(own)
    if len(users) == 1 and (user := users.pop()) is not None:
        return 0o600, int(user)
    return mode, None
