"""PATCH: the four patch types, put through the same path as an update.

Source: apiserver's endpoints/handlers/patch.go (order of checks and error texts).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from longshore.api import decoding, times
from longshore.api.decoding import BodyError
from longshore.api.mismatches import json_kind
from longshore.api.schema import DecodeError
from longshore.machinery.errors import (
    Cause,
    StatusError,
    apply_conflict,
    bad_request,
    conflict,
    invalid,
    request_entity_too_large,
    unsupported_media_type,
)
from longshore.machinery.patch import jsonpatch, managedfields, mergepatch, strategic, typed
from longshore.machinery.patch.schema import DEDUCED
from longshore.master.apiserver.cache import Item
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.options import WriteOptions, write_options
from longshore.master.apiserver.rendering import ordered_metadata
from longshore.master.apiserver.writes import Writer, converted, copy_tree

Object = dict[str, Any]
JSON_PATCH, MERGE_PATCH, STRATEGIC, APPLY = (
    "application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)  # fmt: skip
TYPES = (JSON_PATCH, MERGE_PATCH, STRATEGIC, APPLY)


def patch_type(call: Call) -> str:
    """The patch's media type; 415 when the path takes none such."""
    media = (call.request.headers.get("content-type") or "").split(";")[0].strip()
    if media not in TYPES:
        raise StatusError(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})
    if media == STRATEGIC and call.endpoint.custom:
        raise unsupported_media_type((JSON_PATCH, MERGE_PATCH, APPLY))
    return media


class Patcher:
    """Answers PATCH calls of objects and of subresources that have the object's own kind."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    async def patch(self, call: Call, body: bytes, subresource: str = "") -> tuple[Object, Item | None, bool]:
        """The object, its item, whether it was created (by apply)."""
        media = patch_type(call)
        options = write_options(call.request, "PatchOptions", media == APPLY)
        if media == APPLY:
            return await self._apply(call, body, options, subresource)
        change = self._change(call, body, media, options, subresource)
        return await self.writer.guaranteed_update(call, change, options, subresource)

    def _change(self, call: Call, body: bytes, media: str, options: WriteOptions, subresource: str) -> Any:
        endpoint, name = call.endpoint, call.info.name
        parsed: Any = None
        version: str | None = None

        def change(live: Object | None) -> Object:
            nonlocal parsed, version
            assert live is not None
            if parsed is None:
                parsed = parse_patch(body, media)
            before = {**live, "metadata": ordered_metadata(live["metadata"])}
            out, shown = patched(endpoint, before, parsed, media, self.writer.scheme.node(endpoint) or DEDUCED)
            new = self._decode(call, out, before, shown, options, subresource)
            metadata = new["metadata"]
            self.writer._match_name(metadata, name)
            self.writer._match_namespace(endpoint, metadata, call.info.namespace)
            endpoint.resource.default(new, endpoint.version)
            converted(endpoint, new)
            # A version that the patch itself sets is a condition; the one that was there is not.
            given = metadata.get("resourceVersion")
            if given == live["metadata"].get("resourceVersion") and not (
                (media == MERGE_PATCH and _sets_version(parsed)) or version == given
            ):
                metadata.pop("resourceVersion", None)
            else:
                version = given
            managedfields.update(
                self.writer.field_types(endpoint, subresource),
                live, new, options.manager, endpoint.api_version, subresource, times.now(),
            )  # fmt: skip
            return new

        return change

    def _decode(
        self,
        call: Call,
        out: Object,
        before: Object,
        shown: Callable[[], str],
        options: WriteOptions,
        subresource: str,
    ) -> Object:
        """The patched tree as an object of the kind; 422 in upstream's words when it is none any more."""
        endpoint = call.endpoint
        try:
            if not isinstance(out.get("metadata", {}), (dict, type(None))):
                endpoint.resource.decode(out, endpoint.version)
            obj, warnings = admit_patched(endpoint, out, options.validation, before, subresource == "status")
        except (BodyError, DecodeError) as error:
            cause = Cause("FieldValueInvalid", f"Invalid value: {decoding_quote(shown())}: {error}", "patch")
            raise invalid("", "", "", [cause]) from None
        for text in warnings:
            call.warn(text)
        return obj

    async def _apply(
        self, call: Call, body: bytes, options: WriteOptions, subresource: str
    ) -> tuple[Object, Item | None, bool]:
        endpoint, name = call.endpoint, call.info.name
        try:
            config, doubled = decoding.parse_yaml(body)
        except ValueError as error:
            raise bad_request(f"error decoding YAML: error converting YAML to JSON: {error}") from None
        if config is None:
            config = {}
        if not isinstance(config, dict):
            raise bad_request(
                "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal"
                f" {json_kind(config)} into Go value of type map[string]interface {{}}"
            )
        if doubled and options.validation == "Strict":
            raise bad_request(
                "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  "
                + "\n  ".join(doubled)
            )
        if doubled and options.validation == "Warn":
            for text in doubled:
                call.warn(text)
        api_version, kind = config.get("apiVersion", ""), config.get("kind", "")
        if (api_version, kind) != (endpoint.api_version, endpoint.kind):
            group, _, version = str(api_version).rpartition("/")
            raise bad_request(f"invalid object type: {group}/{version}, Kind={kind}")
        metadata = config.get("metadata") or {}
        if metadata.get("managedFields") is not None:
            raise bad_request("metadata.managedFields must be nil")
        uid = metadata.get("uid") or ""
        types = self.writer.field_types(endpoint, subresource)

        def change(live: Object | None) -> Object:
            current = live if live is not None else self._empty(call)
            try:
                new = managedfields.apply(
                    types,
                    current,
                    config,
                    options.manager,
                    endpoint.api_version,
                    subresource,
                    options.force,
                    times.now(),
                )
            except managedfields.ApplyConflict as error:
                causes = [Cause(c["reason"], c["message"], c["field"]) for c in error.causes()]
                raise apply_conflict(causes, error.message()) from None
            except managedfields.ApplyRefused as error:
                raise bad_request(str(error)) from None
            except typed.TypedError as error:
                raise StatusError(500, "", str(error)) from None
            entries = new.get("metadata", {}).get("managedFields")
            try:
                decoded: Object = endpoint.resource.decode(copy_tree(new), endpoint.version)
            except DecodeError as error:
                raise StatusError(
                    500, "", f"failed to convert new typed object ({managedfields.describe(config)}) to object: {error}"
                ) from None
            decoded["apiVersion"], decoded["kind"] = endpoint.api_version, endpoint.kind
            endpoint.resource.default(decoded, endpoint.version)
            converted(endpoint, decoded)
            if entries:
                decoded["metadata"]["managedFields"] = entries
            if not (config.get("metadata") or {}).get("name"):
                decoded["metadata"].pop("name", None) if live is None else None
                raise bad_request(
                    f"the name of the object ({name} based on URL) was undeterminable: name must be provided"
                )
            given = (config.get("metadata") or {}).get("resourceVersion")
            if live is not None and not given:
                decoded["metadata"].pop("resourceVersion", None)
            if live is None:
                decoded["metadata"].pop("resourceVersion", None)
                have = decoded["metadata"].get("name")
                if have != name:
                    raise bad_request(f"the name of the object ({have}) does not match the name on the URL ({name})")
                if uid:
                    why = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                    raise conflict(endpoint.group, endpoint.plural, name, why)
            else:
                self.writer._match_name(decoded["metadata"], name)
                self.writer._match_namespace(endpoint, decoded["metadata"], call.info.namespace)
            return decoded

        return await self.writer.guaranteed_update(
            call, change, options, subresource, create=not subresource, operation="APPLY"
        )

    def _empty(self, call: Call) -> Object:
        return {"kind": call.endpoint.kind, "apiVersion": call.endpoint.api_version, "metadata": {}}


def decoding_quote(text: str) -> str:
    """A text as Go's %q shows it."""
    from longshore.api.validation.errors import quote

    return quote(text)


def parse_patch(body: bytes, media: str) -> Any:
    """The decoded patch; 400 or 413 when it is none of its type."""
    try:
        parsed = decoding.parse_json(body, duplicates=False).value
    except ValueError as error:
        raise bad_request(f"error decoding patch: {error}" if media != STRATEGIC else str(error)) from None
    if media == JSON_PATCH:
        if not isinstance(parsed, list):
            raise bad_request(
                f"error decoding patch: json: cannot unmarshal {json_kind(parsed)} into Go value of type []handlers.jsonPatchOp"
            )
        for item in parsed:
            if not isinstance(item, dict | None):
                raise bad_request(
                    f"error decoding patch: json: cannot unmarshal {json_kind(item)} into Go value of type handlers.jsonPatchOp"
                )
        if len(parsed) > jsonpatch.MAX_OPERATIONS:
            raise request_entity_too_large(
                f"The allowed maximum operations in a JSON patch is {jsonpatch.MAX_OPERATIONS}, got {len(parsed)}"
            )
    elif not isinstance(parsed, dict):
        if media == MERGE_PATCH and parsed is None:
            raise bad_request("Invalid JSON Patch")
        told = f"json: cannot unmarshal {json_kind(parsed)} into Go value of type map[string]interface {{}}"
        raise bad_request(told if media == STRATEGIC else f"error decoding patch: {told}")
    return parsed


def patched(endpoint: Any, live: Object, patch: Any, media: str, node: Any) -> tuple[Object, Callable[[], str]]:
    """The live tree with the patch applied, and what makes the text by which messages show what came out."""
    if media == JSON_PATCH:
        try:
            out = jsonpatch.apply(copy_tree(live), patch)
        except jsonpatch.PatchFailed:
            raise StatusError(
                422, "Invalid", "the server rejected our request due to an error in our request", {}
            ) from None
        if not isinstance(out, dict):
            raise StatusError(422, "Invalid", "the server rejected our request due to an error in our request", {})
        return out, lambda: _shown(out, live)
    if media == MERGE_PATCH:
        merged = mergepatch.apply(live, patch)
        return merged, lambda: _shown(merged, live)
    try:
        return strategic.apply(node, live, patch), lambda: strategic.go_text(patch)
    except strategic.PatchRefused as error:
        raise StatusError(500, "", str(error)) from None


def _shown(out: Object, live: Object) -> str:
    """What came out of a patch, in Go's order: what was left alone as it was, what was touched by its keys."""

    def ordered(new: Any, old: Any) -> Any:
        if new == old or not isinstance(new, dict):
            return new
        before = old if isinstance(old, dict) else {}
        return {key: ordered(new[key], before.get(key)) for key in sorted(new)}

    return orjson.dumps(ordered({k: out[k] for k in sorted(out)}, live)).decode()


def _sets_version(patch: Any) -> bool:
    return isinstance(patch, dict) and "resourceVersion" in (patch.get("metadata") or {})


def admit_patched(
    endpoint: Any, value: Object, validation: str, before: Object, share: bool
) -> tuple[Object, list[str]]:
    """A patched tree as an object of the kind, with the warnings about unknown fields. BodyError, DecodeError.

    before: what was patched: parts of it that the patch has left alone are known to be good, and are not decoded again.
    share: those parts may stay one with the live object (its status is written, nothing else).
    """
    given = (value.get("apiVersion") or endpoint.api_version, value.get("kind") or endpoint.kind)
    if given != (endpoint.api_version, endpoint.kind):
        decoding.admit(endpoint.resource, endpoint.version, value, [], validation)
    unknown: list[str] | None = None if validation == "Ignore" else []
    same: Object = (
        {} if endpoint.custom else {k: v for k, v in value.items() if v.__class__ is dict and v is before.get(k)}
    )
    if same:
        changed = {k: v for k, v in value.items() if k not in same}
        decoded = endpoint.resource.decode(changed, endpoint.version, unknown)
        for key, part in same.items():
            same[key] = dict(part) if key == "metadata" else part if share else copy_tree(part)
        # In the order that there was: it is the order in which the object is stored.
        obj: Object = {k: same[k] if k in same else decoded[k] for k in value if k in same or k in decoded}
        obj.update({k: v for k, v in decoded.items() if k not in obj})
    else:
        obj = endpoint.resource.decode(value, endpoint.version, unknown)
    obj["apiVersion"], obj["kind"] = endpoint.api_version, endpoint.kind
    warnings = [f'unknown field "{path}"' for path in unknown or ()]
    if warnings and validation == "Strict":
        raise BodyError("strict decoding error: " + ", ".join(warnings))
    return obj, warnings if validation == "Warn" else []
