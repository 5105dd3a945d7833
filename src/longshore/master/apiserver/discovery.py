"""What is served, as clients ask for it: /api, /apis, group and version lists, and aggregated discovery.

The documents are made when something changes and kept as bytes.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import orjson

from longshore.machinery.http import Request, Response
from longshore.master.apiserver import rendering
from longshore.master.apiserver.aggregation.services import entries
from longshore.master.apiserver.negotiation import JSON, PROTOBUF, YAML, _clauses, negotiate
from longshore.master.apiserver.scheme import Endpoint, Scheme

Object = dict[str, Any]
# Groups whose order upstream fixes by priority come first as in the resource table; custom groups follow by name.
AGGREGATED = "APIGroupDiscoveryList"
CUSTOM_VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")


def storage_hash(endpoint: Endpoint) -> str:
    """What tells clients that two resources are kept as one."""
    resource = endpoint.storage.resource
    text = f"{resource.group}/{resource.storage_version}/{resource.kind}"
    return base64.b64encode(hashlib.sha256(text.encode()).digest()[:8]).decode()


def resource_entries(endpoint: Endpoint) -> list[Object]:
    """The lines of an APIResourceList: the resource, then its subresources."""
    resource = endpoint.resource
    main: Object = {
        "name": endpoint.plural, "singularName": resource.singular, "namespaced": endpoint.namespaced,
        "kind": endpoint.kind, "verbs": list(CUSTOM_VERBS) if endpoint.custom else sorted(endpoint.verbs),
    }  # fmt: skip
    if resource.short_names:
        main["shortNames"] = list(resource.short_names)
    if resource.categories:
        main["categories"] = list(resource.categories)
    if endpoint.cache is not None:
        main["storageVersionHash"] = storage_hash(endpoint)
    out = [main]
    for name, sub in subresources(endpoint):
        entry: Object = {"name": f"{endpoint.plural}/{name}", "singularName": "", "namespaced": endpoint.namespaced}
        if (
            sub.kind != endpoint.kind
            and (sub.group or sub.version)
            and (sub.group, sub.version) != (endpoint.group, endpoint.version)
        ):
            entry["group"], entry["version"] = sub.group, sub.version
            if not sub.group:
                del entry["group"], entry["version"]
        entry["kind"] = sub.kind
        entry["verbs"] = sorted(sub.verbs)
        out.append(entry)
    return out


def subresources(endpoint: Endpoint) -> list[tuple[str, Any]]:
    """The subresources of this version (a custom resource may have them in some versions only)."""
    if endpoint.custom:
        return list(endpoint.resource.subresources_of(endpoint.version).items())
    return sorted(endpoint.resource.subresources.items())


def aggregated_entry(endpoint: Endpoint) -> Object:
    resource = endpoint.resource
    out: Object = {
        "resource": endpoint.plural,
        "responseKind": {"group": "", "version": "", "kind": endpoint.kind}
        if not endpoint.custom
        else {"group": endpoint.group, "version": endpoint.version, "kind": endpoint.kind},
        "scope": "Namespaced" if endpoint.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(CUSTOM_VERBS) if endpoint.custom else sorted(endpoint.verbs),
    }
    if resource.short_names:
        out["shortNames"] = list(resource.short_names)
    if resource.categories:
        out["categories"] = list(resource.categories)
    subs = []
    for name, sub in subresources(endpoint):
        own = (sub.kind, sub.group) == (endpoint.kind, endpoint.group)
        kind: Object = {"group": sub.group, "version": sub.version, "kind": sub.kind}
        if not endpoint.custom and (own or not sub.group):
            kind["group"] = kind["version"] = ""
        subs.append({"subresource": name, "responseKind": kind, "verbs": sorted(sub.verbs)})
    if subs:
        out["subresources"] = subs
    return out


class Discovery:
    """Answers the discovery paths from documents that are rebuilt when the scheme changes."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.server_address = ""
        # Groups served by others (aggregation): name -> versions -> (APIResourceList resources, fresh)
        self.remote: dict[str, dict[str, tuple[list[Object], bool]]] = {}
        self._kept: dict[Any, Any] = {}
        scheme.listeners.append(self._kept.clear)

    def forget(self) -> None:
        self._kept.clear()

    def groups(self) -> list[tuple[str, list[str]]]:
        """The named groups with their versions, preferred first, in the order in which they are listed."""
        own = [(g, v) for g, v in self.scheme.groups.items() if g]
        builtin = [g for g in own if any(not e.custom for e in self.scheme.of(g[0], g[1][0]))]
        custom = sorted(g for g in own if g not in builtin)
        remote = sorted((g, list(v)) for g, v in self.remote.items() if g not in self.scheme.groups)
        return builtin + custom + remote

    def handle(self, request: Request, parts: list[str]) -> Response | None:
        """parts: the path without its prefix slash, e.g. ["apis", "apps", "v1"]. None when there is no such document."""
        accept = request.headers.get("accept") or ""
        if len(parts) == 1 and AGGREGATED in accept:
            found = self._aggregated(request, parts[0], accept)
            if found is not None:
                return found
        document = self.document(parts)
        if document is None:
            return None
        form = negotiate(accept) if accept else negotiate("")
        return Response(200, rendering.encode(document, form, request), (rendering.NO_STORE,), form.media)

    def document(self, parts: list[str]) -> Object | None:
        key = tuple(parts)
        if key not in self._kept:
            made = self._make(parts)
            if made is None:
                return None
            self._kept[key] = made
        kept: Object = self._kept[key]
        if parts == ["api"]:
            kept = {
                **kept,
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": self.server_address}],
            }
        return kept

    def _make(self, parts: list[str]) -> Object | None:
        if parts == ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        if parts == ["apis"]:
            groups = [self._group(g, v) for g, v in self.groups()]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        if parts[0] == "api":
            return self._resources("", parts[1]) if len(parts) == 2 else None
        if len(parts) == 2:
            for group, versions in self.groups():
                if group == parts[1]:
                    return {"kind": "APIGroup", "apiVersion": "v1", **self._group(group, versions)}
            return None
        return self._resources(parts[1], parts[2]) if len(parts) == 3 else None

    def _group(self, group: str, versions: list[str]) -> Object:
        named = [{"groupVersion": f"{group}/{v}", "version": v} for v in versions]
        return {"name": group, "versions": named, "preferredVersion": named[0]}

    def _resources(self, group: str, version: str) -> Object | None:
        if version not in self.scheme.groups.get(group, ()):
            return None
        entries: list[Object] = []
        for endpoint in sorted(self.scheme.of(group, version), key=lambda e: e.plural):
            entries += resource_entries(endpoint)
        out: Object = {
            "kind": "APIResourceList",
            "groupVersion": f"{group}/{version}" if group else version,
            "resources": entries,
        }
        return {"kind": "APIResourceList", "apiVersion": "v1", **out} if group else out

    def _aggregated(self, request: Request, root: str, accept: str) -> Response | None:
        for media, params in _clauses(accept):
            if media not in (JSON, YAML, PROTOBUF):
                continue
            if params.get("as") != AGGREGATED:
                return None  # a plain document is preferred
            version = params.get("v", "")
            if params.get("g") != "apidiscovery.k8s.io" or version not in ("v2", "v2beta1"):
                continue
            key = (root, version, media)
            if key not in self._kept:
                document = {
                    "kind": AGGREGATED,
                    "apiVersion": f"apidiscovery.k8s.io/{version}",
                    "metadata": {},
                    "items": self._items(root),
                }
                body = orjson.dumps(document) + b"\n"
                if media == YAML:
                    from longshore.master.apiserver import yamlout

                    body = yamlout.dump(document)
                elif media == PROTOBUF:
                    from longshore.master.apiserver.protobuf import envelope

                    body = envelope(document)
                self._kept[key] = (body, '"' + hashlib.sha512(body).hexdigest().upper() + '"')
            body, etag = self._kept[key]
            headers = [("Cache-Control", "public"), ("ETag", etag), ("Vary", "Accept")]
            if request.headers.get("if-none-match") == etag:
                return Response(304, b"", headers)
            return Response(200, body, headers, f"{media};g=apidiscovery.k8s.io;v={version};as={AGGREGATED}")
        return None

    def _items(self, root: str) -> list[Object]:
        groups = [("", self.scheme.groups[""])] if root == "api" else self.groups()
        items = []
        for group, versions in groups:
            listed = []
            for version in versions:
                if group in self.remote and group not in self.scheme.groups:
                    told, fresh = self.remote[group][version]
                    freshness = "Current" if fresh else "Stale"
                    listed.append(
                        {"version": version, "resources": entries(told, group, version), "freshness": freshness}
                    )
                    continue
                resources = [
                    aggregated_entry(e) for e in sorted(self.scheme.of(group, version), key=lambda e: e.plural)
                ]
                listed.append({"version": version, "resources": resources, "freshness": "Current"})
            items.append({"metadata": {"name": group} if group else {}, "versions": listed})
        return items
