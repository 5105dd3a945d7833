"""Query options of writes and deletes, checked as upstream checks them.

Source: apimachinery pkg/apis/meta/v1/validation and internalversion/validation.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

from longshore.api.validation.errors import quote
from longshore.machinery.errors import Cause, StatusError, bad_request, invalid
from longshore.machinery.http import Request

Object = dict[str, Any]
META = "meta.k8s.io"
_FALSE = ("0", "false")


def invalid_options(kind: str, causes: list[Cause]) -> StatusError:
    return invalid(META, kind, "", causes)


def number(request: Request, name: str) -> int | None:
    """A whole number from the query; 400 in Go's words when it is none."""
    text = request.param(name)
    if not text:
        return None
    return parse_number(text)


def parse_number(text: str) -> int:
    digits = text[1:] if text[:1] in "+-" else text
    if not digits.isascii() or not digits.isdigit():
        raise bad_request(f"strconv.ParseInt: parsing {quote(text)}: invalid syntax")
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise bad_request(f"strconv.ParseInt: parsing {quote(text)}: value out of range")
    return value


def flag(request: Request, name: str) -> bool | None:
    """A boolean as conversion from a query reads it: given and neither "0" nor "false" counts as true."""
    values = request.query.get(name) if request.raw_query else None
    if not values:
        return None
    return values[0].lower() not in _FALSE


def _manager(manager: str, causes: list[Cause]) -> None:
    if len(manager.encode()) > 128:
        causes.append(Cause("FieldValueTooLong", "Too long: may not be more than 128 bytes", "fieldManager"))
    for at, char in enumerate(manager):
        if not char.isprintable() and char != " ":
            name = unicodedata.name(char, "")
            shown = f"U+{ord(char):04X}" + (f" {name}" if name else "")
            causes.append(
                Cause(
                    "FieldValueInvalid",
                    f"Invalid value: {quote(manager)}: invalid character {shown} (at position {at})",
                    "fieldManager",
                )
            )


def check_dry_run(values: list[str], causes: list[Cause]) -> bool:
    if any(v != "All" for v in values):
        shown = "[" + ",".join(quote(v) for v in values) + "]"
        causes.append(Cause("FieldValueNotSupported", f'Unsupported value: {shown}: supported values: "All"', "dryRun"))
    return bool(values)


class WriteOptions:
    """Of a create, update or patch. manager: who will own the fields; validation: Ignore, Warn or Strict."""

    __slots__ = ("dry_run", "force", "kind", "manager", "validation")

    def __init__(
        self, kind: str, *, manager: str = "", dry_run: bool = False, validation: str = "Warn", force: bool = False
    ) -> None:
        self.kind = kind
        self.manager = manager
        self.dry_run = dry_run
        self.validation = validation
        self.force = force

    def as_object(self) -> Object:
        """The options object that admission sees."""
        out: Object = {"kind": self.kind, "apiVersion": "meta.k8s.io/v1"}
        if self.dry_run:
            out["dryRun"] = ["All"]
        if self.manager:
            out["fieldManager"] = self.manager
        if self.force:
            out["force"] = True
        return out


def write_options(request: Request, kind: str, apply: bool = False) -> WriteOptions:
    """kind: "CreateOptions", "UpdateOptions" or "PatchOptions"; apply: of server-side apply. 422 when wrong."""
    if not request.raw_query:
        if apply:
            raise invalid_options(kind, [_MANAGER_REQUIRED])
        return WriteOptions(kind, manager=manager_of(request))
    causes: list[Cause] = []
    manager = request.param("fieldManager")
    force = flag(request, "force") if kind == "PatchOptions" else None
    if apply and not manager:
        causes.append(_MANAGER_REQUIRED)
    elif force is not None and not apply:
        causes.append(Cause("FieldValueForbidden", "Forbidden: may not be specified for non-apply patch", "force"))
    _manager(manager, causes)
    dry_run = check_dry_run(request.query.get("dryRun", []), causes)
    validation = request.param("fieldValidation")
    if validation not in ("", "Ignore", "Warn", "Strict"):
        text = f'Unsupported value: {quote(validation)}: supported values: "", "Ignore", "Strict", "Warn"'
        causes.append(Cause("FieldValueNotSupported", text, "fieldValidation"))
    if causes:
        raise invalid_options(kind, causes)
    return WriteOptions(
        kind,
        manager=manager or manager_of(request),
        dry_run=dry_run,
        validation=validation or "Warn",
        force=bool(force),
    )


_MANAGER_REQUIRED = Cause("FieldValueRequired", "Required value: is required for apply patch", "fieldManager")


def manager_of(request: Request) -> str:
    """The field manager of a client that names none: its user agent up to the slash."""
    return _manager_named(request.headers.get("user-agent") or "")


@lru_cache(256)
def _manager_named(agent: str) -> str:
    prefix = agent.split("/", 1)[0]
    out = "".join(c for c in prefix if c.isprintable())
    while len(out.encode()) > 128:
        out = out[:-1]
    return out


class DeleteOptions:
    """Of a delete. grace: seconds, None for the kind's own; policy: Orphan, Foreground, Background or ""."""

    __slots__ = ("dry_run", "grace", "orphan", "policy", "uid", "version")

    def __init__(self) -> None:
        self.grace: int | None = None
        self.policy = ""
        self.orphan: bool | None = None
        self.uid: str | None = None
        self.version: str | None = None
        self.dry_run = False

    def as_object(self) -> Object:
        out: Object = {"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"}
        if self.grace is not None:
            out["gracePeriodSeconds"] = self.grace
        preconditions = {k: v for k, v in (("uid", self.uid), ("resourceVersion", self.version)) if v is not None}
        if preconditions:
            out["preconditions"] = preconditions
        if self.orphan is not None:
            out["orphanDependents"] = self.orphan
        if self.policy:
            out["propagationPolicy"] = self.policy
        if self.dry_run:
            out["dryRun"] = ["All"]
        return out


def delete_options(body: Object | None, request: Request) -> DeleteOptions:
    """Options from the body where there is one, else from the query. 400 or 422 when wrong."""
    options = DeleteOptions()
    causes: list[Cause] = []
    if body is not None:
        options.grace = body.get("gracePeriodSeconds")
        options.policy = body.get("propagationPolicy") or ""
        options.orphan = body.get("orphanDependents")
        preconditions = body.get("preconditions") or {}
        options.uid = preconditions.get("uid")
        options.version = preconditions.get("resourceVersion")
        dry_run = body.get("dryRun") or []
    elif not request.raw_query:
        return options
    else:
        options.grace = number(request, "gracePeriodSeconds")
        options.policy = request.param("propagationPolicy")
        options.orphan = flag(request, "orphanDependents")
        dry_run = request.query.get("dryRun", [])
    if options.orphan is not None and options.policy:
        text = f"Invalid value: {quote(options.policy)}: orphanDependents and deletionPropagation cannot be both set"
        causes.append(Cause("FieldValueInvalid", text, "propagationPolicy"))
    if options.policy not in ("", "Foreground", "Background", "Orphan"):
        text = (
            f'Unsupported value: {quote(options.policy)}: supported values: "Foreground", "Background", "Orphan", "nil"'
        )
        causes.append(Cause("FieldValueNotSupported", text, "propagationPolicy"))
    options.dry_run = check_dry_run(dry_run, causes)
    if causes:
        raise invalid_options("DeleteOptions", causes)
    return options
