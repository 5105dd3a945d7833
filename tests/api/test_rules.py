"""Rules that upstream's server was seen to keep: what is refused and in which words, what is warned about, what comes of defaults."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from longshore.api import decoding
from longshore.api.core.podspec import is_reference, pull_policy
from longshore.api.gotypes import dump
from longshore.api.kinds import BY_KIND
from longshore.api.schema import DecodeError

POD: dict[str, Any] = {
    "metadata": {"name": "p", "namespace": "default", "uid": "u"},
    "spec": {"containers": [{"name": "c", "image": "x"}]},
}


def made(group: str, kind: str, obj: dict[str, Any]) -> tuple[list[str], list[str], dict[str, Any]]:
    """Messages and warnings about a new object, and the object."""
    resource = BY_KIND[group, kind]
    decoded = resource.decode(copy.deepcopy(obj), "v1" if kind != "HorizontalPodAutoscaler" else "v2")
    decoded["metadata"].setdefault("uid", "u")
    resource.default(decoded, resource.storage_version)
    resource.prepare_create(decoded)
    errors = [e.message() for e in resource.validate(decoded)]
    return errors, [] if errors else resource.warnings(decoded), decoded


def pod(**spec: Any) -> tuple[list[str], list[str], dict[str, Any]]:
    return made("", "Pod", {**POD, "spec": {**POD["spec"], **spec}})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            {"spec": {"volumes": [{"name": "v", "configMap": {"name": 5}}]}},
            "number into Go struct field ConfigMapVolumeSource.spec.volumes.VolumeSource.configMap.LocalObjectReference.name of type string",
        ),
        (
            {"spec": {"containers": [{"livenessProbe": {"httpGet": {"port": 1 << 40}}}]}},
            "number 1099511627776 into Go struct field HTTPGetAction.spec.containers.livenessProbe.ProbeHandler.httpGet.port of type int32",
        ),
        (
            {"spec": {"containers": [{"securityContext": {"capabilities": {"add": "x"}}}]}},
            "string into Go struct field Capabilities.spec.containers.securityContext.capabilities.add of type []v1.Capability",
        ),
        (
            {"metadata": {"deletionTimestamp": 5}},
            "number into Go struct field ObjectMeta.metadata.deletionTimestamp of type string",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        BY_KIND["", "Pod"].decode(value, "v1")
    assert str(caught.value) == "json: cannot unmarshal " + words


def test_a_type_that_decodes_itself_gives_up_before_the_first_mismatch_is_told() -> None:
    value = {"metadata": {"name": 5}, "spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}
    with pytest.raises(DecodeError, match="quantities must match"):
        BY_KIND["", "Pod"].decode(value, "v1")


def test_an_empty_list_that_is_always_shown_becomes_null_as_in_the_store() -> None:
    assert BY_KIND["rbac.authorization.k8s.io", "Role"].decode({"rules": []}, "v1")["rules"] is None


def test_half_a_surrogate_pair_is_replaced() -> None:
    assert decoding.parse_json(b'{"a":"x\\ud800"}', duplicates=True).value == {"a": "x\ufffd"}


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("x", "Always"), ("x:1", "IfNotPresent"), ("-1", "IfNotPresent"), ("../x", "IfNotPresent"),
        ("1Gi", "IfNotPresent"), ("a" * 300, "IfNotPresent"), ("host.io:5000/a/b", "Always"), ("localhost/a", "Always"),
    ],
)  # fmt: skip
def test_what_is_no_image_reference_has_no_latest_tag(image: str, policy: str) -> None:
    assert pull_policy(image) == policy
    assert is_reference("Host/a") and not is_reference("Upper")


def test_names_that_pods_refer_to_must_be_names() -> None:
    source = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "Bad", "key": "../k"}}}]
    errors, _, _ = pod(
        containers=[{"name": "c", "image": "x", "env": source, "envFrom": [{"secretRef": {"name": "B"}}]}]
    )
    assert [e.split(":")[0] for e in errors] == [
        "spec.containers[0].env[0].valueFrom.configMapKeyRef.name",
        "spec.containers[0].env[0].valueFrom.configMapKeyRef.key",
        "spec.containers[0].env[0].valueFrom.configMapKeyRef.key",
        "spec.containers[0].envFrom[0].secretRef.name",
    ]


def test_a_claim_of_an_ephemeral_volume_is_named_after_the_pod_whatever_is_known_of_the_spec() -> None:
    claim = {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
    spec = {
        "containers": POD["spec"]["containers"],
        "volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": claim}}],
    }
    assert pod(**spec)[0] == []
    long = {**POD, "metadata": {**POD["metadata"], "name": "a" * 253}, "spec": spec}
    assert any('PVC name "aaa' in e for e in made("", "Pod", long)[0])


def test_divisors_are_those_of_the_resource_and_unknown_resources_have_none() -> None:
    def env(resource: str, divisor: str) -> list[str]:
        reference = {"resource": resource, "divisor": divisor}
        variable = {"name": "A", "valueFrom": {"resourceFieldRef": reference}}
        return pod(containers=[{"name": "c", "image": "x", "env": [variable]}])[0]

    assert env("limits.cpu", "1m") == []
    assert 'Invalid value: "limits.cpu": only divisor' in env("limits.cpu", "1Gi")[0]
    assert len(env("nope", "1m")) == 1


def test_warnings_about_ports_of_several_containers_and_overlapping_files() -> None:
    ports = [{"containerPort": 80, "hostIP": "1.2.3.4"}]
    containers = [{"name": n, "image": "x", "ports": ports} for n in ("a", "b")]
    items = [{"key": "k", "path": "p"}, {"key": "l", "path": "p/q"}]
    _, warnings, _ = pod(containers=containers, volumes=[{"name": "v", "configMap": {"name": "m", "items": items}}])
    shown = "{Name: HostPort:0 ContainerPort:80 Protocol:TCP HostIP:1.2.3.4}"
    assert warnings == [
        'volume "v" (ConfigMap "m"): overlapping paths: "p/q" with "p"',
        f"spec.containers[0].ports[0]: hostIP set without hostPort: {shown}",
        f"spec.containers[1].ports[0]: hostIP set without hostPort: {shown}",
        "spec.containers[1].ports[0]: duplicate port definition with spec.containers[0].ports[0]",
    ]


def workload(kind: str, **spec: Any) -> list[str]:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    base = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    meta = {"name": spec.pop("name", "w"), "namespace": "default"}
    return made("apps", kind, {"metadata": meta, "spec": {**base, **spec}})[0]


def test_a_selector_that_cannot_select_is_said_to_be_one_and_the_template_is_left_alone() -> None:
    bad = {"matchExpressions": [{"values": ["b"], "key": "a"}]}
    errors = workload("Deployment", selector=bad, template={"spec": {}})
    assert errors == [
        'spec.selector.matchExpressions[0].operator: Invalid value: "": not a valid selector operator',
        'spec.selector: Invalid value: {"matchExpressions":[{"key":"a","operator":"","values":["b"]}]}: invalid label selector',
    ]


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "Deployment", "ReplicaSet"])
def test_templates_of_workloads_are_judged(kind: str) -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}
    assert workload(kind, template=template) == ["spec.template.spec.containers: Required value"]


def test_a_stateful_set_mounts_its_claims_and_is_named_like_a_host() -> None:
    container = {"name": "c", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/d"}]}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}}
    claim = {
        "metadata": {"name": "v"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    assert workload("StatefulSet", template=template, volumeClaimTemplates=[claim]) == []
    assert workload("StatefulSet", template=template) == [
        'spec.template.spec.containers[0].volumeMounts[0].name: Not found: "v"'
    ]
    assert workload("StatefulSet", name="a.b") == ['metadata.name: Invalid value: "a.b": must not contain dots']


def test_a_job_without_a_name_is_refused_and_one_whose_pods_no_host_can_be_as_well() -> None:
    template = {"spec": {"containers": [{"name": "c", "image": "x"}], "restartPolicy": "Never"}}
    spec = {"completionMode": "Indexed", "completions": 3, "template": template}
    assert made("batch", "Job", {"metadata": {"namespace": "d", "uid": "u"}, "spec": spec})[0] == [
        "metadata.name: Required value: name or generateName is required",
        'metadata.name: Invalid value: "": will not able to create pod with invalid DNS label: -2',
    ]


def test_finalizers_without_a_domain_must_be_known_ones() -> None:
    meta = {"name": "m", "namespace": "d", "finalizers": ["orphan", "mine"]}
    assert made("", "ConfigMap", {"metadata": meta})[0] == [
        'metadata.finalizers[1]: Invalid value: "mine": name is neither a standard finalizer name nor is it fully qualified'
    ]


def test_a_budget_may_have_any_name_that_a_path_may() -> None:
    assert made("policy", "PodDisruptionBudget", {"metadata": {"name": "Bad_Value!", "namespace": "d"}})[0] == []
    assert made("policy", "PodDisruptionBudget", {"metadata": {"name": "a/b", "namespace": "d"}})[0] == [
        "metadata.name: Invalid value: \"a/b\": may not contain '/'"
    ]


def test_both_directions_of_scaling_get_their_rules() -> None:
    spec = {"maxReplicas": 3, "scaleTargetRef": {"kind": "D", "name": "d", "apiVersion": "apps/v1"}, "behavior": {}}
    errors, _, obj = made(
        "autoscaling", "HorizontalPodAutoscaler", {"metadata": {"name": "h", "namespace": "d"}, "spec": spec}
    )
    assert errors == []
    assert [len(obj["spec"]["behavior"][way]["policies"]) for way in ("scaleUp", "scaleDown")] == [2, 1]


def test_a_claim_template_is_dumped_with_its_metadata_within() -> None:
    shown = dump("io.k8s.api.core.v1.PersistentVolumeClaimTemplate", {"metadata": {"labels": {"a": "b"}}, "spec": {}})
    assert list(shown) == ["labels", "Spec"]
