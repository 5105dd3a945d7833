"""Which names a definition gets: the conditions NamesAccepted and Established (apiextensions' naming and establishing controllers)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from longshore.api import times

Object = dict[str, Any]


def conditions(crd: Object, others: Iterable[Object]) -> Object:
    """The status of a definition: acceptedNames, conditions, storedVersions.

    Args: crd: the definition; others: all definitions (itself included or not). Names that another one of the group has
    accepted are not free.
    """
    spec, status = crd["spec"], dict(crd.get("status") or {})
    wanted = spec["names"]
    taken_resources: set[str] = set()
    taken_kinds: set[str] = set()
    for other in others:
        if other["metadata"]["name"] == crd["metadata"]["name"] or other["spec"]["group"] != spec["group"]:
            continue
        names = (other.get("status") or {}).get("acceptedNames") or {}
        taken_resources.update(
            n for n in (names.get("plural"), names.get("singular"), *(names.get("shortNames") or ())) if n
        )
        taken_kinds.update(n for n in (names.get("kind"), names.get("listKind")) if n)
    accepted = {**(status.get("acceptedNames") or {})}
    problem: tuple[str, str] | None = None
    checks: list[tuple[str, list[str], set[str], str]] = [
        ("plural", [wanted["plural"]], taken_resources, "PluralConflict"),
        ("singular", [wanted.get("singular", "")], taken_resources, "SingularConflict"),
        ("shortNames", list(wanted.get("shortNames") or ()), taken_resources, "ShortNamesConflict"),
        ("kind", [wanted["kind"]], taken_kinds, "KindConflict"),
        ("listKind", [wanted.get("listKind", "")], taken_kinds, "ListKindConflict"),
    ]
    for key, names_wanted, taken, reason in checks:
        clashing = [n for n in names_wanted if n and n in taken and n not in _as_list(accepted.get(key))]
        if clashing:
            text = ", ".join(f'"{n}" is already in use' for n in clashing)
            problem = (reason, text if len(clashing) == 1 else f"[{text}]")
        elif key in wanted:
            accepted[key] = wanted[key]
        elif key in accepted:
            del accepted[key]
    if "categories" in wanted:
        accepted["categories"] = wanted["categories"]
    else:
        accepted.pop("categories", None)
    accepted.setdefault("plural", "")
    accepted.setdefault("kind", "")
    known = {c["type"]: c for c in status.get("conditions") or ()}
    if problem:
        names_condition = {"type": "NamesAccepted", "status": "False", "reason": problem[0], "message": problem[1]}
        established = {
            "type": "Established",
            "status": "False",
            "reason": "NotAccepted",
            "message": "not all names are accepted",
        }
        if known.get("Established", {}).get("status") == "True":
            established = known["Established"]
    else:
        names_condition = {
            "type": "NamesAccepted",
            "status": "True",
            "reason": "NoConflicts",
            "message": "no conflicts found",
        }
        established = {
            "type": "Established",
            "status": "True",
            "reason": "InitialNamesAccepted",
            "message": "the initial names have been accepted",
        }
    for condition in (names_condition, established):
        set_condition(known, condition)
    status["acceptedNames"] = accepted
    status["conditions"] = list(known.values())
    status.setdefault("storedVersions", [v["name"] for v in spec["versions"] if v.get("storage")])
    return status


def _as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []


def set_condition(known: dict[str, Object], condition: Object) -> None:
    """Put a condition among the known ones; its time of transition changes with its status."""
    was = known.get(condition["type"])
    stamp = (
        was["lastTransitionTime"]
        if was is not None and was.get("status") == condition["status"] and was.get("lastTransitionTime")
        else times.now()
    )
    known[condition["type"]] = {**condition, "lastTransitionTime": stamp}


def is_established(crd: Object) -> bool:
    """Whether the definition is to be served."""
    return any(
        c.get("type") == "Established" and c.get("status") == "True"
        for c in (crd.get("status") or {}).get("conditions") or ()
    )
