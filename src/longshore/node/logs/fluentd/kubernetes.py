"""kubernetes_metadata: what the API server knows of the pod that a record comes from.

Source: github.com/fabric8io/fluent-plugin-kubernetes_metadata_filter, its README's parameters and record.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.client import config as client_config
from longshore.client.resources import NAMESPACES, PODS
from longshore.client.rest import Client
from longshore.machinery.errors import StatusError
from longshore.machinery.http import ClientError
from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.plugin import Filter
from longshore.node.logs.fluentd.settings import Field, array, boolean, integer, regexp, seconds, string
from longshore.wire.forward import Event

if TYPE_CHECKING:
    from longshore.node.logs.fluentd.pipeline import Context

log = logging.getLogger("longshore.fluentd.kubernetes")

Facts = dict[str, Any]
#: With `watch`, a change is seen after at most so many seconds; what is not there is asked for again after them too.
FRESH_SECONDS = 30.0
_NAMES = regexp(
    r"var\.log\.containers\.(?<pod_name>[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*)_"
    r"(?<namespace>[^_]+)_(?<container_name>.+)-(?<docker_id>[a-z0-9]{64})\.log$"
)


class KubernetesMetadata(Filter):
    """Names from a tag that in_tail made of a file below /var/log/containers, the rest from the API server.

    The API server is the node's own cluster, or `kubernetes_url`; without either only the tag speaks.
    """

    NAME = "kubernetes_metadata"
    PREPARES = True
    FIELDS = {
        "kubernetes_url": Field(string, ""),
        "ca_file": Field(string, ""),
        "client_cert": Field(string, ""),
        "client_key": Field(string, ""),
        "bearer_token_file": Field(string, ""),
        "verify_ssl": Field(boolean, True),
        "watch": Field(boolean, True),
        "cache_size": Field(integer, 1000),
        "cache_ttl": Field(seconds, 3600.0),
        "skip_labels": Field(boolean, False),
        "skip_pod_labels": Field(boolean, False),
        "skip_namespace_labels": Field(boolean, False),
        "skip_namespace_metadata": Field(boolean, False),
        "skip_container_metadata": Field(boolean, False),
        "skip_master_url": Field(boolean, False),
        "annotation_match": Field(array, []),
        "tag_to_kubernetes_name_regexp": Field(regexp, _NAMES),
    }

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        self._api = context.api
        if self.set["kubernetes_url"]:
            self._api = Client(self._config(element), user_agent="longshore-fluentd")
        self._annotations = [regexp(text) for text in self.set["annotation_match"]]
        self._kept: dict[tuple[str, str], tuple[float, Facts]] = {}

    def _config(self, element: Element) -> client_config.Config:
        def octets(name: str) -> bytes | None:
            try:
                return Path(self.set[name]).read_bytes() if self.set[name] else None
            except OSError as error:
                raise element.error(str(error), name) from None

        return client_config.Config(
            server=self.set["kubernetes_url"].rstrip("/").removesuffix("/api"),
            ca=octets("ca_file"),
            certificate=octets("client_cert"),
            key=octets("client_key"),
            token_file=Path(self.set["bearer_token_file"]) if self.set["bearer_token_file"] else None,
            insecure=not self.set["verify_ssl"],
        )

    async def prepare(self, tag: str, events: Sequence[Event]) -> None:
        match = self.set["tag_to_kubernetes_name_regexp"].search(tag)
        if match is None or self._api is None:
            return
        key = (match["namespace"], match["pod_name"])
        now = time.monotonic()
        kept = self._kept.get(key)
        if kept and kept[0] > now:
            return
        life = self.set["cache_ttl"]
        try:
            pod, namespace = await asyncio.gather(
                self._get(PODS, key[1], key[0]),
                self._get(NAMESPACES, key[0]) if not self.set["skip_namespace_metadata"] else _none(),
            )
            found = self._facts(pod, namespace)
            if self.set["watch"] or not found:
                life = min(life, FRESH_SECONDS)
        except (OSError, ClientError, TimeoutError, StatusError) as error:
            log.warning("%s: %s/%s: %s", self.id, *key, error)
            found, life = kept[1] if kept else {}, 1.0
        while len(self._kept) >= max(1, self.set["cache_size"]):
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = (now + life, found)

    async def _get(self, resource: Any, name: str, namespace: str = "") -> Facts | None:
        assert self._api is not None
        try:
            return await self._api.get(resource, name, namespace)
        except StatusError as error:
            if error.code == 404:
                return None
            raise

    def _facts(self, pod: Facts | None, namespace: Facts | None) -> Facts:
        found: Facts = {}
        if pod is not None:
            meta, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
            found |= {"pod_id": meta.get("uid"), "pod_ip": status.get("podIP"), "host": spec.get("nodeName")}
            if not (self.set["skip_labels"] or self.set["skip_pod_labels"]):
                found["labels"] = meta.get("labels") or {}
            chosen = {
                key: value
                for key, value in (meta.get("annotations") or {}).items()
                if any(pattern.search(key) for pattern in self._annotations)
            }
            if chosen:
                found["annotations"] = chosen
            if not self.set["skip_container_metadata"]:
                found["containers"] = {
                    c["name"]: {"container_image": c.get("image")} for c in spec.get("containers", ())
                }
                for told in status.get("containerStatuses") or ():
                    found["containers"].setdefault(told["name"], {})["container_image_id"] = told.get("imageID")
        if namespace is not None:
            meta = namespace["metadata"]
            found["namespace_id"] = meta.get("uid")
            if meta.get("labels") and not (self.set["skip_labels"] or self.set["skip_namespace_labels"]):
                found["namespace_labels"] = meta["labels"]
        if found and self._api is not None and not self.set["skip_master_url"]:
            found["master_url"] = f"{self._api.config.server}/api"
        return found

    def filter(self, tag: str, events: Sequence[Event]) -> Sequence[Event]:
        match = self.set["tag_to_kubernetes_name_regexp"].search(tag)
        if match is None:
            return events
        names = match.groupdict()
        kubernetes = {
            "pod_name": names.get("pod_name"),
            "namespace_name": names.get("namespace"),
            "container_name": names.get("container_name"),
        }
        kept = self._kept.get((match["namespace"], match["pod_name"]))
        if kept:
            more = dict(kept[1])
            kubernetes |= more.pop("containers", {}).get(names.get("container_name"), {})
            kubernetes |= {name: value for name, value in more.items() if value is not None}
        docker = {"container_id": names.get("docker_id")}
        return [(when, {**record, "docker": docker, "kubernetes": kubernetes}) for when, record in events]


async def _none() -> None:
    return None
