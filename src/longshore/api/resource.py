"""resource.k8s.io: DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api import cel
from longshore.api.cel.values import parse_semver
from longshore.api.core.volume_validation import csi_driver
from longshore.api.gotypes import dump
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import c_identifier, dns1123_label, dns1123_subdomain, label_value, qualified_name
from longshore.api.validation.quantities import is_extended as is_extended_resource

_RESOURCE = "io.k8s.api.resource.v1."
_MODES = ("All", "ExactCount")
_DEVICE = {"device": "dyn"}
_EFFECTS = ("NoExecute", "NoSchedule", "None")


def _default_request(request: Object) -> None:
    request.setdefault("allocationMode", "ExactCount")
    if request["allocationMode"] == "ExactCount" and not request.get("count"):
        request["count"] = 1
    for toleration in request.get("tolerations") or ():
        toleration.setdefault("operator", "Equal")


def default_claim_spec(spec: Object) -> None:
    """A claim's spec."""
    for request in (spec.get("devices") or {}).get("requests") or ():
        if request.get("exactly") is not None:
            _default_request(request["exactly"])
        for option in request.get("firstAvailable") or ():
            _default_request(option)


def _selectors(errors: Errors, selectors: list[Object], path: str) -> None:
    if len(selectors) > 32:
        errors.too_many(path, len(selectors), 32)
    for index, selector in enumerate(selectors):
        here = f"{path}[{index}].cel"
        expression = selector.get("cel")
        if expression is None:
            errors.required(here)
            continue
        text = expression.get("expression", "")
        if len(text) > 10 * 1024:
            errors.too_long(f"{here}.expression", 10 * 1024)
        else:
            try:
                program = cel.compile(text, _DEVICE)
            except cel.CompileError as error:
                errors.invalid(f"{here}.expression", text, str(error))
            else:
                if program.type not in ("bool", "dyn"):
                    wrong = f"must evaluate to bool or the unknown type, not {program.type}"
                    errors.invalid(f"{here}.expression", text, wrong)


def _label(errors: Errors, name: str, path: str) -> None:
    for message in dns1123_label(name):
        errors.invalid(path, name, message)


def _subdomain(errors: Errors, name: str, path: str) -> None:
    if not name:
        errors.required(path)
        return
    for message in dns1123_subdomain(name):
        errors.invalid(path, name, message)


def _tolerations(errors: Errors, tolerations: list[Object], path: str) -> None:
    for index, one in enumerate(tolerations):
        for message in qualified_name(one["key"]) if one.get("key") else ():
            errors.invalid(f"{path}[{index}].key", one["key"], message)
        operator, value = one.get("operator") or "", one.get("value") or ""
        if operator == "Exists":
            if value:
                errors.invalid(f"{path}[{index}].value", value, "must be empty for operator `Exists`")
        elif operator == "Equal":
            for message in label_value(value):
                errors.invalid(f"{path}[{index}].value", value, message)
        elif not operator:
            errors.required(f"{path}[{index}].operator")
        else:
            errors.unsupported(f"{path}[{index}].operator", operator, ("Equal", "Exists"))
        effect = one.get("effect") or ""
        if effect and effect not in _EFFECTS:
            errors.unsupported(f"{path}[{index}].effect", effect, _EFFECTS)


def _wanted(errors: Errors, names: list[str], known: set[str], path: str) -> None:
    """The requests that a constraint or a configuration is for."""
    for at, name in enumerate(names):
        here = f"{path}[{at}]"
        if name in names[:at]:
            errors.duplicate(here, name)
            continue
        for part in name.split("/"):
            _label(errors, part, here)
        if name not in known:
            errors.invalid(
                here,
                name,
                "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
            )


def _request(errors: Errors, request: Object, path: str) -> None:
    _subdomain(errors, request.get("deviceClassName", ""), f"{path}.deviceClassName")
    _selectors(errors, request.get("selectors") or [], f"{path}.selectors")
    mode, count = request.get("allocationMode"), request.get("count", 0)
    if mode == "ExactCount":
        if count <= 0:
            errors.invalid(f"{path}.count", count, "must be greater than zero")
    elif mode == "All":
        if count:
            errors.invalid(f"{path}.count", count, "must not be specified when allocationMode is 'All'")
    else:
        errors.unsupported(f"{path}.allocationMode", mode or "", _MODES)
    _tolerations(errors, request.get("tolerations") or [], f"{path}.tolerations")


def claim_spec(errors: Errors, spec: Object, path: str) -> None:
    """A claim's spec, in a claim or in a template."""
    devices = spec.get("devices") or {}
    requests = devices.get("requests") or []
    if len(requests) > 32:
        errors.too_many(f"{path}.devices.requests", len(requests), 32)
    names: set[str] = set()
    known: set[str] = set()
    for index, request in enumerate(requests):
        here = f"{path}.devices.requests[{index}]"
        name = request.get("name", "")
        known.add(name)
        if name and name in names:
            errors.duplicate(here, name)
        else:
            _label(errors, name, f"{here}.name")
            exactly, options = request.get("exactly"), request.get("firstAvailable") or []
            if (exactly is None) == (not options):
                errors.required(here, "exactly one of `exactly` or `firstAvailable` is required")
            elif exactly is not None:
                _request(errors, exactly, f"{here}.exactly")
            else:
                _options(errors, options, here, name, known)
        names.add(name)
    for index, constraint in enumerate(devices.get("constraints") or ()):
        here = f"{path}.devices.constraints[{index}]"
        _wanted(errors, constraint.get("requests") or [], known, f"{here}.requests")
        match, distinct = constraint.get("matchAttribute"), constraint.get("distinctAttribute")
        if (match is None) == (distinct is None):
            errors.required(
                here, 'exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set'
            )
        elif match is not None:
            _qualified(errors, match, f"{here}.matchAttribute", domain=True)
    for index, config in enumerate(devices.get("config") or ()):
        here = f"{path}.devices.config[{index}]"
        _wanted(errors, config.get("requests") or [], known, f"{here}.requests")
        _opaque(errors, config, here)


def _options(errors: Errors, options: list[Object], here: str, name: str, known: set[str]) -> None:
    if len(options) > 8:
        errors.too_many(f"{here}.firstAvailable", len(options), 8)
    seen: set[str] = set()
    for at, option in enumerate(options):
        place = f"{here}.firstAvailable[{at}]"
        sub = option.get("name", "")
        _label(errors, sub, f"{place}.name")
        if sub in seen:
            errors.duplicate(place, sub)
        seen.add(sub)
        known.add(f"{name}/{sub}")
        _request(errors, option, place)


def _opaque(errors: Errors, config: Object, path: str) -> None:
    opaque = config.get("opaque")
    if opaque is None:
        errors.required(f"{path}.opaque")
        return
    csi_driver(errors, opaque.get("driver", ""), f"{path}.opaque.driver")
    if opaque.get("parameters") is None:
        errors.required(f"{path}.opaque.parameters")


def _qualified(errors: Errors, name: str, path: str, *, domain: bool = False) -> None:
    parts = name.split("/")
    if len(parts) == 1:
        _identifier(errors, parts[0], path)
    elif len(parts) == 2:
        if parts[0]:
            csi_driver(errors, parts[0], path)
        else:
            errors.invalid(path, "", "the domain must not be empty")
        if parts[1]:
            _identifier(errors, parts[1], path)
        else:
            errors.invalid(path, "", "the name must not be empty")
    # More than one slash is let through, as upstream lets it through.
    if domain and len(parts) == 1:
        errors.invalid(path, name, "a fully qualified name must be a domain and a name separated by a slash")


def _identifier(errors: Errors, name: str, path: str) -> None:
    if len(name) > 32:
        errors.too_long(path, 32)
    for message in c_identifier(name):
        errors.invalid(path, name, message)


class DeviceClass(Strategy):
    """A sort of device."""

    generation = True

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        _selectors(errors, spec.get("selectors") or [], "spec.selectors")
        for index, config in enumerate(spec.get("config") or ()):
            _opaque(errors, config, f"spec.config[{index}]")
        extended = spec.get("extendedResourceName")
        if extended is not None and not is_extended_resource(extended):
            errors.invalid("spec.extendedResourceName", extended, "must be a valid extended resource name")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], age_of(obj, now)]


class ResourceClaim(Strategy):
    """Devices that are asked for."""

    def default(self, obj: Object) -> None:
        default_claim_spec(obj["spec"])

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        claim_spec(errors, obj["spec"], "spec")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        if new["spec"] != old["spec"]:
            errors.invalid("spec", dump(_RESOURCE + "ResourceClaimSpec", new["spec"]), metadata.IMMUTABLE)

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        status, before = new["status"], old.get("status") or {}
        reserved = status.get("reservedFor") or []
        if len(reserved) > 256:
            errors.too_many("status.reservedFor", len(reserved), 256)
        uids: set[str] = set()
        for index, consumer in enumerate(reserved):
            here = f"status.reservedFor[{index}]"
            for key in ("resource", "name", "uid"):
                if not consumer.get(key):
                    errors.required(f"{here}.{key}")
            if consumer.get("uid") in uids:
                errors.duplicate(f"{here}.uid", consumer["uid"])
            uids.add(consumer.get("uid", ""))
        if reserved and status.get("allocation") is None:
            errors.forbidden("status.reservedFor", "may not be specified when `allocated` is not set")
        if (
            before.get("allocation") is not None
            and status.get("allocation") is not None
            and status["allocation"] != before["allocation"]
        ):
            errors.invalid("status.allocation", status["allocation"], metadata.IMMUTABLE)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        status = obj.get("status") or {}
        states = []
        if obj["metadata"].get("deletionTimestamp"):
            states.append("deleted")
        if status.get("allocation") is None:
            if not obj["metadata"].get("deletionTimestamp"):
                states.append("pending")
        else:
            states.append("allocated")
            if status.get("reservedFor"):
                states.append("reserved")
        return [obj["metadata"]["name"], ",".join(states), age_of(obj, now)]


class ResourceClaimTemplate(Strategy):
    """A claim for each pod."""

    def default(self, obj: Object) -> None:
        default_claim_spec(obj["spec"]["spec"])

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        meta = obj["spec"].get("metadata") or {}
        metadata.labels(errors, meta.get("labels") or {}, "spec.metadata.labels")
        metadata.annotation_map(errors, meta.get("annotations") or {}, "spec.metadata.annotations")
        claim_spec(errors, obj["spec"]["spec"], "spec.spec")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        if new["spec"] != old["spec"]:
            errors.invalid("spec", dump(_RESOURCE + "ResourceClaimTemplateSpec", new["spec"]), metadata.IMMUTABLE)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], age_of(obj, now)]


class ResourceSlice(Strategy):
    """Devices that a driver offers."""

    def prepare_create(self, obj: Object) -> None:
        obj["metadata"]["generation"] = 1

    generation = True

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        csi_driver(errors, spec.get("driver", ""), "spec.driver")
        pool = spec.get("pool") or {}
        name = pool.get("name", "")
        if not name:
            errors.required("spec.pool.name")
        else:
            if len(name) > 253:
                errors.too_long("spec.pool.name", 253)
            for part in name.split("/"):
                for message in dns1123_subdomain(part):
                    errors.invalid("spec.pool.name", part, message)
        if pool.get("resourceSliceCount", 0) <= 0:
            errors.invalid(
                "spec.pool.resourceSliceCount", pool.get("resourceSliceCount", 0), "must be greater than zero"
            )
        if pool.get("generation", 0) < 0:
            errors.invalid("spec.pool.generation", pool["generation"], "must be greater than or equal to zero")
        given = [k for k in ("nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection") if spec.get(k)]
        choices = "`nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection`"
        if not given:
            errors.required("spec", f"exactly one of {choices} is required")
        elif len(given) > 1:
            errors.invalid(
                "spec",
                "{" + ", ".join(f"`{g}`" for g in given) + "}",
                f"exactly one of {choices} is required, but multiple fields are set",
            )
        node = spec.get("nodeName")
        if node == "":
            errors.invalid("spec.nodeName", node, "must be either unset or set to a non-empty string")
        for message in dns1123_subdomain(node) if node else ():
            errors.invalid("spec.nodeName", node, message)
        devices = spec.get("devices") or []
        if len(devices) > 128:
            errors.too_many("spec.devices", len(devices), 128)
        seen: set[str] = set()
        for index, device in enumerate(devices):
            here = f"spec.devices[{index}]"
            _label(errors, device.get("name", ""), f"{here}.name")
            if device.get("name", "") in seen:
                errors.duplicate(here, device.get("name", ""))
            seen.add(device.get("name", ""))
            self._attributes(errors, device.get("attributes") or {}, f"{here}.attributes")

    @staticmethod
    def _attributes(errors: Errors, attributes: dict[str, Object], path: str) -> None:
        for name in sorted(attributes):
            value = attributes[name]
            _qualified(errors, name, f"{path}[{name}]")
            given = [
                k
                for k in ("int", "bool", "string", "version", "ints", "bools", "strings", "versions")
                if value.get(k) is not None
            ]
            if not given:
                errors.invalid(f"{path}[{name}]", "", "exactly one value must be specified")
            elif len(given) > 1:
                shown = {
                    go: value.get(key)
                    for go, key in (
                        ("IntValue", "int"),
                        ("BoolValue", "bool"),
                        ("StringValue", "string"),
                        ("VersionValue", "version"),
                        ("IntValues", "ints"),
                        ("BoolValues", "bools"),
                        ("StringValues", "strings"),
                        ("VersionValues", "versions"),
                    )
                }
                errors.invalid(f"{path}[{name}]", shown, "exactly one value must be specified")
            elif given == ["string"] and len(value["string"]) > 64:
                errors.too_long(f"{path}[{name}].string", 64)
            elif given == ["version"] and parse_semver(value["version"]) is None:
                text = value["version"]
                errors.invalid(
                    f"{path}[{name}].version", text, "must be a string compatible with semver.org spec 2.0.0"
                )

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors)
        for path, one, other in (
            ("spec.driver", new["spec"].get("driver"), old["spec"].get("driver")),
            (
                "spec.pool.name",
                (new["spec"].get("pool") or {}).get("name"),
                (old["spec"].get("pool") or {}).get("name"),
            ),
            ("spec.nodeName", new["spec"].get("nodeName"), old["spec"].get("nodeName")),
        ):
            if one != other:
                errors.invalid(path, one, metadata.IMMUTABLE)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj["spec"]
        return [
            obj["metadata"]["name"],
            spec.get("nodeName") or "<unset>",
            spec.get("driver", ""),
            (spec.get("pool") or {}).get("name", ""),
            age_of(obj, now),
        ]

    def selectable(self, obj: Object) -> dict[str, str]:
        return {"spec.nodeName": obj["spec"].get("nodeName", ""), "spec.driver": obj["spec"].get("driver", "")}


STRATEGIES = {
    "DeviceClass": DeviceClass,
    "ResourceClaim": ResourceClaim,
    "ResourceClaimTemplate": ResourceClaimTemplate,
    "ResourceSlice": ResourceSlice,
}
