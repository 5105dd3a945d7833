from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.machinery.errors import StatusError
from longshore.master.apiserver.auth import policy
from longshore.master.apiserver.auth.authorization import Authorization, refusal
from longshore.master.apiserver.auth.escalation import EscalationCheck
from longshore.master.apiserver.auth.rbac import GROUP, RBAC
from longshore.master.apiserver.auth.rules import Rule, compact, covers, describe
from longshore.master.apiserver.context import AdmissionRequest, Attributes, UserInfo

JANE = UserInfo("jane", groups=("devs", "system:authenticated"))


def ask(
    user: UserInfo, verb: str, resource: str, namespace: str = "", *, group: str = "", name: str = "", sub: str = ""
) -> Attributes:
    return Attributes(user, verb, group, "v1", resource, sub, namespace, name)


def role(name: str, *rules: dict[str, Any], namespace: str = "") -> dict[str, Any]:
    return {"metadata": {"name": name} | ({"namespace": namespace} if namespace else {}), "rules": list(rules)}


def binding(name: str, kind: str, to: str, *subjects: dict[str, str], namespace: str = "") -> dict[str, Any]:
    meta = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"metadata": meta, "roleRef": {"apiGroup": GROUP, "kind": kind, "name": to}, "subjects": list(subjects)}


def rule(verbs: str, groups: str, resources: str, *names: str) -> dict[str, Any]:
    out: dict[str, Any] = {"verbs": verbs.split(","), "apiGroups": groups.split(","), "resources": resources.split(",")}
    return out | ({"resourceNames": list(names)} if names else {})


def test_what_a_rule_allows() -> None:
    cases = [
        (rule("get", "", "pods"), ask(JANE, "get", "pods"), True),
        (rule("get", "", "pods"), ask(JANE, "get", "pods", sub="log"), False),
        (rule("get", "", "pods/log"), ask(JANE, "get", "pods", sub="log"), True),
        (rule("get", "", "*/log"), ask(JANE, "get", "pods", sub="log"), True),
        (rule("*", "*", "*"), ask(JANE, "x", "y", sub="z", group="g"), True),
        (rule("get", "apps", "pods"), ask(JANE, "get", "pods"), False),
        (rule("get", "", "pods", "a"), ask(JANE, "get", "pods", name="a"), True),
        (rule("get", "", "pods", "a"), ask(JANE, "get", "pods", name="b"), False),
        (rule("list", "", "pods", "a"), ask(JANE, "list", "pods"), False),
        (
            {"verbs": ["get"], "nonResourceURLs": ["/a/*"]},
            Attributes(JANE, "get", path="/a/b", is_resource=False),
            True,
        ),
        ({"verbs": ["get"], "nonResourceURLs": ["/a"]}, Attributes(JANE, "get", path="/a/b", is_resource=False), False),
        ({"verbs": ["get"], "nonResourceURLs": ["*"]}, ask(JANE, "get", "pods"), False),
    ]
    for raw, a, wanted in cases:
        assert Rule(raw).allows(a) is wanted, (raw, a)


def test_reasons_scopes_and_changes(objects: Any) -> None:
    rbac = RBAC(objects)
    assert rbac.authorize(ask(JANE, "get", "pods", "a")).verdict == "no opinion"
    objects.put(GROUP, "clusterroles", role("reader", rule("get", "", "pods")))
    objects.put(
        GROUP, "rolebindings", binding("rb", "ClusterRole", "reader", {"kind": "Group", "name": "devs"}, namespace="a")
    )
    decision = rbac.authorize(ask(JANE, "get", "pods", "a"))
    assert decision.reason == 'RBAC: allowed by RoleBinding "rb/a" of ClusterRole "reader" to Group "devs"'
    assert not rbac.authorize(ask(JANE, "get", "pods", "b")).allowed
    assert not rbac.authorize(ask(JANE, "get", "pods")).allowed
    objects.remove(GROUP, "rolebindings", "a", "rb")
    assert not rbac.authorize(ask(JANE, "get", "pods", "a")).allowed
    objects.put(GROUP, "clusterrolebindings", binding("crb", "ClusterRole", "reader", {"kind": "User", "name": "jane"}))
    decision = rbac.authorize(ask(JANE, "get", "pods", "b"))
    assert decision.reason == 'RBAC: allowed by ClusterRoleBinding "crb" of ClusterRole "reader" to User "jane"'
    objects.put(GROUP, "clusterroles", role("reader", rule("list", "", "pods")))
    assert not rbac.authorize(ask(JANE, "get", "pods", "b")).allowed
    objects.remove(GROUP, "clusterroles", "", "reader")
    decision = rbac.authorize(ask(JANE, "get", "pods", "b"))
    assert decision.reason == 'RBAC: clusterrole.rbac.authorization.k8s.io "reader" not found'


def test_service_accounts_are_subjects(objects: Any) -> None:
    rbac = RBAC(objects)
    objects.put(GROUP, "roles", role("r", rule("get", "", "pods"), namespace="a"))
    subjects = ({"kind": "ServiceAccount", "name": "bot"}, {"kind": "ServiceAccount", "name": "far", "namespace": "b"})
    objects.put(GROUP, "rolebindings", binding("rb", "Role", "r", *subjects, namespace="a"))
    bot, far = UserInfo("system:serviceaccount:a:bot"), UserInfo("system:serviceaccount:b:far")
    assert 'to ServiceAccount "bot/a"' in rbac.authorize(ask(bot, "get", "pods", "a")).reason
    assert 'to ServiceAccount "far/b"' in rbac.authorize(ask(far, "get", "pods", "a")).reason
    assert not rbac.authorize(ask(far, "get", "pods", "b")).allowed


def test_refusals_in_upstreams_words() -> None:
    error = refusal(ask(JANE, "create", "deployments", "x", group="apps", sub="scale"), "because")
    assert error.message == (
        'deployments.apps is forbidden: User "jane" cannot create resource "deployments/scale" '
        'in API group "apps" in the namespace "x": because'
    )
    assert (
        refusal(Attributes(JANE, "get", path="/x", is_resource=False)).message
        == 'forbidden: User "jane" cannot get path "/x"'
    )


names = st.sampled_from(["a", "b", "*"])
rules = st.lists(
    st.fixed_dictionaries(
        {
            "verbs": st.lists(names, min_size=1, max_size=2, unique=True),
            "apiGroups": st.lists(names, min_size=1, max_size=2, unique=True),
            "resources": st.lists(st.sampled_from(["a", "b", "a/s", "*/s", "*"]), min_size=1, max_size=2, unique=True),
        },
        optional={"resourceNames": st.lists(st.sampled_from(["n", "m"]), min_size=1, max_size=2, unique=True)},
    ),
    max_size=3,
)


@given(rules, rules)
def test_what_is_covered_is_allowed(owned: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    mine = [Rule(r) for r in owned]
    if covers(mine, wanted):
        return
    for raw in wanted:
        for verb in ("a", "b"):
            for group in ("a", "b"):
                for resource, sub in (("a", ""), ("b", ""), ("a", "s")):
                    for name in ("n", "m", ""):
                        a = ask(JANE, verb, resource, group=group, name=name, sub=sub)
                        if Rule(raw).allows(a):
                            assert any(r.allows(a) for r in mine)


def test_escalation_in_upstreams_words(objects: Any) -> None:
    rbac = RBAC(objects)
    check = EscalationCheck(rbac, Authorization([rbac]))
    objects.put(GROUP, "clusterroles", role("reader", rule("get,list", "", "configmaps")))
    objects.put(GROUP, "clusterroles", role("root", rule("*", "*", "*"), {"verbs": ["*"], "nonResourceURLs": ["*"]}))
    objects.put(GROUP, "clusterrolebindings", binding("b", "ClusterRole", "reader", {"kind": "User", "name": "jane"}))

    async def write(
        resource: str, obj: dict[str, Any], old: dict[str, Any] | None = None, user: UserInfo = JANE
    ) -> None:
        a = Attributes(user, "create", GROUP, "v1", resource, "", "x", obj["metadata"]["name"])
        await check.admit(AdmissionRequest(a, "CREATE", obj, old, {}, False, objects))

    import asyncio

    fine = role("ok", rule("get", "", "configmaps"), namespace="x")
    asyncio.run(write("roles", fine))
    greedy = role("esc", rule("delete,get", ",apps", "configmaps,deployments"), namespace="x")
    with pytest.raises(StatusError) as caught:
        asyncio.run(write("roles", greedy))
    assert caught.value.message == (
        'roles.rbac.authorization.k8s.io "esc" is forbidden: user "jane" (groups=["devs" "system:authenticated"]) is '
        "attempting to grant RBAC permissions not currently held:\n"
        '{APIGroups:[""], Resources:["configmaps"], Verbs:["delete"]}\n'
        '{APIGroups:[""], Resources:["deployments"], Verbs:["delete" "get"]}\n'
        '{APIGroups:["apps"], Resources:["configmaps"], Verbs:["delete" "get"]}\n'
        '{APIGroups:["apps"], Resources:["deployments"], Verbs:["delete" "get"]}'
    )
    asyncio.run(write("roles", greedy, greedy))
    asyncio.run(write("roles", greedy, user=UserInfo("x", groups=("system:masters",))))
    with pytest.raises(StatusError, match="not currently held"):
        asyncio.run(write("rolebindings", binding("x", "ClusterRole", "root", namespace="x")))
    asyncio.run(write("rolebindings", binding("x", "ClusterRole", "reader", namespace="x")))
    with pytest.raises(StatusError, match=r'rolebindings\.rbac\.authorization\.k8s\.io "nope" not found'):
        asyncio.run(write("rolebindings", binding("x", "ClusterRole", "nope", namespace="x")))
    aggregated = role("agg") | {"aggregationRule": {"clusterRoleSelectors": [{}]}}
    with pytest.raises(StatusError, match="must have cluster-admin privileges to use the aggregationRule"):
        asyncio.run(write("clusterroles", aggregated))
    # the verbs escalate and bind open what is otherwise shut
    objects.put(GROUP, "clusterroles", role("opener", rule("escalate,bind", GROUP, "roles,clusterroles")))
    objects.put(GROUP, "clusterrolebindings", binding("o", "ClusterRole", "opener", {"kind": "User", "name": "jane"}))
    asyncio.run(write("roles", greedy))
    asyncio.run(write("rolebindings", binding("x", "ClusterRole", "root", namespace="x")))


def test_compact_and_describe() -> None:
    assert [describe(r) for r in compact([rule("get", "", "a"), rule("list", "", "a"), rule("get", "", "a", "n")])] == [
        '{APIGroups:[""], Resources:["a"], Verbs:["get" "list"]}',
        '{APIGroups:[""], Resources:["a"], ResourceNames:["n"], Verbs:["get"]}',
    ]


def test_the_bootstrap_policy_is_upstreams(golden: Path) -> None:
    recorded = json.loads((golden / "kubernetes" / "bootstrap-rbac.json").read_text())
    mine = {(p, o["metadata"].get("namespace", ""), o["metadata"]["name"]): o for p, o in policy.objects()}

    def core(obj: dict[str, Any]) -> dict[str, Any]:
        meta = {k: v for k, v in obj["metadata"].items() if k in ("name", "namespace", "labels", "annotations")}
        rest = {k: obj[k] for k in ("rules", "subjects", "roleRef", "aggregationRule") if obj.get(k)}
        return rest | {"metadata": meta, "kind": obj["kind"]}

    seen = 0
    for plural, found in recorded.items():
        for obj in found:
            meta = obj["metadata"]
            assert core(mine[plural, meta.get("namespace", ""), meta["name"]]) == core(obj)
            seen += 1
    assert seen == len(mine)


async def test_reconciliation_gives_back_what_was_taken(objects: Any) -> None:
    await policy.reconcile(objects)
    assert len(objects.kept) == len(policy.objects())
    key = (GROUP, "clusterroles", "", "system:basic-user")
    whole = objects.kept[key]
    objects.kept[key] = {**whole, "rules": [*whole["rules"][:1], rule("get", "", "mine")]}
    bound = objects.kept[GROUP, "clusterrolebindings", "", "system:basic-user"]
    bound = {**bound, "subjects": [{"kind": "User", "name": "extra", "apiGroup": GROUP}]}
    objects.kept[GROUP, "clusterrolebindings", "", "system:basic-user"] = bound
    await policy.reconcile(objects)
    assert not covers([Rule(r) for r in objects.kept[key]["rules"]], [*whole["rules"], rule("get", "", "mine")])
    assert len(objects.kept[GROUP, "clusterrolebindings", "", "system:basic-user"]["subjects"]) == 2
    frozen = {**whole, "rules": [], "metadata": {**whole["metadata"], "annotations": {policy.AUTOUPDATE: "false"}}}
    objects.kept[key] = frozen
    await policy.reconcile(objects)
    assert objects.kept[key]["rules"] == []
