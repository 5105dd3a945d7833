"""Rules: what is in the file is checked, and the first that matches counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.simulate.addresses import Pool, of_node
from longshore.simulate.rules import JOBS, OTHERS, RulesError, parse, read


def pod(namespace="default", node="n-1", owner="", **labels):
    owners = [{"kind": owner, "controller": True, "uid": "u", "name": "o"}] if owner else []
    meta = {"name": "p", "namespace": namespace, "labels": labels, "ownerReferences": owners}
    return {"metadata": meta, "spec": {"nodeName": node}}


def test_the_first_match_counts_and_jobs_end_by_themselves():
    rules = parse(
        {
            "rules": [
                {"match": {"namespace": "shop*", "labels": {"app": "web"}}, "start": {"seconds": 2}},
                {"match": {"owner": "Job", "node": "slow-*"}, "run": {"seconds": 30, "failure": 1, "exitCode": 9}},
            ]
        }
    )
    assert rules.of(pod("shop-1", app="web")).start.seconds == 2
    assert rules.of(pod("shop-1", app="db")) is OTHERS
    assert rules.of(pod(owner="Job")) is JOBS
    slow = rules.of(pod(owner="Job", node="slow-3"))
    assert slow.run is not None and slow.run.seconds == 30 and slow.exit_code == 9
    assert slow.run.fails(rules.chance)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"rules": 3}, "rules: must be a list"),
        ({"rulez": []}, "unknown field 'rulez'"),
        ({"rules": [{"pull": {"seconds": -1}}]}, "rules[0].pull.seconds: must be a number from 0"),
        ({"rules": [{"pull": {"failure": 1.5}}]}, "rules[0].pull.failure: must be a number from 0 to 1"),
        ({"rules": [{}, {"start": {"failure": 1}}]}, "rules[1].start: unknown field 'failure'"),
        ({"rules": [{"run": True}]}, "rules[0].run: must be a mapping"),
        ([], "")
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(document, said):
    if not said:
        assert parse(document).rules == [JOBS, OTHERS]
        return
    with pytest.raises(RulesError) as refused:
        parse(document)
    assert said in str(refused.value)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.sampled_from(["rules", "match", "pull", "run", "seconds", "labels", "exitCode"]), c)))  # fmt: skip
def test_any_document_is_rules_or_refused(document):
    try:
        parse(document)
    except RulesError:
        pass


def test_files(tmp_path):
    with pytest.raises(RulesError, match="No such file"):
        read(tmp_path / "none")
    (tmp_path / "r.yaml").write_text("rules: [")
    with pytest.raises(RulesError, match="not YAML"):
        read(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("rules: [{stop: {seconds: 3}}]")
    assert read(tmp_path / "r.yaml").of(pod()).stop.seconds == 3


def test_addresses():
    pool = Pool("10.0.0.0/29")
    given_out = [pool.take() for _ in range(5)]
    assert given_out == [f"10.0.0.{i}" for i in range(2, 7)]
    assert pool.take() in given_out, "when all are taken they are given again"
    pool = Pool("10.0.0.0/29")
    pool.note("10.0.0.2")
    assert pool.take() == "10.0.0.3"
    assert of_node(0) == "127.64.0.1" and of_node(300) == "127.64.1.45"
