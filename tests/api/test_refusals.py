"""What is refused and in which words, kind by kind: found by putting the same objects to upstream's server (1.36)."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from longshore.api.kinds import BY_KIND
from longshore.api.validation.errors import Errors

LABEL = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'"
SUBDOMAIN = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters"
IMMUTABLE = "field is immutable"

STORAGE_CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "fast"},
    "provisioner": "a.b/c",
    "parameters": {"a": "b"},
    "allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": ["z"]}]}],
}
DRIVER = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "CSIDriver",
    "metadata": {"name": "d.io"},
    "spec": {"tokenRequests": [{"audience": "a"}]},
}
RUNTIME = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "r"}, "handler": "h"}
ATTACHMENT = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "VolumeAttachment",
    "metadata": {"name": "v"},
    "spec": {"attacher": "d.io", "nodeName": "n", "source": {"persistentVolumeName": "p"}},
}
INGRESS_CLASS = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "IngressClass",
    "metadata": {"name": "i"},
    "spec": {"controller": "a.b/c", "parameters": {"kind": "K", "name": "n", "scope": "Cluster"}},
}
ADDRESS = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "IPAddress",
    "metadata": {"name": "10.0.0.1"},
    "spec": {"parentRef": {"resource": "services", "name": "s", "namespace": "n"}},
}
SCHEMA = {
    "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
    "kind": "FlowSchema",
    "metadata": {"name": "f"},
    "spec": {
        "priorityLevelConfiguration": {"name": "l"},
        "rules": [
            {
                "subjects": [{"kind": "ServiceAccount", "serviceAccount": {"name": "s", "namespace": "n"}}],
                "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}],
            }
        ],
    },
}
CLAIM = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "ResourceClaim",
    "metadata": {"name": "c", "namespace": "n"},
    "spec": {
        "devices": {
            "requests": [{"name": "r", "exactly": {"deviceClassName": "d.io"}}],
            "constraints": [{"requests": ["r"], "matchAttribute": "a.b/c"}],
        }
    },
}
CLASS = {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "d.io"}, "spec": {}}
POLICY = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "ValidatingAdmissionPolicy",
    "metadata": {"name": "p"},
    "spec": {
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {
            "resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
            ]
        },
        "validations": [{"expression": "true"}],
    },
}


def changed(obj: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    obj = copy.deepcopy(obj)
    target: Any = obj
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        target = target[part]
    target[last] = value
    return obj


def prepared(obj: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    group, _, version = obj["apiVersion"].rpartition("/")
    resource = BY_KIND[group, obj["kind"]]
    decoded = resource.decode(copy.deepcopy(obj), version)
    resource.default(decoded, version)
    resource.prepare_create(decoded, version)
    return resource, decoded


def told(errors: Errors) -> list[str]:
    return [str(error) for error in errors]


@pytest.mark.parametrize(
    ("obj", "path", "value", "field", "words"),
    [
        (STORAGE_CLASS, "provisioner", "Bad!", "provisioner", 'Invalid value: "bad!": name part must consist of'),
        (STORAGE_CLASS, "provisioner", "a" * 64, "provisioner", "name part must be no more than 63 bytes"),
        (STORAGE_CLASS, "allowedTopologies", [{}], "allowedTopologies[0].matchLabelExpressions", 'Duplicate value: ""'),
        (RUNTIME, "handler", "a" * 64, "handler", "must be no more than 63 characters"),
        (ATTACHMENT, "spec.source.persistentVolumeName", "", "spec.source.persistentVolumeName", SUBDOMAIN),
        (
            DRIVER,
            "spec",
            {"serviceAccountTokenInSecrets": True},
            "spec.serviceAccountTokenInSecrets",
            "no tokenRequests",
        ),
        (INGRESS_CLASS, "spec.controller", "", "spec.controller", "Required value"),
        (INGRESS_CLASS, "spec.controller", "../x", "spec.controller", f'Invalid value: "..": {SUBDOMAIN}'),
        (INGRESS_CLASS, "spec.parameters.apiGroup", "", "spec.parameters.apiGroup", SUBDOMAIN),
        (SCHEMA, "spec.rules.0.subjects.0.serviceAccount.name", "B!", "serviceAccount.name", SUBDOMAIN),
        (SCHEMA, "spec.rules.0.nonResourceRules.0.verbs", [""], "verbs", 'Unsupported value: [""]'),
        (SCHEMA, "spec.rules.0.nonResourceRules.0.nonResourceURLs", [""], "nonResourceURLs[0]", "must not be empty"),
        (CLAIM, "spec.devices.constraints.0.requests", ["r", "r"], "requests[1]", 'Duplicate value: "r"'),
        (CLAIM, "spec.devices.constraints.0.matchAttribute", "a", "matchAttribute", "a fully qualified name must be"),
        (CLASS, "spec", {"config": [{}]}, "spec.config[0].opaque", "Required value"),
        (
            CLASS,
            "spec",
            {"extendedResourceName": "cpu"},
            "extendedResourceName",
            "must be a valid extended resource name",
        ),
        (POLICY, "spec.paramKind.kind", "B!", "spec.paramKind.kind", "may have mixed case, but should otherwise match"),
        (POLICY, "spec.paramKind.apiVersion", "V 1", "spec.paramKind.apiVersion", "a DNS-1035 label must consist of"),
    ],
)
def test_a_wrong_field_is_refused(obj: dict[str, Any], path: str, value: Any, field: str, words: str) -> None:
    resource, good = prepared(obj)
    errors = Errors()
    resource.strategy.validate(good, errors)
    assert told(errors) == []
    resource, wrong = prepared(changed(obj, path, value))
    resource.strategy.validate(wrong, errors)
    assert any(field in line and words in line for line in told(errors)), told(errors)


@pytest.mark.parametrize(
    ("obj", "path", "value", "wanted"),
    [
        (STORAGE_CLASS, "parameters", {"a": "c"}, f'parameters: Invalid value: {{"a":"c"}}: {IMMUTABLE}'),
        (STORAGE_CLASS, "provisioner", "x", f'provisioner: Invalid value: "x": {IMMUTABLE}'),
        (DRIVER, "spec.attachRequired", False, f"spec.attachedRequired: Invalid value: false: {IMMUTABLE}"),
        (RUNTIME, "handler", "", "handler: Required value"),
        (ADDRESS, "spec.parentRef.name", "", "spec.parentRef.name: Required value"),
        (ATTACHMENT, "spec.attacher", "B!", f'spec.attacher: Invalid value: "B!": {SUBDOMAIN}'),
    ],
)
def test_an_update_is_checked_as_a_whole(obj: dict[str, Any], path: str, value: Any, wanted: str) -> None:
    resource, old = prepared(obj)
    _, new = prepared(changed(obj, path, value))
    errors = Errors()
    resource.strategy.validate_update(new, old, errors)
    assert any(line.startswith(f"FieldError({wanted}") for line in told(errors)), told(errors)


def test_a_name_in_a_label_is_measured_in_bytes_and_one_in_a_field_in_characters() -> None:
    from longshore.api.validation import names

    assert names.dns1123_label("a" * 64) == ["must be no more than 63 characters"]
    assert names.label_value("a" * 64) == ["must be no more than 63 bytes"]
    assert names.qualified_name(f"{'a' * 254}/b") == ["prefix part must be no more than 253 bytes"]


def test_a_driver_without_tokens_in_secrets_is_warned_about() -> None:
    resource, driver = prepared(DRIVER)
    assert len(resource.strategy.warnings(driver)) == 1
    assert resource.strategy.warnings(driver, driver) == []
