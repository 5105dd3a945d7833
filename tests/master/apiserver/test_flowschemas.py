"""Whether a FlowSchema's priority level is there is told in its status, whoever made it."""

from __future__ import annotations

from typing import Any

from support.cluster import eventually

FLOW = "/apis/flowcontrol.apiserver.k8s.io/v1"


def test_dangling(server: Any) -> None:
    subject = {"kind": "User", "user": {"name": "jane"}}
    rule = {"subjects": [subject], "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}
    spec = {"priorityLevelConfiguration": {"name": "mine"}, "matchingPrecedence": 500, "rules": [rule]}
    assert server.send("POST", f"{FLOW}/flowschemas", {"metadata": {"name": "mine"}, "spec": spec}).status == 201

    def condition() -> tuple[Any, ...]:
        status = server.send("GET", f"{FLOW}/flowschemas/mine").json["status"]
        return tuple(
            (c["type"], c["status"], c["reason"], c["message"].split(" and ")[-1].split(" but ")[-1])
            for c in status.get("conditions", ())
        )

    absent = ("Dangling", "True", "NotFound", "there is no such object")
    eventually(lambda: condition() == (absent,))
    level = {"type": "Limited", "limited": {"nominalConcurrencyShares": 1, "limitResponse": {"type": "Reject"}}}
    made = server.send("POST", f"{FLOW}/prioritylevelconfigurations", {"metadata": {"name": "mine"}, "spec": level})
    assert made.status == 201
    eventually(lambda: condition() == (("Dangling", "False", "Found", "it exists"),))
    fields = server.send("GET", f"{FLOW}/flowschemas/mine").json["metadata"]["managedFields"]
    assert "api-priority-and-fairness-config-consumer-v1" in {f["manager"] for f in fields}
    assert server.send("DELETE", f"{FLOW}/prioritylevelconfigurations/mine").status == 200
    eventually(lambda: condition() == (absent,))
