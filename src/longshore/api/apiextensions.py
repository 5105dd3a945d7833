"""apiextensions.k8s.io: CustomResourceDefinition (what it defines is `longshore.api.crd`)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.crd import definitions
from longshore.api.strategy import Object, Strategy, created_at
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors


class CustomResourceDefinition(Strategy):
    """A kind of one's own."""

    standard_finalizers = False

    generation = True

    def default(self, obj: Object) -> None:
        names = obj["spec"]["names"]
        if not names.get("singular"):
            names["singular"] = names.get("kind", "").lower()
        if not names.get("listKind") and names.get("kind"):
            names["listKind"] = names["kind"] + "List"
        status = obj.get("status")
        stored = next((v["name"] for v in obj["spec"].get("versions") or () if v.get("storage")), None)
        if status is not None and stored and not status.get("storedVersions"):
            status["storedVersions"] = [stored]
        conversion = obj["spec"].setdefault("conversion", {})
        conversion.setdefault("strategy", "None")
        service = ((conversion.get("webhook") or {}).get("clientConfig") or {}).get("service")
        if service is not None:
            service.setdefault("port", 443)

    def prepare_create(self, obj: Object) -> None:
        stored = next((v["name"] for v in obj["spec"].get("versions") or () if v.get("storage")), None)
        obj["status"] = {
            "conditions": None,
            "acceptedNames": {"plural": "", "kind": ""},
            "storedVersions": [stored] if stored else None,
        }

    def prepare_update(self, new: Object, old: Object) -> None:
        storage = next((v["name"] for v in new["spec"].get("versions") or () if v.get("storage")), None)
        stored = list((new.get("status") or {}).get("storedVersions") or ())
        if storage and storage not in stored:
            new["status"] = {**new["status"], "storedVersions": [*stored, storage]}

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        definitions.validate(obj, errors, old)

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        found = Errors()
        definitions.validate(new, found, old)
        # A definition that was accepted may keep what a newer server would refuse.
        known = Errors()
        definitions.validate(old, known, old)
        had = {(e.field, e.body()) for e in known}
        errors.extend(e for e in found if (e.field, e.body()) not in had)
        if _established(old):
            for key, field in (("scope", "scope"),):
                if new["spec"].get(key) != old["spec"].get(key):
                    errors.invalid(f"spec.{field}", new["spec"].get(key), metadata.IMMUTABLE)
            if new["spec"]["names"].get("kind") != old["spec"]["names"].get("kind"):
                errors.invalid("spec.names.kind", new["spec"]["names"].get("kind"), metadata.IMMUTABLE)
        if new["spec"].get("group") != old["spec"].get("group"):
            errors.invalid("spec.group", new["spec"].get("group"), metadata.IMMUTABLE)
        if new["spec"]["names"].get("plural") != old["spec"]["names"].get("plural"):
            errors.invalid("spec.names.plural", new["spec"]["names"].get("plural"), metadata.IMMUTABLE)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], created_at(obj)]


def _established(obj: Object) -> bool:
    return any(
        c.get("type") == "Established" and c.get("status") == "True"
        for c in (obj.get("status") or {}).get("conditions") or ()
    )


STRATEGIES = {"CustomResourceDefinition": CustomResourceDefinition}
