"""What upstream's server answered, against what the kinds say by themselves (see golden.py)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import golden

from longshore.api.crd import compile_crd
from longshore.api.kinds import KINDS
from longshore.api.validation.errors import invalid_message

# What allocators and the request handlers of the server answer, not the kinds.
ELSEWHERE = {
    "validation/bodies/03",
    "validation/bodies/15",
    "validation/create-svc-clusterip-outside/01",
    "validation/create-svc-ipfamily/01",
    "validation/create-svc-ipfamily6/01",
    "validation/create-svc-nodeport-outside/01",
    # Upstream compares the raw bytes here, and refuses what is the same.
    "validation/update-controllerrevision/02",
    # Definitions that controllers have established by then.
    "crds/lifecycle/19",
    "crds/lifecycle/21",
    "crds/versions/11",
}


@golden.needs_golden
@pytest.mark.parametrize("theme", ["defaults", "validation", "crds"])
def test_recorded_creations_and_updates(theme: str) -> None:
    good, counted, wrong = golden.score(theme)
    left = [f"{step}: {why}" for step, why in wrong if step not in ELSEWHERE]
    assert not left, "\n".join(left)
    assert good >= {"defaults": 115, "validation": 300, "crds": 36}[theme] and counted


@golden.needs_golden
def test_rules_of_custom_resources() -> None:
    definitions = KINDS["apiextensions.k8s.io", "customresourcedefinitions"]
    resource, objects = None, {}
    for step in golden.scenarios("crds")["crds/cel"]:
        for before in step.get("before", ()):
            crd = definitions.decode(before["body"], "v1")
            definitions.default(crd, "v1")
            definitions.prepare_create(crd)
            assert definitions.validate(crd) == []
            resource = compile_crd(crd)
        assert resource is not None
        body = json.loads(json.dumps(step["body"]))
        if step["method"] == "POST":
            obj = resource.decode(body, "v1")
            resource.default(obj, "v1")
            obj["metadata"].update(namespace="golden")
            resource.prepare_create(obj, "v1")
            errors, name = resource.validate(obj), obj["metadata"]["name"]
            obj["metadata"]["resourceVersion"] = "1"
        else:
            name = "c0"
            obj = json.loads(json.dumps(objects[name]))
            for key, value in body["spec"].items():
                obj["spec"].pop(key, None)
                if value is not None:
                    obj["spec"][key] = value
            errors = resource.validate_update(obj, objects[name])
        if not errors:
            objects[name] = obj
        said = invalid_message("Cel", "c.example.com", name, errors) if errors else ""
        assert said == (step["response"]["message"] if step["status"] == 422 else ""), step["id"]


@golden.needs_golden
def test_columns_and_rows() -> None:
    from longshore.api.strategy import utc_now

    tables = json.loads((golden.GOLDEN / "kubernetes" / "tables.json").read_text())
    compared = 0
    for path, table in tables.items():
        version, _, plural = path.rpartition("/")
        group, _, version = version.rpartition("/")
        resource = KINDS[group, plural]
        shown = [
            {"name": c.name, "type": c.type, "format": c.format, "priority": c.priority}
            for c in resource.columns(version)
        ]
        assert shown == table["columns"], path
        for row in table["rows"]:
            if "created" not in row or plural in ("services", "flowschemas", "apiservices", "events"):
                continue
            runner = golden.Runner()
            namespace = "/namespaces/golden" if resource.namespaced else ""
            base = f"/apis/{group}/{version}" if group else f"/api/{version}"
            runner.create(f"{base}{namespace}/{plural}", json.dumps(row["created"]).encode(), "Ignore")
            obj = next(iter(runner.objects.values()))
            cells = resource.row(obj, version, utc_now())
            for cell, want in zip(cells, row["cells"], strict=True):
                if isinstance(want, str) and "<" in want and want.strip("<>") not in ("none", "unset", "unknown"):
                    if "<unknown>" not in want:
                        continue
                assert cell == want, (path, cells, row["cells"])
            compared += 1
    assert compared > 80


@golden.needs_golden
def test_resources_are_as_discovery_shows_them() -> None:
    for entry in json.loads((golden.GOLDEN / "kubernetes" / "resources.json").read_text())["resources"]:
        group, _, version = entry["groupVersion"].rpartition("/")
        resource = KINDS[group, entry["name"]]
        assert version in resource.versions
        assert (resource.kind, resource.singular, resource.namespaced) == (
            entry["kind"],
            entry["singularName"],
            entry["namespaced"],
        )
        assert list(resource.verbs) == entry["verbs"]
        assert list(resource.short_names) == entry.get("shortNames", [])
        assert list(resource.categories) == entry.get("categories", [])
        assert {s["name"]: s["kind"] for s in entry["subresources"]} == {
            s.name: s.kind for s in resource.subresources.values()
        }
