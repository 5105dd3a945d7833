"""/openapi/v3 and /openapi/v2: what is served, described. Documents are made when asked for and kept compressed."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

import orjson

from longshore.machinery.http import Request, Response
from longshore.master.apiserver import rendering
from longshore.master.apiserver.aggregation.documents import Documents, merge
from longshore.master.apiserver.discovery import Discovery, subresources
from longshore.master.apiserver.scheme import Endpoint, Scheme

Object = dict[str, Any]
SCHEMAS = "#/components/schemas/"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
V2_PROTOBUF = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
_MEDIA = ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")
_LIST_MEDIA = (*_MEDIA, "application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch")
_PATCHES = (
    "application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)  # fmt: skip
_INFO = {"title": "Kubernetes", "version": "v1.36.1"}
_QUERY: dict[str, tuple[str, str]] = {
    "allowWatchBookmarks": ("boolean", "Ask for BOOKMARK events in a watch."),
    "continue": ("string", "The token that the previous page of the list came with."),
    "fieldSelector": ("string", "Restrict the objects by their fields."),
    "labelSelector": ("string", "Restrict the objects by their labels."),
    "limit": ("integer", "The largest number of objects in one page."),
    "resourceVersion": ("string", "The version that the answer may be as old as."),
    "resourceVersionMatch": ("string", "How resourceVersion is meant: Exact or NotOlderThan."),
    "sendInitialEvents": ("boolean", "Begin a watch with the present state."),
    "timeoutSeconds": ("integer", "How long a list or watch may last."),
    "watch": ("boolean", "Watch for changes instead of listing."),
    "dryRun": ("string", "All: do everything but store."),
    "fieldManager": ("string", "Who makes the change."),
    "fieldValidation": ("string", "What to do about unknown and duplicate fields: Ignore, Warn or Strict."),
    "force": ("boolean", "Take over fields that others own (apply only)."),
    "gracePeriodSeconds": ("integer", "How long the object may take to end."),
    "orphanDependents": ("boolean", "Deprecated, use propagationPolicy."),
    "propagationPolicy": ("string", "What happens to dependents: Orphan, Background or Foreground."),
    "ignoreStoreReadErrorWithClusterBreakingPotential": ("boolean", "Delete an object that cannot be read."),
    "pretty": ("string", "Print the answer for a reader."),
}
_LIST = ("allowWatchBookmarks", "continue", "fieldSelector", "labelSelector", "limit", "resourceVersion",
         "resourceVersionMatch", "sendInitialEvents", "timeoutSeconds", "watch")  # fmt: skip
_WRITE = ("dryRun", "fieldManager", "fieldValidation")
_DELETE = (
    "dryRun",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "orphanDependents",
    "propagationPolicy",
)


def parameter(name: str, where: str = "query", required: bool = False) -> Object:
    kind, text = _QUERY.get(name, ("string", f"{name} of the object"))
    out: Object = {"name": name, "in": where, "description": text, "schema": {"type": kind, "uniqueItems": True}}
    if required:
        out["required"] = True
    return out


def definition_name(endpoint: Endpoint, kind: str = "", group: str | None = None, version: str = "") -> str:
    """The name of the definition of a kind (of an endpoint's own kind by default)."""
    from longshore.api import definitions

    key = (endpoint.group if group is None else group, version or endpoint.version, kind or endpoint.kind)
    found = definitions.by_kind().get(key)
    if found is not None:
        return found
    return ".".join([*reversed(key[0].split(".")), key[1], key[2]])


def _reference(name: str) -> Object:
    return {"schema": {"$ref": SCHEMAS + name}}


def _content(medias: Iterable[str], name: str) -> Object:
    return {media: _reference(name) for media in medias}


def _responses(name: str, codes: dict[str, str], medias: Iterable[str] = _MEDIA) -> Object:
    medias = tuple(medias)
    out: Object = {code: {"description": text, "content": _content(medias, name)} for code, text in codes.items()}
    return {**out, "401": {"description": "Unauthorized"}}


class OpenAPI:
    """Answers /openapi/..."""

    def __init__(self, scheme: Scheme, discovery: Discovery) -> None:
        self.scheme = scheme
        self.discovery = discovery
        # Definitions of custom resources: (group, version) -> {definition name: schema}
        self.custom: dict[tuple[str, str], dict[str, Object]] = {}
        # Documents of other servers (aggregation): (group, version) -> what it says of itself
        self.remote: dict[tuple[str, str], Documents] = {}
        self._kept: dict[str, tuple[bytes, str]] = {}
        self._modified = formatdate(usegmt=True)
        scheme.listeners.append(self.forget)

    def forget(self) -> None:
        self._kept.clear()
        self._modified = formatdate(usegmt=True)

    def handle(self, request: Request, parts: list[str]) -> Response | None:
        """parts: the path's parts, the first is "openapi"."""
        if request.method != "GET":
            return Response(405, b"", (rendering.NO_STORE,))
        if parts[1:2] == ["v2"] and len(parts) == 2:
            return self._v2(request)
        if parts[1:2] != ["v3"]:
            return None
        name = "/".join(parts[2:])
        if not name:
            return self._index()
        if name not in self._names():
            return Response(404, b"", (rendering.NO_STORE,))
        data, tag = self._document(name)
        wanted = request.param("hash")
        if wanted and wanted != tag:
            location = f"/openapi/v3/{name}?hash={tag}"
            return Response(301, b"", (("Location", location),))
        cache = ("Cache-Control", "public, immutable") if wanted else rendering.NO_STORE
        return self._answer(request, data, tag, cache, "application/json")

    def _answer(self, request: Request, packed: bytes, tag: str, cache: tuple[str, str], media: str) -> Response:
        headers = [cache, ("ETag", f'"{tag}"'), ("Vary", "Accept-Encoding"), ("Vary", "Accept")]
        if request.headers.get("if-none-match") == f'"{tag}"':
            return Response(304, b"", headers)
        headers.append(("Last-Modified", self._modified))
        if "gzip" in (request.headers.get("accept-encoding") or ""):
            return Response(200, packed, [*headers, ("Content-Encoding", "gzip")], media)
        return Response(200, zlib.decompress(packed, 31), headers, media)

    def _keep(self, key: str, document: Object) -> tuple[bytes, str]:
        raw = orjson.dumps(document)
        self._kept[key] = (rendering.compress(raw), hashlib.sha512(raw).hexdigest().upper())
        return self._kept[key]

    # Version 3.

    def _names(self) -> list[str]:
        names = [".well-known/openid-configuration", "api", "api/v1", "apis", "openid/v1/jwks", "version"]
        for group, versions in self.scheme.groups.items():
            if group:
                names.append(f"apis/{group}")
                names += [f"apis/{group}/{v}" for v in versions]
        return sorted(names)

    def _index(self) -> Response:
        paths = {}
        for name in self._names():
            # The tag of a document that nobody has asked for yet is made from what decides its content.
            kept = self._kept.get(name)
            tag = kept[1] if kept is not None else self._document(name)[1]
            paths[name] = {"serverRelativeURL": f"/openapi/v3/{name}?hash={tag}"}
        for (group, version), told in self.remote.items():
            if told.tag:
                name = f"apis/{group}/{version}"
                paths[name] = {"serverRelativeURL": f"/openapi/v3/{name}?hash={quote(told.tag, safe='')}"}
        headers = (rendering.NO_STORE, ("Last-Modified", self._modified))
        return Response(200, orjson.dumps({"paths": paths}), headers, "text/plain; charset=utf-8")

    def _document(self, name: str) -> tuple[bytes, str]:
        kept = self._kept.get(name)
        if kept is not None:
            return kept
        parts = name.split("/")
        paths: Object = {}
        schemas: Object = {}
        if name == "api/v1" or (parts[0] == "apis" and len(parts) == 3):
            group, version = ("", "v1") if name == "api/v1" else (parts[1], parts[2])
            wanted: set[str] = {_META + n for n in ("Status", "Patch", "DeleteOptions", "APIResourceList")}
            for endpoint in self.scheme.of(group, version):
                paths |= self.paths(endpoint, wanted)
            schemas = self.schemas(wanted, self.custom.get((group, version), {}))
            root = f"/{name}/"
            paths[root] = {"get": {"operationId": "get" + _camel(group, version) + "APIResources", "responses": _responses(_META + "APIResourceList", {"200": "OK"})}}  # fmt: skip
        else:
            kind = {"api": "APIVersions", "apis": "APIGroupList"}.get(name, "APIGroup" if parts[0] == "apis" else "")
            if kind:
                schemas = self.schemas({_META + kind}, {})
                paths[f"/{name}/"] = {"get": {"responses": _responses(_META + kind, {"200": "OK"})}}
            else:
                paths[f"/{name}/"] = {"get": {"responses": {"200": {"description": "OK"}}}}
        document = {"openapi": "3.0.0", "info": _INFO, "paths": paths, "components": {"schemas": schemas}}
        return self._keep(name, document)

    def paths(self, endpoint: Endpoint, wanted: set[str]) -> Object:
        """The paths of one endpoint; the definitions that they refer to are added to `wanted`."""
        resource = endpoint.resource
        base = f"/apis/{endpoint.group}/{endpoint.version}" if endpoint.group else f"/api/{endpoint.version}"
        own = definition_name(endpoint)
        lists = definition_name(endpoint, resource.list_kind)
        wanted |= {own, lists} if "list" in endpoint.verbs else {own}
        gvk = {"group": endpoint.group, "version": endpoint.version, "kind": endpoint.kind}
        scoped = f"{base}/namespaces/{{namespace}}" if endpoint.namespaced else base
        common = [parameter("namespace", "path", True)] if endpoint.namespaced else []
        tag = _camel(endpoint.group, endpoint.version)
        scope = "Namespaced" if endpoint.namespaced else ""
        out: Object = {}
        collection = self._operations(
            endpoint, endpoint.verbs & {"list", "create", "deletecollection"}, own, lists, gvk, tag, scope, ""
        )
        if collection:
            out[f"{scoped}/{endpoint.plural}"] = {**collection, "parameters": [*common, parameter("pretty")]}
        if endpoint.namespaced and "list" in endpoint.verbs:
            every = self._operations(endpoint, {"list"}, own, lists, gvk, tag, "", "ForAllNamespaces")
            out[f"{base}/{endpoint.plural}"] = {**every, "parameters": [parameter("pretty")]}
        item = self._operations(
            endpoint, endpoint.verbs & {"get", "update", "patch", "delete"}, own, lists, gvk, tag, scope, ""
        )
        named = [parameter("name", "path", True), *common, parameter("pretty")]
        if item:
            out[f"{scoped}/{endpoint.plural}/{{name}}"] = {**item, "parameters": named}
        for name, sub in subresources(endpoint):
            group, version = (
                (sub.group, sub.version) if sub.kind != endpoint.kind else (endpoint.group, endpoint.version)
            )
            shown = definition_name(endpoint, sub.kind, group, version)
            try:
                self._schema(shown, self.custom.get((endpoint.group, endpoint.version), {}))
            except KeyError:
                shown = own
            wanted.add(shown)
            kind = {"group": group, "version": version, "kind": sub.kind}
            verbs = set(sub.verbs) & {"get", "update", "patch", "create"}
            done = self._operations(endpoint, verbs, shown, lists, kind, tag, scope, name.capitalize())
            if done:
                out[f"{scoped}/{endpoint.plural}/{{name}}/{name}"] = {**done, "parameters": named}
        return out

    def _operations(
        self,
        endpoint: Endpoint,
        verbs: Iterable[str],
        own: str,
        lists: str,
        gvk: Object,
        tag: str,
        scope: str,
        suffix: str,
    ) -> Object:
        out: Object = {}
        base = {"tags": [tag[0].lower() + tag[1:]], "x-kubernetes-group-version-kind": gvk}
        body = {"content": _content(_MEDIA, own), "required": True}
        for verb in verbs:
            method, action, word = _METHODS[verb]
            operation: Object = {
                **base, "x-kubernetes-action": action, "operationId": f"{word}{tag}{scope}{endpoint.kind}{suffix}",
                "description": f"{_WORDS[verb]} {endpoint.kind}",
            }  # fmt: skip
            if verb == "list":
                operation |= {
                    "parameters": [parameter(p) for p in _LIST],
                    "responses": _responses(lists, {"200": "OK"}, _LIST_MEDIA),
                }
            elif verb == "get":
                operation["responses"] = _responses(own, {"200": "OK"})
            elif verb == "create":
                codes = {"200": "OK", "201": "Created", "202": "Accepted"}
                operation |= {
                    "parameters": [parameter(p) for p in _WRITE],
                    "requestBody": body,
                    "responses": _responses(own, codes),
                }
            elif verb == "update":
                codes = {"200": "OK", "201": "Created"}
                operation |= {
                    "parameters": [parameter(p) for p in _WRITE],
                    "requestBody": body,
                    "responses": _responses(own, codes),
                }
            elif verb == "patch":
                medias = [m for m in _PATCHES if not (endpoint.custom and "strategic" in m)]
                operation |= {
                    "parameters": [parameter(p) for p in (*_WRITE, "force")],
                    "requestBody": {"content": _content(medias, _META + "Patch"), "required": True},
                    "responses": _responses(own, {"200": "OK", "201": "Created"}),
                }
            else:
                options = {"content": _content(_MEDIA, _META + "DeleteOptions")}
                codes = {"200": "OK"} if verb == "deletecollection" else {"200": "OK", "202": "Accepted"}
                names = (
                    _DELETE
                    if verb == "delete"
                    else (*(p for p in _LIST if p not in ("allowWatchBookmarks", "watch")), *_DELETE)
                )
                operation |= {
                    "parameters": [parameter(p) for p in names], "requestBody": options,
                    "responses": _responses(_META + "Status", codes),
                }  # fmt: skip
            out[method] = operation
        return out

    # Definitions.

    def _schema(self, name: str, custom: dict[str, Object]) -> Object:
        from longshore.api import definitions

        if name in custom:
            return custom[name]
        out: Object = definitions.definition(name)[0]
        return out

    def schemas(self, wanted: Iterable[str], custom: dict[str, Object]) -> Object:
        """The definitions named and all that they refer to, with descriptions."""
        from longshore.api import definitions

        docs = definitions.descriptions()
        out: Object = {}
        queue = sorted(wanted)
        while queue:
            name = queue.pop()
            if name in out:
                continue
            try:
                schema = self._schema(name, custom)
            except KeyError:
                out[name] = {"type": "object"}
                continue
            if name not in custom:
                _describe(schema, docs.get(name, {}))
            out[name] = schema
            queue += [r.rsplit("/", 1)[1] for r in _references(schema)]
        return {k: out[k] for k in sorted(out)}

    # Version 2.

    def _v2(self, request: Request) -> Response:
        accept = request.headers.get("accept") or ""
        kept = self._kept.get("v2") or self._keep("v2", self._swagger())
        if "proto-openapi.spec.v2" in accept and "json" not in accept.split("proto-openapi")[0]:
            from longshore.master.apiserver.gnostic import encode

            packed = self._kept.get("v2.pb")
            if packed is None:
                raw = encode(orjson.loads(zlib.decompress(kept[0], 31)))
                packed = self._kept["v2.pb"] = (rendering.compress(raw), kept[1])
            media = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
            return self._answer(request, packed[0], packed[1], rendering.NO_STORE, media)
        return self._answer(request, kept[0], kept[1], rendering.NO_STORE, "application/json")

    def _swagger(self) -> Object:
        """All of it as one Swagger 2.0 document."""
        wanted: set[str] = {
            _META + n
            for n in ("Status", "Patch", "DeleteOptions", "APIResourceList", "APIGroup", "APIGroupList", "APIVersions")
        }
        custom: dict[str, Object] = {}
        for named in self.custom.values():
            custom |= named
        paths: Object = {}
        for endpoint in self.scheme.endpoints.values():
            for path, item in self.paths(endpoint, wanted).items():
                paths[path] = _swagger_item(item)
        definitions = {
            name: _swagger_schema(_structural(schema, root=True) if name in custom else schema)
            for name, schema in self.schemas(wanted, custom).items()
        }
        for told in self.remote.values():
            merge(paths, definitions, told)
        security = {
            "BearerToken": {
                "type": "apiKey",
                "name": "authorization",
                "in": "header",
                "description": "Bearer Token authentication",
            }
        }
        return {
            "swagger": "2.0", "info": _INFO, "paths": {p: paths[p] for p in sorted(paths)}, "definitions": definitions,
            "securityDefinitions": security, "security": [{"BearerToken": []}],
        }  # fmt: skip


_METHODS = {
    "list": ("get", "list", "list"), "get": ("get", "get", "read"), "create": ("post", "post", "create"),
    "update": ("put", "put", "replace"), "patch": ("patch", "patch", "patch"), "delete": ("delete", "delete", "delete"),
    "deletecollection": ("delete", "deletecollection", "deleteCollection"),
}  # fmt: skip
_WORDS = {
    "list": "list or watch objects of kind", "get": "read the specified", "create": "create a",
    "update": "replace the specified", "patch": "partially update the specified", "delete": "delete a",
    "deletecollection": "delete collection of",
}  # fmt: skip


def _camel(group: str, version: str) -> str:
    name = (group or "core").split(".")[0]
    return name.capitalize() + version.capitalize()


def _references(node: Any) -> list[str]:
    found: list[str] = []
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref" and isinstance(value, str):
                found.append(value)
            else:
                found += _references(value)
    elif isinstance(node, list):
        for value in node:
            found += _references(value)
    return found


def _describe(schema: Object, docs: dict[str, str]) -> None:
    if docs.get(""):
        schema["description"] = docs[""]
    for name, child in schema.get("properties", {}).items():
        if name in docs:
            child["description"] = docs[name]


def _structural(node: Object, root: bool = False) -> Object:
    """A custom resource's schema without what version 2 and its users cannot take (upstream's ToStructuralOpenAPIV2)."""
    out = {k: v for k, v in node.items() if k not in ("anyOf", "oneOf", "not", "x-kubernetes-validations")}
    if "allOf" in out and not any("$ref" in part for part in out["allOf"]):
        del out["allOf"]
    if out.pop("nullable", None):
        for key in ("type", "items", "properties", "additionalProperties"):
            out.pop(key, None)
    if out.get("x-kubernetes-preserve-unknown-fields"):
        if root:
            kept = "x-kubernetes-group-version-kind"
            return {"type": "object", kept: out[kept]}
        out.pop("items", None)
        out.pop("properties", None)
    if "properties" in out:
        out["properties"] = {name: _structural(child) for name, child in out["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(out.get(key), dict):
            out[key] = _structural(out[key])
    return out


def _swagger_schema(node: Any) -> Any:
    """An OpenAPI v3 schema in the words of version 2."""
    if isinstance(node, list):
        return [_swagger_schema(n) for n in node]
    if not isinstance(node, dict):
        return node
    every = node.get("allOf")
    out: Object = {}
    if every and len(every) == 1 and "$ref" in every[0]:
        out["$ref"] = "#/definitions/" + every[0]["$ref"].rsplit("/", 1)[1]
        if "description" in node:
            out["description"] = node["description"]
        return out
    for key, value in node.items():
        if key == "$ref" and isinstance(value, str):
            out[key] = "#/definitions/" + value.rsplit("/", 1)[1]
        elif key in ("oneOf", "anyOf", "allOf", "not", "nullable"):
            continue
        elif key == "properties":
            out[key] = {name: _swagger_schema(child) for name, child in value.items()}
        elif key in ("items", "additionalProperties"):
            out[key] = _swagger_schema(value)
        else:
            out[key] = value
    if node.get("x-kubernetes-int-or-string") or node.get("oneOf"):
        out.setdefault("type", "string")
        if "oneOf" in node and out.get("format") is None and node.get("format") is None:
            out["format"] = "int-or-string"
    return out


def _swagger_parameter(found: Object) -> Object:
    schema = found["schema"]
    out = {k: v for k, v in found.items() if k != "schema"}
    return {**out, "type": schema["type"], "uniqueItems": True}


def _swagger_item(item: Object) -> Object:
    out: Object = {}
    for method, operation in item.items():
        if method == "parameters":
            out[method] = [_swagger_parameter(p) for p in operation]
            continue
        made = {k: v for k, v in operation.items() if k not in ("requestBody", "responses", "parameters")}
        parameters = [_swagger_parameter(p) for p in operation.get("parameters", ())]
        body = operation.get("requestBody")
        if body is not None:
            schema = next(iter(body["content"].values()))["schema"]
            entry: Object = {"name": "body", "in": "body", "schema": _swagger_schema(schema)}
            if body.get("required"):
                entry["required"] = True
            parameters.insert(0, entry)
            made["consumes"] = ["*/*"] if method != "patch" else list(body["content"])
        if parameters:
            made["parameters"] = parameters
        responses: Object = {}
        produces: list[str] = []
        for code, response in operation["responses"].items():
            content = response.get("content")
            responses[code] = {"description": response["description"]}
            if content:
                produces = list(content)
                responses[code]["schema"] = _swagger_schema(next(iter(content.values()))["schema"])
        made["produces"], made["responses"], made["schemes"] = produces, responses, ["https"]
        out[method] = made
    return out
