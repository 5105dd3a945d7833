"""The pytest plugin as its users use it: the kubernetes client against an API server of the test's own."""

import json

import pytest

kubernetes = pytest.importorskip("kubernetes")


def test_a_server_of_ones_own_is_empty_and_real(longshore):
    core = kubernetes.client.CoreV1Api(longshore.client())
    assert {n.metadata.name for n in core.list_namespace().items} >= {"default", "kube-system"}
    core.create_namespaced_config_map("default", {"metadata": {"name": "mine"}, "data": {"k": "v"}})
    with pytest.raises(kubernetes.client.ApiException) as refused:
        core.create_namespaced_pod("default", {"metadata": {"name": "x"}, "spec": {"containers": [{"name": "Bad_"}]}})
    assert refused.value.status == 422
    assert json.loads(refused.value.body)["details"]["causes"][0]["field"] == "spec.containers[0].name"


def test_the_next_test_starts_from_nothing(longshore):
    core = kubernetes.client.CoreV1Api(longshore.client())
    assert "mine" not in {c.metadata.name for c in core.list_namespaced_config_map("default").items}


def test_rights_are_checked(longshore):
    kubeconfig = longshore.kubeconfig_for("jane", ["devs"])
    jane = kubernetes.client.CoreV1Api(kubernetes.config.new_client_from_config(str(kubeconfig)))
    with pytest.raises(kubernetes.client.ApiException) as refused:
        jane.list_namespaced_pod("default")
    assert (
        refused.value.status == 403
        and 'User "jane" cannot list resource "pods"' in json.loads(refused.value.body)["message"]
    )
    rbac = kubernetes.client.RbacAuthorizationV1Api(longshore.client())
    rules = [{"apiGroups": [""], "resources": ["services"], "verbs": ["list"]}]
    rbac.create_namespaced_role("default", {"metadata": {"name": "devs"}, "rules": rules})
    rbac.create_namespaced_role_binding(
        "default",
        {
            "metadata": {"name": "devs"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "devs"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "devs"}],
        },
    )
    assert jane.list_namespaced_service("default").items


def test_rights_hold_as_soon_as_they_are_given(longshore):
    rbac = kubernetes.client.RbacAuthorizationV1Api(longshore.client())
    for number in range(30):
        name = f"user{number}"
        kubeconfig = longshore.kubeconfig_for(name, [])
        user = kubernetes.client.CoreV1Api(kubernetes.config.new_client_from_config(str(kubeconfig)))
        rbac.create_namespaced_role_binding(
            "default",
            {
                "metadata": {"name": name},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": "system:aggregate-to-view",
                },
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}],
            },
        )
        assert user.list_namespaced_service("default").items


def test_custom_resources_and_watches(longshore):
    api = longshore.client()
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}}
    kubernetes.client.ApiextensionsV1Api(api).create_custom_resource_definition(
        {
            "metadata": {"name": "boats.example.org"},
            "spec": {
                "group": "example.org",
                "scope": "Namespaced",
                "names": {"plural": "boats", "singular": "boat", "kind": "Boat"},
                "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
            },
        }
    )
    custom = kubernetes.client.CustomObjectsApi(api)
    boat = {"apiVersion": "example.org/v1", "kind": "Boat", "metadata": {"name": "b"}, "spec": {"size": 3, "extra": 1}}
    for _ in range(50):
        try:
            made = custom.create_namespaced_custom_object("example.org", "v1", "default", "boats", boat)
            break
        except kubernetes.client.ApiException as error:
            assert error.status == 404  # the definition is established a moment later
    assert made["spec"] == {"size": 3}, "what the schema does not know is pruned"
    seen = next(
        kubernetes.watch.Watch().stream(custom.list_namespaced_custom_object, "example.org", "v1", "default", "boats")
    )
    assert seen["type"] == "ADDED" and seen["object"]["metadata"]["name"] == "b"


def test_controllers_on_request(longshore):
    longshore.run_controllers(["deployment-controller", "replicaset-controller"])
    api = longshore.client()
    labels = {"app": "web"}
    kubernetes.client.AppsV1Api(api).create_namespaced_deployment(
        "default",
        {
            "metadata": {"name": "web"},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            },
        },
    )
    pods = set()
    stream = kubernetes.watch.Watch().stream(
        kubernetes.client.CoreV1Api(api).list_namespaced_pod, "default", timeout_seconds=20
    )
    for event in stream:
        pods.add(event["object"].metadata.name)
        if len(pods) == 3:
            break
    assert len(pods) == 3


def test_flags_of_upstream(longshore_factory):
    closed = longshore_factory("--anonymous-auth=false")
    core = kubernetes.client.CoreV1Api(closed.client())
    assert core.list_namespace().items
