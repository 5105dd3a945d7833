"""Checks of CustomResourceDefinitions (apiextensions-apiserver pkg/apis/apiextensions/validation and pkg/apiserver/schema)."""

from __future__ import annotations

from typing import Any

from longshore.api.crd import schema_rules, structural
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1035_label, dns1123_label, dns1123_subdomain

Object = dict[str, Any]
_VERSION_FIELDS = (
    ("Name", "name", ""),
    ("Served", "served", False),
    ("Storage", "storage", False),
    ("Deprecated", "deprecated", False),
    ("DeprecationWarning", "deprecationWarning", None),
)
_COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
_COLUMN_FORMATS = ("byte", "date", "date-time", "double", "float", "int32", "int64", "password")


def shared(spec: Object, key: str) -> bool:
    """Whether all versions have the same value, which upstream then keeps once for all (and names by another path)."""
    values = [v.get(key) for v in spec.get("versions") or ()]
    return bool(values) and all(v == values[0] for v in values)


def _dump_versions(spec: Object) -> list[Object]:
    rest = (
        ("Schema", "schema"),
        ("Subresources", "subresources"),
        ("AdditionalPrinterColumns", "additionalPrinterColumns"),
        ("SelectableFields", "selectableFields"),
    )
    out = []
    for version in spec.get("versions") or ():
        shown: Object = {go: version.get(name, zero) for go, name, zero in _VERSION_FIELDS}
        for go, name in rest:
            shown[go] = None if shared(spec, name) else version.get(name)
        out.append(shown)
    return out


def validate(obj: Object, errors: Errors, old: Object | None = None) -> None:
    """A definition, metadata excepted."""
    spec = obj["spec"]
    name, want = obj["metadata"].get("name", ""), f"{spec['names'].get('plural', '')}.{spec.get('group', '')}"
    if name and name != want and old is None:
        errors.invalid("metadata.name", name, 'must be spec.names.plural+"."+spec.group')
    _spec(spec, errors, old)
    _stored(obj, errors)


def _spec(spec: Object, errors: Errors, old: Object | None) -> None:
    group = spec.get("group", "")
    if not group:
        errors.required("spec.group")
    else:
        problems = dns1123_subdomain(group)
        if problems:
            errors.invalid("spec.group", group, ",".join(problems))
        if not problems and "." not in group:
            errors.invalid("spec.group", group, "should be a domain with at least one dot")
    scope = spec.get("scope", "")
    if not scope:
        errors.required("spec.scope")
    elif scope not in ("Cluster", "Namespaced"):
        errors.unsupported("spec.scope", scope, ("Cluster", "Namespaced"))
    if spec.get("preserveUnknownFields") and any(
        structural.Node((v.get("schema") or {}).get("openAPIV3Schema") or {}).has_defaults
        for v in spec.get("versions") or ()
    ):
        errors.invalid("spec.preserveUnknownFields", True, "must be false in order to use defaults in the schema")
    if spec.get("preserveUnknownFields") and (old is None or not old["spec"].get("preserveUnknownFields")):
        errors.invalid(
            "spec.preserveUnknownFields",
            True,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        )
    versions = spec.get("versions") or []
    for index, version in enumerate(versions):
        if ((version.get("schema") or {}).get("openAPIV3Schema")) is None:
            errors.required(f"spec.versions[{index}].schema.openAPIV3Schema")
    for index, version in enumerate(versions):
        path = f"spec.versions[{index}]"
        name = version.get("name", "")
        problems = dns1035_label(name)
        if problems:
            errors.invalid(f"{path}.name", name, ",".join(problems))
        if version.get("deprecationWarning") is not None:
            for message in _bad_warning(version["deprecationWarning"], bool(version.get("deprecated"))):
                errors.invalid(f"{path}.deprecationWarning", version["deprecationWarning"], message)
    names = [v.get("name") for v in versions]
    if len(set(names)) != len(names):
        errors.invalid("spec.versions", _dump_versions(spec), "must contain unique version names")
    storage = [v for v in versions if v.get("storage")]
    if len(storage) != 1:
        errors.invalid(
            "spec.versions", _dump_versions(spec) or None, "must have exactly one version marked as storage version"
        )
    first = versions[0].get("name", "") if versions else ""
    problems = dns1035_label(first) if first else []
    if problems:
        # Upstream's internal form has the first version's name once more.
        errors.invalid("spec.version", first, ",".join(problems))
    _names(spec["names"], errors, "spec.names")
    _per_version(spec, errors, versions)
    _conversion(spec.get("conversion"), errors, "spec.conversion")


def _has_status(version: Object) -> bool:
    return (version.get("subresources") or {}).get("status") is not None


def _per_version(spec: Object, errors: Errors, versions: list[Object]) -> None:
    if shared(spec, "schema"):
        schema = (versions[0].get("schema") or {}).get("openAPIV3Schema")
        if schema is not None:
            status = any(map(_has_status, versions))
            schema_rules.validate(schema, errors, "spec.validation.openAPIV3Schema", root=True, status=status)
    else:
        for index, version in enumerate(versions):
            schema = (version.get("schema") or {}).get("openAPIV3Schema")
            if schema is not None:
                path = f"spec.versions[{index}].schema.openAPIV3Schema"
                schema_rules.validate(schema, errors, path, root=True, status=_has_status(version))
    for key, check in (
        ("subresources", _subresources),
        ("additionalPrinterColumns", _columns),
        ("selectableFields", _selectable),
    ):
        if shared(spec, key):
            check(versions[0], errors, f"spec.{key}")
        else:
            for index, version in enumerate(versions):
                check(version, errors, f"spec.versions[{index}].{key}")


def _bad_warning(text: str, deprecated: bool) -> list[str]:
    if not deprecated:
        return ["can only be set for deprecated versions"]
    found = []
    if len(text.encode()) > 256:
        found.append("must be <= 256 characters long")
    if not text:
        found.append("must not be an empty string")
    at = next((len(text[:i].encode()) for i, char in enumerate(text) if not char.isprintable()), None)
    if at is not None:
        found.append(f"must only contain printable UTF-8 characters; non-printable character found at index {at}")
    return found


def _names(names: Object, errors: Errors, path: str) -> None:
    mixed = "may have mixed case, but should otherwise match: "
    for key in ("plural", "singular", "kind", "listKind"):
        if not names.get(key):
            errors.required(f"{path}.{key}")
    for key in ("plural", "singular", "kind", "listKind"):
        text = names.get(key, "")
        problems = dns1035_label(text.lower() if key in ("kind", "listKind") else text) if text else []
        if problems:
            errors.invalid(f"{path}.{key}", text, (mixed if key in ("kind", "listKind") else "") + ",".join(problems))
    for key in ("shortNames", "categories"):
        for index, text in enumerate(names.get(key) or ()):
            problems = dns1035_label(text)
            if problems:
                errors.invalid(f"{path}.{key}[{index}]", text, ",".join(problems))
    if names.get("kind") and names.get("kind") == names.get("listKind"):
        errors.invalid(f"{path}.listKind", names["listKind"], "kind and listKind may not be the same")


def _subresources(version: Object, errors: Errors, path: str) -> None:
    scale = (version.get("subresources") or {}).get("scale")
    if scale is None:
        return
    for key, prefix in (("specReplicasPath", ".spec"), ("statusReplicasPath", ".status"), ("labelSelectorPath", "")):
        text = scale.get(key)
        here = f"{path}.scale.{key}"
        if not text:
            if key != "labelSelectorPath":
                errors.required(here)
            continue
        if not text.startswith("."):
            errors.invalid(here, text, "must be a simple json path starting with .")
            continue
        if prefix and not text.startswith(prefix + "."):
            errors.invalid(here, text, f"should be a json path under {prefix}")
        if not prefix and not text.startswith((".spec.", ".status.")):
            errors.invalid(here, text, "should be a json path under either .spec or .status")


def _columns(version: Object, errors: Errors, path: str) -> None:
    for index, column in enumerate(version.get("additionalPrinterColumns") or ()):
        here = f"{path}[{index}]"
        if not column.get("name"):
            errors.required(f"{here}.name")
        kind = column.get("type", "")
        if not kind:
            errors.required(f"{here}.type", f"must be one of {','.join(_COLUMN_TYPES)}")
        elif kind not in _COLUMN_TYPES:
            errors.invalid(f"{here}.type", kind, f"must be one of {','.join(_COLUMN_TYPES)}")
        form = column.get("format", "")
        if form and form not in _COLUMN_FORMATS:
            errors.invalid(f"{here}.format", form, f"must be one of {','.join(_COLUMN_FORMATS)}")
        text = column.get("jsonPath", "")
        if not text:
            errors.required(f"{here}.JSONPath")
        elif not text.startswith("."):
            errors.invalid(f"{here}.JSONPath", text, "must be a simple json path starting with .")


def _selectable(version: Object, errors: Errors, path: str) -> None:
    fields = version.get("selectableFields") or []
    if fields and (version.get("schema") or {}).get("openAPIV3Schema") is None:
        what = "validations.schema is" if path == "spec.selectableFields" else "`version.schema.openAPIV3Schema` is not"
        errors.invalid(path, "", f"may only be set when {what} included")
        return
    if len(fields) > 8:
        errors.too_many(path, len(fields), 8)
    schema = (version.get("schema") or {}).get("openAPIV3Schema") or {}
    seen: set[str] = set()
    for index, field in enumerate(fields):
        text = field.get("jsonPath", "")
        here = f"{path}[{index}].jsonPath"
        if not text:
            errors.required(here)
            continue
        if text in seen:
            errors.duplicate(here, text)
        seen.add(text)
        if not text.startswith("."):
            errors.invalid(here, text, f"is an invalid path: expected [ or . but got: {text}")
            continue
        node: Any = schema
        for name in text[1:].split("."):
            node = (node or {}).get("properties", {}).get(name)
        if node is None or text.startswith(".metadata"):
            errors.invalid(here, text, "is an invalid path: does not refer to a valid field")
        elif node.get("type") not in ("string", "boolean", "integer"):
            errors.invalid(
                here,
                text,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            )


def _conversion(conversion: Object | None, errors: Errors, path: str) -> None:
    if conversion is None:
        return
    strategy = conversion.get("strategy", "")
    webhook = conversion.get("webhook")
    if not strategy:
        errors.required(f"{path}.strategy")
    elif strategy not in ("None", "Webhook"):
        errors.unsupported(f"{path}.strategy", strategy, ("None", "Webhook"))
    if strategy == "Webhook":
        client = (webhook or {}).get("clientConfig")
        if client is None:
            errors.required(f"{path}.webhookClientConfig", "required when strategy is set to Webhook")
        else:
            from longshore.api.admissionmatching import client_config

            client_config(errors, client, f"{path}.webhookClientConfig")
        review_versions(
            errors,
            (webhook or {}).get("conversionReviewVersions") or [],
            f"{path}.conversionReviewVersions",
            ("v1", "v1beta1"),
        )
    elif webhook is not None:
        if webhook.get("clientConfig") is not None:
            errors.forbidden(f"{path}.webhookClientConfig", "should not be set when strategy is not set to Webhook")
        if webhook.get("conversionReviewVersions"):
            errors.forbidden(
                f"{path}.conversionReviewVersions", "should not be set when strategy is not set to Webhook"
            )


def review_versions(errors: Errors, versions: list[str], path: str, known: tuple[str, ...]) -> None:
    """The review versions that a webhook understands."""
    if not versions:
        errors.required(path)
        return
    accepted = False
    for index, version in enumerate(versions):
        if version in versions[:index]:
            errors.invalid(f"{path}[{index}]", version, "duplicate version")
        for message in dns1035_label(version):
            errors.invalid(f"{path}[{index}]", version, message)
        accepted = accepted or version in known
    if not accepted:
        errors.invalid(path, versions, f"must include at least one of {', '.join(known)}")


def _stored(obj: Object, errors: Errors) -> None:
    spec, stored = obj["spec"], (obj.get("status") or {}).get("storedVersions") or []
    if not stored:
        errors.invalid("status.storedVersions", stored or None, "must have at least one stored version")
    names = [v.get("name") for v in spec.get("versions") or ()]
    storage = ""
    for version in spec.get("versions") or ():
        if version.get("storage"):
            storage = version.get("name", "")
    missing = False
    for index, version in enumerate(stored):
        if version not in names:
            missing = True
            errors.invalid(
                f"status.storedVersions[{index}]",
                version,
                f"missing from spec.versions; {version} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {version} and removes {version} from status.storedVersions",
            )
    if stored and storage and storage not in stored and not missing:
        errors.invalid("status.storedVersions", stored, f"must have the storage version {storage}")


__all__ = ["dns1123_label", "review_versions", "validate"]
