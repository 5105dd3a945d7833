from __future__ import annotations

from typing import Any

import pytest

from longshore.machinery.errors import StatusError
from longshore.master.apiserver.auth import Access, Options
from longshore.master.apiserver.auth.authentication import Authentication
from longshore.master.apiserver.auth.authorization import AlwaysAllow, AlwaysDeny, Authorization
from longshore.master.apiserver.auth.reviews import Reviews
from longshore.master.apiserver.context import Attributes, Decision, UserInfo

JANE = UserInfo("jane", groups=("system:authenticated",))


def review(kind: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": {}, "spec": spec}


def rules(reviews: Reviews, user: UserInfo) -> dict[str, Any]:
    return dict(reviews.self_subject_rules(review("SelfSubjectRulesReview", namespace="x"), user)["status"])


async def test_rules_of_each_authorizer(objects: Any) -> None:
    access = Access(objects, Options())
    await access.bootstrap()
    found = rules(access.reviews, JANE)
    assert (
        not found["incomplete"]
        and {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]}
        in found["resourceRules"]
    )
    node = UserInfo("system:node:n", groups=("system:nodes", "system:authenticated"))
    found = rules(access.reviews, node)
    assert found["incomplete"] and found["evaluationError"] == "node authorizer does not support user rule resolution"
    allow = Reviews(Authentication(), Authorization([AlwaysAllow(), AlwaysDeny()]), [])
    assert rules(allow, JANE)["nonResourceRules"] == [{"verbs": ["*"], "nonResourceURLs": ["*"]}]
    with pytest.raises(StatusError, match="no namespace on request"):
        access.reviews.self_subject_rules(review("SelfSubjectRulesReview"), JANE)


class Recorder:
    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.asked: list[Attributes] = []

    def authorize(self, a: Attributes) -> Decision:
        self.asked.append(a)
        return self.decision


async def test_what_a_review_asks() -> None:
    recorder = Recorder(Decision("deny", "no way"))
    reviews = Reviews(Authentication(), Authorization([recorder]), [])
    selector = {
        "requirements": [{"key": "a", "operator": "In", "values": ["b", "c"]}, {"key": "d", "operator": "Exists"}]
    }
    attributes = {
        "verb": "list",
        "resource": "pods",
        "namespace": "x",
        "labelSelector": selector,
        "fieldSelector": {"rawSelector": "e=f"},
    }
    out = await reviews.subject_access(
        review(
            "SubjectAccessReview", user="u", groups=["g"], uid="1", extra={"k": ["v"]}, resourceAttributes=attributes
        )
    )
    assert out["status"] == {"allowed": False, "denied": True, "reason": "no way"}
    (a,) = recorder.asked
    assert a.user == UserInfo("u", "1", ("g",), {"k": ["v"]})
    assert (a.verb, a.resource, a.namespace, a.label_selector, a.field_selector) == (
        "list",
        "pods",
        "x",
        "a in (b,c),d",
        "e=f",
    )


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ({"key": "", "operator": "Exists"}, "key: Required value: must be specified"),
        (
            {"key": "a", "operator": "In"},
            "values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
        ),
        ({"key": "a", "operator": "Exists", "values": ["x"]}, "values: Forbidden: may not be specified"),
        ({"key": "a", "operator": "Foo"}, 'operator: Invalid value: "Foo": not a valid selector operator'),
    ],
)
async def test_bad_selectors(requirement: dict[str, Any], message: str) -> None:
    reviews = Reviews(Authentication(), Authorization([AlwaysAllow()]), [])
    attributes = {"verb": "list", "resource": "pods", "fieldSelector": {"requirements": [requirement]}}
    with pytest.raises(StatusError) as caught:
        await reviews.self_subject_access(review("SelfSubjectAccessReview", resourceAttributes=attributes), JANE)
    assert message in caught.value.message


async def test_token_review() -> None:
    reviews = Reviews(Authentication(), Authorization([]), ["api"])
    out = await reviews.token(
        {"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": {"token": "x"}}
    )
    assert out["status"] == {"user": {}, "error": "invalid bearer token"}
