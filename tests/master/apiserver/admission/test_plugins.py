from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from longshore.machinery.errors import StatusError
from longshore.master.apiserver.admission import plugins
from longshore.master.apiserver.admission.limits import LimitRanger
from longshore.master.apiserver.admission.namespaces import NamespaceLifecycle
from longshore.master.apiserver.admission.noderestriction import NodeRestriction
from longshore.master.apiserver.admission.pods import DefaultTolerationSeconds, PodTopologyLabels, RuntimeClass
from longshore.master.apiserver.admission.podsecurity import PodSecurity
from longshore.master.apiserver.admission.policies import MutatingAdmissionPolicy, ValidatingAdmissionPolicy
from longshore.master.apiserver.admission.priority import Priority
from longshore.master.apiserver.admission.quota import ResourceQuota
from longshore.master.apiserver.admission.serviceaccount import ServiceAccount
from longshore.master.apiserver.admission.storage import DefaultStorageClass, PersistentVolumeClaimResize
from longshore.master.apiserver.context import UserInfo
from support.admission import Objects, pod, refusal

KUBELET = UserInfo("system:node:n1", groups=("system:nodes", "system:authenticated"))
ARG = "admissionregistration.k8s.io"


def test_order_and_switches() -> None:
    def named(**on: Any) -> list[str]:
        config = SimpleNamespace(**{"enable_admission": (), "disable_admission": (), "admission_config": None, **on})
        return [p.name for p in plugins(config, Objects())]  # type: ignore[arg-type]

    usual = named()
    assert usual[0] == "NamespaceLifecycle" and usual[-1] == "ResourceQuota"
    assert usual.index("MutatingAdmissionWebhook") < usual.index("ValidatingAdmissionPolicy")
    assert "DenyServiceExternalIPs" not in usual
    assert "DenyServiceExternalIPs" in named(enable_admission=("DenyServiceExternalIPs",))
    assert "Priority" not in named(disable_admission=("Priority",))


async def test_nothing_is_created_in_namespaces_that_are_gone_or_going(api: Objects) -> None:
    plugin = NamespaceLifecycle()
    assert await refusal(plugin, api.request("configmaps", {"metadata": {"name": "x"}})) == ""
    missing = await refusal(plugin, api.request("configmaps", {"metadata": {"name": "x"}}, namespace="b"))
    assert missing == 'namespaces "b" not found'
    api.held["", "namespaces", "", "a"]["status"]["phase"] = "Terminating"
    api.held["", "namespaces", "", "a"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    going = await refusal(plugin, api.request("configmaps", {"metadata": {"name": "x"}}))
    assert "because it is being terminated" in going
    kept = api.request("namespaces", None, operation="DELETE", old={"metadata": {"name": "default"}}, namespace="")
    assert "this namespace may not be deleted" in await refusal(plugin, kept)


async def test_pods_get_their_account_and_token(api: Objects) -> None:
    a = api.request("pods", pod(initContainers=[{"name": "i", "image": "i"}]))
    assert await refusal(ServiceAccount(), a) == ""
    spec = (a.object or {})["spec"]
    assert (spec["serviceAccountName"], spec["serviceAccount"]) == ("default", "default")
    volume = spec["volumes"][0]
    assert volume["name"].startswith("kube-api-access-")
    assert volume["projected"]["sources"][0] == {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}
    for container in (*spec["initContainers"], *spec["containers"]):
        assert [m["name"] for m in container["volumeMounts"]] == [volume["name"]]
    a = api.request("pods", pod(automountServiceAccountToken=False))
    assert await refusal(ServiceAccount(), a) == ""
    assert not (a.object or {})["spec"].get("volumes")
    gone = await refusal(ServiceAccount(), api.request("pods", pod(serviceAccountName="x")))
    assert gone == 'pods "p" is forbidden: error looking up service account a/x: serviceaccount "x" not found'


async def test_limit_ranges_fill_and_bound(api: Objects) -> None:
    item = {
        "type": "Container",
        "default": {"cpu": "500m"},
        "defaultRequest": {"cpu": "100m"},
        "max": {"cpu": "1"},
        "min": {"cpu": "50m"},
    }
    api.put("", "limitranges", {"metadata": {"name": "l", "namespace": "a"}, "spec": {"limits": [item]}})
    a = api.request("pods", pod())
    assert await refusal(LimitRanger(), a) == ""
    assert (a.object or {})["spec"]["containers"][0]["resources"] == {
        "limits": {"cpu": "500m"},
        "requests": {"cpu": "100m"},
    }
    assert (a.object or {})["metadata"]["annotations"]["kubernetes.io/limit-ranger"] == (
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    )
    big = pod(containers=[{"name": "c", "image": "i", "resources": {"limits": {"cpu": "2"}}}])
    said = await refusal(LimitRanger(), api.request("pods", big))
    assert said == 'pods "p" is forbidden: maximum cpu usage per Container is 1, but limit is 2'


async def test_quota_is_charged_until_it_is_spent(api: Objects) -> None:
    quota: dict[str, Any] = {
        "metadata": {"name": "q", "namespace": "a"},
        "spec": {"hard": {"pods": "2", "requests.cpu": "1"}},
        "status": {"hard": {"pods": "2", "requests.cpu": "1"}, "used": {"pods": "1", "requests.cpu": "250m"}},
    }
    api.put("", "resourcequotas", quota)
    plugin = ResourceQuota()
    asks = pod(containers=[{"name": "c", "image": "i", "resources": {"requests": {"cpu": "500m"}}}])
    assert await refusal(plugin, api.request("pods", asks, dry_run=True)) == ""
    api.conflicts = 2
    assert await refusal(plugin, api.request("pods", asks)) == ""
    used = (api.get("", "resourcequotas", "a", "q") or {})["status"]["used"]
    assert used == {"pods": "2", "requests.cpu": "750m"}
    said = await refusal(plugin, api.request("pods", asks))
    assert said == (
        'pods "p" is forbidden: exceeded quota: q, requested: pods=1,requests.cpu=500m, used: pods=2,requests.cpu=750m, '
        "limited: pods=2,requests.cpu=1"
    )
    assert "must specify requests.cpu for: c" in await refusal(plugin, api.request("pods", pod()))


@pytest.mark.parametrize(
    ("level", "spec", "what"),
    [
        ("baseline", {"hostNetwork": True}, "host namespaces (hostNetwork=true)"),
        ("baseline", {}, ""),
        ("privileged", {"hostNetwork": True}, ""),
        ("restricted", {}, "allowPrivilegeEscalation != false"),
        (
            "restricted",
            {
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [
                    {
                        "name": "c",
                        "image": "i",
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }
                ],
            },
            "",
        ),
    ],
)
async def test_pod_security(api: Objects, level: str, spec: dict[str, Any], what: str) -> None:
    api.held["", "namespaces", "", "a"]["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": level}
    said = await refusal(PodSecurity(), api.request("pods", pod(**spec)))
    assert (what in said and f'violates PodSecurity "{level}:latest"' in said) if what else said == ""


async def test_pod_security_warns_of_templates(api: Objects) -> None:
    api.held["", "namespaces", "", "a"]["metadata"]["labels"] = {"pod-security.kubernetes.io/warn": "baseline"}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": pod(hostPID=True)["spec"]}
    obj = {"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}}
    a = api.request("deployments", obj, group="apps")
    assert await refusal(PodSecurity(), a) == ""
    assert a.warnings == ['would violate PodSecurity "baseline:latest": host namespaces (hostPID=true)']


async def test_priority(api: Objects) -> None:
    cls = {"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"}
    api.put("scheduling.k8s.io", "priorityclasses", cls)
    a = api.request("pods", pod(priorityClassName="high"))
    assert await refusal(Priority(), a) == ""
    assert ((a.object or {})["spec"]["priority"], (a.object or {})["spec"]["preemptionPolicy"]) == (1000, "Never")
    said = await refusal(Priority(), api.request("pods", pod(priorityClassName="low")))
    assert said == 'pods "p" is forbidden: no PriorityClass with name low was found'
    cls["globalDefault"] = True
    a = api.request("pods", pod())
    await refusal(Priority(), a)
    assert (a.object or {})["spec"]["priorityClassName"] == "high"
    second = api.request(
        "priorityclasses",
        {"metadata": {"name": "x"}, "value": 1, "globalDefault": True},
        group="scheduling.k8s.io",
    )
    assert "is already marked as default" in await refusal(Priority(), second)


async def test_tolerations_and_topology(api: Objects) -> None:
    a = api.request("pods", pod())
    await refusal(DefaultTolerationSeconds(), a)
    keys = [(t["key"], t["tolerationSeconds"]) for t in (a.object or {})["spec"]["tolerations"]]
    assert keys == [("node.kubernetes.io/not-ready", 300), ("node.kubernetes.io/unreachable", 300)]
    labels = {"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r", "other": "o"}
    api.put("", "nodes", {"metadata": {"name": "n1", "labels": labels}})
    binding = {"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}}
    a = api.request("pods", binding, subresource="binding")
    await PodTopologyLabels().admit(a)
    assert (a.object or {})["metadata"]["labels"] == {k: v for k, v in labels.items() if k != "other"}


async def test_runtime_class(api: Objects) -> None:
    said = await refusal(RuntimeClass(), api.request("pods", pod(runtimeClassName="r")))
    assert said == 'pods "p" is forbidden: pod rejected: RuntimeClass "r" not found'
    api.put("node.k8s.io", "runtimeclasses", {"metadata": {"name": "r"}, "overhead": {"podFixed": {"cpu": "10m"}}})
    a = api.request("pods", pod(runtimeClassName="r"))
    assert await refusal(RuntimeClass(), a) == ""
    assert (a.object or {})["spec"]["overhead"] == {"cpu": "10m"}


async def test_storage(api: Objects) -> None:
    claim = {
        "metadata": {"name": "c", "namespace": "a"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    for name, stamp in (("old", "2026-01-01T00:00:00Z"), ("new", "2026-02-01T00:00:00Z")):
        meta = {
            "name": name,
            "creationTimestamp": stamp,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        }
        api.put("storage.k8s.io", "storageclasses", {"metadata": meta})
    a = api.request("persistentvolumeclaims", claim)
    assert await refusal(DefaultStorageClass(), a) == ""
    assert (a.object or {})["spec"]["storageClassName"] == "new"
    old = {**(a.object or {}), "status": {"phase": "Bound"}}
    grown = {**old, "spec": {**old["spec"], "resources": {"requests": {"storage": "2Gi"}}}}
    a = api.request("persistentvolumeclaims", grown, old=old, operation="UPDATE")
    assert "only dynamically provisioned pvc can be resized" in await refusal(PersistentVolumeClaimResize(), a)


@pytest.mark.parametrize(
    ("resource", "obj", "group", "said"),
    [
        ("nodes", {"metadata": {"name": "n1"}}, "", ""),
        ("nodes", {"metadata": {"name": "n2"}}, "", 'node "n1" is not allowed to modify node "n2"'),
        ("pods", pod(), "", 'node "n1" can only create mirror pods'),
        ("pods", pod(nodeName="n1"), "", "pod does not have"),
    ],
)
async def test_kubelets_keep_to_what_is_theirs(api: Objects, resource: str, obj: Any, group: str, said: str) -> None:
    message = await refusal(NodeRestriction(), api.request(resource, obj, group=group, user=KUBELET))
    assert (said in message) if said else message == ""


def _policy(**spec: Any) -> dict[str, Any]:
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["*"]}]
    return {
        "metadata": {"name": "p"},
        "spec": {"failurePolicy": "Fail", "matchConstraints": {"resourceRules": rules}, **spec},
    }


async def test_validating_policies(api: Objects) -> None:
    plugin = ValidatingAdmissionPolicy(api)
    policy = _policy(
        variables=[{"name": "size", "expression": "size(object.data)"}],
        validations=[{"expression": "variables.size < 2", "messageExpression": "'has ' + string(variables.size)"}],
        auditAnnotations=[{"key": "size", "valueExpression": "string(variables.size)"}],
    )
    api.put(ARG, "validatingadmissionpolicies", policy)
    binding = {"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny", "Audit"]}}
    one, two = ({"metadata": {"name": "x"}, "data": dict.fromkeys("ab"[:n], "")} for n in (1, 2))
    assert await refusal(plugin, api.request("configmaps", two)) == ""
    api.put(ARG, "validatingadmissionpolicybindings", binding)
    a = api.request("configmaps", one)
    assert await refusal(plugin, a) == "" and a.annotations == {"p/size": "1"}
    said = await refusal(plugin, api.request("configmaps", two))
    denied = "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: has 2"
    assert said == f'configmaps "x" is forbidden: {denied}'
    binding["spec"] = {"policyName": "p", "validationActions": ["Warn"]}
    api.put(ARG, "validatingadmissionpolicybindings", binding)
    a = api.request("configmaps", two)
    assert await refusal(plugin, a) == ""
    assert a.warnings == ["Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': has 2"]


async def test_policies_ask_the_authorizer(api: Objects) -> None:
    expression = "authorizer.group('').resource('secrets').namespace('a').check('get').allowed()"
    api.put(ARG, "validatingadmissionpolicies", _policy(validations=[{"expression": expression}]))
    binding = {"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}}
    api.put(ARG, "validatingadmissionpolicybindings", binding)
    a = {"metadata": {"name": "x"}}
    assert "failed expression: authorizer" in await refusal(
        ValidatingAdmissionPolicy(api), api.request("configmaps", a)
    )
    assert (api.asked[0].resource, api.asked[0].verb, api.asked[0].namespace) == ("secrets", "get", "a")
    api.allowed = True
    assert await refusal(ValidatingAdmissionPolicy(api), api.request("configmaps", a)) == ""


async def test_mutating_policies(api: Objects) -> None:
    applied = "Object{metadata: Object.metadata{labels: {'by': request.userInfo.username}}}"
    patch = "[JSONPatch{op: 'add', path: '/data', value: {'k': 'v'}}]"
    mutations = [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": applied}},
        {"patchType": "JSONPatch", "jsonPatch": {"expression": patch}},
    ]
    api.put(ARG, "mutatingadmissionpolicies", _policy(mutations=mutations))
    api.put(ARG, "mutatingadmissionpolicybindings", {"metadata": {"name": "b"}, "spec": {"policyName": "p"}})
    a = api.request("configmaps", {"metadata": {"name": "x"}})
    assert await refusal(MutatingAdmissionPolicy(api), a) == ""
    assert (a.object or {})["metadata"]["labels"] == {"by": "admin"}
    assert (a.object or {})["data"] == {"k": "v"}


async def test_plugins_change_nothing_where_nothing_is_said(api: Objects) -> None:
    """The whole chain over a ConfigMap: no plugin refuses or changes it."""
    config = SimpleNamespace(enable_admission=(), disable_admission=(), admission_config=None)
    a = api.request("configmaps", {"metadata": {"name": "x"}, "data": {"a": "b"}})
    before = repr(a.object)
    for plugin in plugins(config, api):  # type: ignore[arg-type]
        if plugin.handles("CREATE", "configmaps"):
            try:
                await plugin.admit(a)
                await plugin.validate(a)
            except StatusError as error:
                pytest.fail(f"{plugin.name}: {error.message}")
    assert repr(a.object) == before
