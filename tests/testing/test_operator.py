"""A kopf operator against the plugin's API server: definitions, finalizers, status, changes, events, owned objects."""

import time
from pathlib import Path

import pytest

kubernetes = pytest.importorskip("kubernetes")
kopf_testing = pytest.importorskip("kopf.testing")

OPERATOR = Path(__file__).with_name("boat_operator.py")
BOATS = ("example.org", "v1", "default", "boats")


def define_boats(api):
    spec = {"type": "object", "required": ["seats"], "properties": {"seats": {"type": "integer", "minimum": 1}}}
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1", "served": True, "storage": True, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": free}}},
    }  # fmt: skip
    names = {"plural": "boats", "singular": "boat", "kind": "Boat"}
    kubernetes.client.ApiextensionsV1Api(api).create_custom_resource_definition(
        {
            "metadata": {"name": "boats.example.org"},
            "spec": {"group": "example.org", "scope": "Namespaced", "names": names, "versions": [version]},
        }
    )


def eventually(look):
    deadline = time.monotonic() + 30
    while True:
        try:
            found = look()
        except kubernetes.client.ApiException as error:
            found, why = None, error
        else:
            why = found
        if found:
            return found
        assert time.monotonic() < deadline, why
        time.sleep(0.05)


def test_an_operator_looks_after_its_objects(longshore, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(longshore.kubeconfig))
    # The kubernetes package has read the variable when it was imported.
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(longshore.kubeconfig))
    longshore.run_controllers(["garbage-collector-controller"])
    api = longshore.client()
    define_boats(api)
    custom, core = kubernetes.client.CustomObjectsApi(api), kubernetes.client.CoreV1Api(api)
    boat = {"apiVersion": "example.org/v1", "kind": "Boat", "metadata": {"name": "ada"}, "spec": {"seats": 2}}
    eventually(lambda: custom.list_namespaced_custom_object(*BOATS))

    def boat_now():
        return custom.get_namespaced_custom_object(*BOATS, "ada")

    with kopf_testing.KopfRunner(["run", "-n", "default", "--standalone", str(OPERATOR)], timeout=60) as runner:
        custom.create_namespaced_custom_object(*BOATS, boat)
        eventually(lambda: boat_now().get("status", {}).get("phase") == "Afloat")
        made = boat_now()
        assert made["status"]["launched"] == {"oars": 4} and made["metadata"]["finalizers"] == [
            "boats.example.org/operator"
        ]
        crate = eventually(lambda: core.read_namespaced_config_map("ada-crate", "default"))
        assert crate.data == {"oars": "4"} and crate.metadata.owner_references[0].uid == made["metadata"]["uid"]
        custom.patch_namespaced_custom_object(*BOATS, "ada", {"spec": {"seats": 5}})
        eventually(lambda: boat_now().get("status", {}).get("refit") == "2 to 5")
        with pytest.raises(kubernetes.client.ApiException) as refused:
            custom.patch_namespaced_custom_object(*BOATS, "ada", {"spec": {"seats": 0}})
        assert refused.value.status == 422
        about = "involvedObject.kind=Boat,involvedObject.name=ada,reason=Launched"
        assert eventually(lambda: core.list_namespaced_event("default", field_selector=about).items)
        custom.delete_namespaced_custom_object(*BOATS, "ada")
        assert eventually(lambda: core.read_namespaced_config_map("ada-wreck", "default"))
        eventually(lambda: not custom.list_namespaced_custom_object(*BOATS)["items"])
        eventually(
            lambda: "ada-crate" not in {c.metadata.name for c in core.list_namespaced_config_map("default").items}
        )
    assert runner.exit_code == 0 and runner.exception is None, runner.output
