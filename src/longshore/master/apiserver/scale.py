"""The scale subresource: an autoscaling/v1 Scale as a view of an object's replicas.

Source: registry's scale REST of each workload; managedfields' ScaleHandler (a scale's own fields belong to the
subresource "scale", without a time).
"""

from __future__ import annotations

from typing import Any

from longshore.api import decoding
from longshore.api.kinds import kind_schema
from longshore.machinery.errors import (
    Cause,
    StatusError,
    apply_conflict,
    bad_request,
    internal_error,
    invalid,
    modified,
    not_found,
)
from longshore.machinery.http import Response
from longshore.machinery.patch import managedfields, typed
from longshore.machinery.patch.schema import DEDUCED
from longshore.master.apiserver import bodies, options, rendering
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.keys import path
from longshore.master.apiserver.options import WriteOptions
from longshore.master.apiserver.patching import APPLY, decoding_quote, parse_patch, patch_type, patched
from longshore.master.apiserver.writes import View, Writer, copy_tree

Object = dict[str, Any]
SCALE = ("autoscaling", "v1", "Scale")


class KindOnly:
    """A kind that is no resource of its own, as decoding.read wants it."""

    builtin = True

    def __init__(self, group: str, version: str, kind: str) -> None:
        self.group, self.version, self.kind = group, version, kind

    def api_version(self, version: str) -> str:
        return f"{self.group}/{version}" if self.group else version

    def decode(self, value: Any, version: str, unknown: list[str] | None = None) -> Object:
        out: Object = kind_schema(self.group, version, self.kind).decode(value, unknown)
        return out


_SCALE = KindOnly(*SCALE)


def label_text(selector: Any) -> str:
    """A LabelSelector as text."""
    if not selector:
        return ""
    if not isinstance(selector.get("matchLabels", {}), dict) or (
        "matchLabels" not in selector and "matchExpressions" not in selector
    ):
        return ",".join(f"{k}={v}" for k, v in sorted(selector.items()))
    parts = [(k, f"{k}={v}") for k, v in (selector.get("matchLabels") or {}).items()]
    for e in selector.get("matchExpressions") or ():
        key, operator, values = e["key"], e["operator"], ",".join(sorted(e.get("values") or ()))
        text = {
            "In": f"{key} in ({values})",
            "NotIn": f"{key} notin ({values})",
            "Exists": key,
            "DoesNotExist": f"!{key}",
        }[operator]
        parts.append((key, text))
    return ",".join(text for _, text in sorted(parts, key=lambda p: p[0]))


def at_path(obj: Any, where: str) -> Any:
    """The value at a simple JSON path (".spec.replicas")."""
    for name in where.lstrip(".").split("."):
        if not isinstance(obj, dict):
            return None
        obj = obj.get(name)
    return obj


def put_path(obj: Object, where: str, value: Any) -> None:
    names = where.lstrip(".").split(".")
    for name in names[:-1]:
        obj = obj.setdefault(name, {})
    obj[names[-1]] = value


class ScaleHandler:
    """Answers GET, PUT and PATCH of .../scale."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    async def handle(self, call: Call) -> Response:
        hub = self.writer.hub
        if not hub.current():
            await hub.fresh()
        if call.verb == "get":
            return self._answer(call, self._live(call))
        if call.verb == "update":
            chosen = options.write_options(call.request, "UpdateOptions")
            scale = await bodies.read_object(call, _SCALE, "v1", chosen.validation)
            return await self._replace(call, scale, chosen)
        media = patch_type(call)
        chosen = options.write_options(call.request, "PatchOptions", media == APPLY)
        return await self._patch(call, await bodies.read(call.request), media, chosen)

    def _live(self, call: Call) -> Object:
        endpoint = call.endpoint
        cache = endpoint.cache
        assert cache is not None
        item = cache.items.get(path(call.namespace, call.name))
        if item is None:
            raise not_found(endpoint.group, endpoint.plural, call.name)
        return endpoint.present(item.decode())

    def _paths(self, call: Call) -> tuple[str, str, str]:
        """Where replicas, their status and the selector are."""
        if call.endpoint.custom:
            found = call.endpoint.resource.scale_paths(call.endpoint.version) or {}
            return found["specReplicasPath"], found["statusReplicasPath"], found.get("labelSelectorPath", "")
        return ".spec.replicas", ".status.replicas", ".spec.selector"

    def show(self, call: Call, obj: Object) -> Object:
        """The Scale of an object."""
        replicas, status, selector = self._paths(call)
        metadata = obj["metadata"]
        keep = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        spec: Object = {}
        count = at_path(obj, replicas)
        if count is None and call.endpoint.custom:
            raise internal_error(f'the spec replicas field "{replicas}" does not exist')
        if count:
            spec["replicas"] = count
        shown: Object = {"replicas": at_path(obj, status) or 0}
        found = at_path(obj, selector) if selector else None
        text = found if isinstance(found, str) else label_text(found)
        if text:
            shown["selector"] = text
        return {
            "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {k: metadata[k] for k in keep if k in metadata},
            "spec": spec, "status": shown,
        }  # fmt: skip

    def _answer(self, call: Call, obj: Object) -> Response:
        out = self.show(call, obj)
        return rendering.respond(
            call, 200, rendering.encode(out, call.form._replace(kind=""), call.request), call.form.media
        )

    def _view(self, call: Call) -> View:
        replicas = self._paths(call)[0]

        def take(obj: Object, scale: Object) -> None:
            put_path(obj, replicas, (scale.get("spec") or {}).get("replicas", 0))

        return View(SCALE, lambda obj: self.show(call, obj), take)

    async def _replace(self, call: Call, scale: Object, chosen: WriteOptions) -> Response:
        metadata = scale.get("metadata") or {}
        have = metadata.get("name")
        if not have:
            raise bad_request(
                f"the name of the object ({call.name} based on URL) was undeterminable: name must be provided"
            )
        if have != call.name:
            raise bad_request(f"the name of the object ({have}) does not match the name on the URL ({call.name})")
        version, uid = metadata.get("resourceVersion") or "", metadata.get("uid") or ""
        return await self._write(call, lambda live: scale, chosen, version, uid)

    async def _write(self, call: Call, make: Any, chosen: WriteOptions, version: str = "", uid: str = "") -> Response:
        endpoint = call.endpoint
        view = self._view(call)

        def change(live: Object | None) -> Object:
            assert live is not None
            scale = make(live)
            self._check(call, scale)
            new: Object = copy_tree(live)
            new["metadata"].pop("resourceVersion", None)
            given = (scale.get("metadata") or {}).get("resourceVersion")
            if given and not version and given != live["metadata"]["resourceVersion"]:
                raise modified(endpoint.group, endpoint.plural, call.name)
            view.take(new, scale)
            owned = scale.get("__managedFields")
            if owned is not None:
                new["metadata"]["managedFields"] = owned
            else:
                managedfields.update(
                    self.writer.field_types(endpoint, "scale"),
                    live,
                    new,
                    chosen.manager,
                    endpoint.api_version,
                    "scale",
                    "",
                )
            return new

        out, _, _ = await self.writer.guaranteed_update(call, change, chosen, "", version=version, uid=uid, view=view)
        return self._answer(call, out if endpoint.native else endpoint.convert(out, endpoint.version))

    def _check(self, call: Call, scale: Object) -> None:
        count = (scale.get("spec") or {}).get("replicas", 0)
        if count < 0 and not call.endpoint.custom:
            cause = Cause(
                "FieldValueInvalid", f"Invalid value: {count}: must be greater than or equal to 0", "spec.replicas"
            )
            raise invalid("autoscaling", "Scale", call.name, [cause])

    async def _patch(self, call: Call, body: bytes, media: str, chosen: WriteOptions) -> Response:
        if media == APPLY:
            return await self._apply(call, body, chosen)
        parsed = parse_patch(body, media)
        node = self.writer.scheme.kind_node(*SCALE) or DEDUCED

        def make(live: Object) -> Object:
            before = self.show(call, live)
            out, shown = patched(call.endpoint, before, parsed, media, node)
            try:
                scale, warnings = decoding.admit(_SCALE, "v1", out, [], chosen.validation)
            except decoding.BodyError as error:
                text = str(error).removeprefix('Scale in version "v1" cannot be handled as a Scale: ')
                cause = Cause("FieldValueInvalid", f"Invalid value: {decoding_quote(shown())}: {text}", "patch")
                raise invalid("", "", "", [cause]) from None
            for text in warnings:
                call.warn(text)
            return scale

        return await self._write(call, make, chosen)

    async def _apply(self, call: Call, body: bytes, chosen: WriteOptions) -> Response:
        """Apply a Scale: it is turned into an apply of the one field that it stands for."""
        try:
            config = decoding.parse_yaml(body).value or {}
        except ValueError as error:
            raise bad_request(f"error decoding YAML: error converting YAML to JSON: {error}") from None
        if (config.get("apiVersion"), config.get("kind")) != ("autoscaling/v1", "Scale"):
            group, _, version = str(config.get("apiVersion", "")).rpartition("/")
            raise bad_request(f"invalid object type: {group}/{version}, Kind={config.get('kind', '')}")
        endpoint = call.endpoint
        replicas = self._paths(call)[0]
        wanted: Object = {"kind": endpoint.kind, "apiVersion": endpoint.api_version, "metadata": {"name": call.name}}
        count = (config.get("spec") or {}).get("replicas")
        if count is not None:
            put_path(wanted, replicas, count)

        def make(live: Object) -> Object:
            try:
                new = managedfields.apply(
                    self.writer.field_types(endpoint, "scale"), live, wanted, chosen.manager, endpoint.api_version, "scale",
                    chosen.force, "",
                )  # fmt: skip
            except managedfields.ApplyConflict as error:
                # Managers of the parent are shown as owners of the Scale.
                shown = managedfields.ApplyConflict(
                    [(m._replace(api_version="autoscaling/v1" if m.api_version else ""), p) for m, p in error.conflicts]
                )
                raise apply_conflict([Cause(**c) for c in shown.causes()], shown.message()) from None
            except typed.TypedError as error:
                raise StatusError(500, "", str(error)) from None
            scale = self.show(call, new)
            scale["__managedFields"] = new["metadata"].get("managedFields")
            return scale

        return await self._write(call, make, chosen)
