"""Audit: who did what, by a policy, as lines of JSON in a file.

Source: k8s.io/apiserver/pkg/audit and its endpoint filter; API: audit.k8s.io/v1.
"""

from __future__ import annotations

import logging
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from longshore.api import decoding
from longshore.machinery.http import Request, Response
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.context import Attributes, Decision, UserInfo

Object = dict[str, Any]
log = logging.getLogger("longshore.apiserver.audit")
LEVELS = ("None", "Metadata", "Request", "RequestResponse")
RECEIVED, STARTED, COMPLETE, PANIC = "RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"
_MAX_KEPT = 1 << 20


class PolicyError(ValueError):
    """The policy file is not one."""


class Rule:
    """One rule of a policy; what it does not name is not looked at."""

    def __init__(self, given: Object) -> None:
        self.level: str = given.get("level", "")
        if self.level not in LEVELS:
            raise PolicyError(f"level: {self.level!r} is none of {', '.join(LEVELS)}")
        self.users = frozenset(given.get("users") or ())
        self.groups = frozenset(given.get("userGroups") or ())
        self.verbs = frozenset(given.get("verbs") or ())
        self.namespaces = frozenset(given.get("namespaces") or ())
        self.resources: list[Object] = list(given.get("resources") or ())
        self.paths: list[str] = list(given.get("nonResourceURLs") or ())
        self.omitted = frozenset(given.get("omitStages") or ())
        self.without_fields: bool | None = given.get("omitManagedFields")

    def matches(self, a: Attributes) -> bool:
        if self.users and a.user.name not in self.users:
            return False
        if self.groups and self.groups.isdisjoint(a.user.groups):
            return False
        if self.verbs and a.verb not in self.verbs:
            return False
        if not a.is_resource:
            if self.namespaces or self.resources:
                return False
            return not self.paths or any(
                p in (a.path, "*") or (p.endswith("*") and a.path.startswith(p[:-1])) for p in self.paths
            )
        if self.paths:
            return False
        if self.namespaces and a.namespace not in self.namespaces:
            return False
        return not self.resources or any(_covers(r, a) for r in self.resources)


def _covers(given: Object, a: Attributes) -> bool:
    if given.get("group", "") != a.group:
        return False
    names = given.get("resources") or ()
    if not names:
        return True
    whole = f"{a.resource}/{a.subresource}" if a.subresource else a.resource
    wanted = given.get("resourceNames") or ()
    if wanted and a.name not in wanted:
        return False
    for name in names:
        if name in ("*", whole) or (a.subresource and name == f"*/{a.subresource}") or name == f"{a.resource}/*":
            return True
    return False


class Policy:
    """Which requests are written down, and how much of them."""

    def __init__(self, given: Object) -> None:
        if given.get("kind") != "Policy" or not str(given.get("apiVersion", "")).startswith("audit.k8s.io/"):
            raise PolicyError("not an audit.k8s.io Policy")
        self.rules = [Rule(r) for r in given.get("rules") or ()]
        if not self.rules:
            raise PolicyError("the policy has no rules")
        self.omitted = frozenset(given.get("omitStages") or ())
        self.without_fields = bool(given.get("omitManagedFields"))

    @staticmethod
    def load(file: Path) -> Policy:
        """The policy in a YAML file. PolicyError or OSError."""
        try:
            value = decoding.parse_yaml(file.read_bytes()).value
        except ValueError as error:
            raise PolicyError(f"{file}: {error}") from None
        if not isinstance(value, dict):
            raise PolicyError(f"{file}: not an audit.k8s.io Policy")
        return Policy(value)

    def evaluate(self, a: Attributes) -> tuple[str, frozenset[str], bool]:
        """Level, stages that are not written, whether managedFields are left out."""
        for rule in self.rules:
            if rule.matches(a):
                without = self.without_fields if rule.without_fields is None else rule.without_fields
                return rule.level, self.omitted | rule.omitted, without
        return "None", self.omitted, self.without_fields


class _Entry:
    __slots__ = ("event", "level", "long", "omitted", "without_fields")

    def __init__(self, event: Object, level: str, omitted: frozenset[str], without_fields: bool, long: bool) -> None:
        self.event, self.level, self.omitted, self.without_fields = event, level, omitted, without_fields
        self.long = long


class Auditor:
    """Writes events. A request is told about by begin, decided and finish, in this order."""

    def __init__(self, policy: Policy, file: Path) -> None:
        self.policy = policy
        self._out: BinaryIO = sys.stdout.buffer if str(file) == "-" else file.open("ab", buffering=0)
        self._entries: dict[int, _Entry] = {}

    def close(self) -> None:
        if self._out is not sys.stdout.buffer:
            self._out.close()

    def begin(self, request: Request, a: Attributes) -> None:
        """A request whose sender is known."""
        level, omitted, without_fields = self.policy.evaluate(a)
        if level == "None":
            return
        event: Object = {
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": level, "auditID": _identity(request),
            "stage": RECEIVED, "requestURI": request.target, "verb": a.verb, "user": _user(a.user),
            "sourceIPs": _sources(request),
        }  # fmt: skip
        agent = request.headers.get("user-agent")
        if agent:
            event["userAgent"] = agent
        if a.is_resource:
            reference = {
                "resource": a.resource, "namespace": a.namespace, "name": a.name, "apiGroup": a.group,
                "apiVersion": a.version, "subresource": a.subresource,
            }  # fmt: skip
            event["objectRef"] = {k: v for k, v in reference.items() if v}
        event["requestReceivedTimestamp"] = _now()
        long = a.verb == "watch" or a.subresource in ("exec", "attach", "portforward", "proxy", "log")
        entry = self._entries[id(request)] = _Entry(event, level, omitted, without_fields, long)
        self._write(entry, RECEIVED)

    def decided(self, request: Request, user: UserInfo, decision: Decision) -> None:
        """The word of the authorizers; user: whom the sender acts as."""
        entry = self._entries.get(id(request))
        if entry is None:
            return
        if user.name != entry.event["user"].get("username"):
            entry.event["impersonatedUser"] = _user(user)
        entry.event["annotations"] = {
            "authorization.k8s.io/decision": "allow" if decision.allowed else "forbid",
            "authorization.k8s.io/reason": decision.reason,
        }
        if entry.long and decision.allowed:
            entry.event["responseStatus"] = {"metadata": {}, "code": 200}
            self._write(entry, STARTED)

    def refused(self, request: Request) -> None:
        """The sender could not be told: only that is written, if the policy wants anything of nobody."""
        nobody = Attributes(UserInfo(""), request.method.lower(), path=request.path, is_resource=False)
        if id(request) not in self._entries:
            self.begin(request, nobody)
            entry = self._entries.get(id(request))
            if entry is not None:
                entry.event["user"] = {}

    def finish(self, request: Request, response: Response | None) -> None:
        """The request has been answered; None: its answer was written by whoever had the connection."""
        entry = self._entries.pop(id(request), None)
        if entry is None:
            return
        event = entry.event
        status: Object = {"metadata": {}, "code": response.status if response is not None else 200}
        answer = (
            _answer(response) if response is not None and (entry.level == LEVELS[3] or response.status >= 400) else None
        )
        if response is not None and response.status >= 400 and answer is not None and answer.get("kind") == "Status":
            for key in ("status", "message", "reason", "details"):
                if answer.get(key):
                    status[key] = answer[key]
        event["responseStatus"] = status
        call = request.context
        if isinstance(call, Call):
            if call.annotations:
                event.setdefault("annotations", {}).update(call.annotations)
            body = sent(call.body) if entry.level in LEVELS[2:] else None
            if body is not None:
                event["requestObject"] = self._shown(entry, body)
        if entry.level == LEVELS[3] and answer is not None:
            event["responseObject"] = self._shown(entry, answer)
        self._write(entry, COMPLETE)

    def _shown(self, entry: _Entry, value: Any) -> Any:
        if not entry.without_fields or not isinstance(value, dict):
            return value
        out = _without(value)
        if isinstance(out.get("items"), list):
            out["items"] = [_without(i) if isinstance(i, dict) else i for i in out["items"]]
        return out

    def _write(self, entry: _Entry, stage: str) -> None:
        if stage in entry.omitted:
            return
        event = entry.event
        event["stage"] = stage
        event["stageTimestamp"] = _now()
        try:
            self._out.write(orjson.dumps(event) + b"\n")
        except (OSError, TypeError):
            log.exception("an audit event could not be written")


def sent(body: bytes) -> Any:
    """A request's body as audit events show it, None for what is no JSON or too large."""
    if not body or len(body) > _MAX_KEPT:
        return None
    if body.startswith(b"k8s\0"):
        from longshore.master.apiserver.protobuf import ProtobufError, decode

        try:
            return decode(body)
        except ProtobufError:
            return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _answer(response: Response) -> Object | None:
    body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    found = sent(body)
    return found if isinstance(found, dict) else None


def _without(obj: Object) -> Object:
    metadata = obj.get("metadata")
    if not isinstance(metadata, dict) or "managedFields" not in metadata:
        return dict(obj)
    return {**obj, "metadata": {k: v for k, v in metadata.items() if k != "managedFields"}}


def _user(user: UserInfo) -> Object:
    out: Object = {"username": user.name}
    if user.uid:
        out["uid"] = user.uid
    if user.groups:
        out["groups"] = list(user.groups)
    if user.extra:
        out["extra"] = {k: list(v) for k, v in user.extra.items()}
    return out


def _sources(request: Request) -> list[str]:
    out = [p.strip() for p in (request.headers.get("x-forwarded-for") or "").split(",") if p.strip()]
    address = request.peer.address
    if address is not None and address[0] not in out:
        out.append(address[0])
    return out


def _identity(request: Request) -> str:
    given = request.headers.get("audit-id") or ""
    return given if given and len(given) <= 64 else str(uuid.uuid4())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
