"""Events: what is written down of a request, stage by stage."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson

from longshore.machinery.http import Request, Response
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.context import Attributes, Decision, UserInfo

from .backends import Backend
from .policy import COMPLETE, LEVELS, RECEIVED, STARTED, Policy, Verdict

Object = dict[str, Any]
log = logging.getLogger("longshore.apiserver.audit")
_MAX_KEPT = 1 << 20
_MAX_AGENT = 1024
_EARLY: Object = {"metadata": {}, "status": "Success", "message": "Connection closed early", "code": 200}
#: name of a counter, its labels, what to add.
Count = Callable[[str, tuple[tuple[str, str], ...], float], None]
Stored = bool | Awaitable[bool]


class _Entry:
    __slots__ = ("event", "long", "verdict")

    def __init__(self, event: Object, verdict: Verdict, long: bool) -> None:
        self.event, self.verdict, self.long = event, verdict, long


class Auditor:
    """Writes events. A request is told about by begin, impersonated, decided and finish, in this order; what these answer
    says whether the event was taken: False refuses the request (mode blocking-strict).
    """

    def __init__(self, policy: Policy, backend: Backend, count: Count) -> None:
        self.policy = policy
        self._backend, self._count = backend, count
        self._entries: dict[int, _Entry] = {}

    async def close(self) -> None:
        await self._backend.close()

    def begin(self, request: Request, a: Attributes) -> Stored:
        """A request whose sender is known."""
        entry = self._enter(request, a)
        if entry is None:
            return True
        if entry.long:
            request.on_start = lambda status: self._started(entry, status)
        return self._write(entry, RECEIVED)

    def _enter(self, request: Request, a: Attributes) -> _Entry | None:
        verdict = self.policy.evaluate(a)
        self._count("apiserver_audit_level_total", (("level", verdict.level),), 1)
        if verdict.level == "None":
            return None
        event: Object = {
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": verdict.level, "auditID": identity(request),
            "stage": RECEIVED, "requestURI": request.target, "verb": a.verb, "user": _user(a.user),
            "sourceIPs": _sources(request),
        }  # fmt: skip
        agent = request.headers.get("user-agent")
        if agent:
            event["userAgent"] = agent if len(agent) <= _MAX_AGENT else agent[:_MAX_AGENT] + "...TRUNCATED"
        if a.is_resource:
            reference = {
                "resource": a.resource, "namespace": a.namespace, "name": a.name, "apiGroup": a.group,
                "apiVersion": a.version, "subresource": a.subresource,
            }  # fmt: skip
            event["objectRef"] = {k: v for k, v in reference.items() if v}
        event["requestReceivedTimestamp"] = _now()
        long = a.verb in ("watch", "proxy") or a.subresource in ("exec", "attach", "portforward", "proxy", "log")
        entry = self._entries[id(request)] = _Entry(event, verdict, long)
        return entry

    def impersonated(self, request: Request, user: UserInfo, constraint: str) -> None:
        """The sender acts as somebody else; constraint: the verb that allowed it, "" by the old way."""
        entry = self._entries.get(id(request))
        if entry is not None:
            entry.event["impersonatedUser"] = _user(user)
            if constraint:
                entry.event["authenticationMetadata"] = {"impersonationConstraint": constraint}

    def decided(self, request: Request, decision: Decision) -> None:
        """The word of the authorizers."""
        entry = self._entries.get(id(request))
        if entry is not None:
            entry.event["annotations"] = {
                "authorization.k8s.io/decision": "allow" if decision.allowed else "forbid",
                "authorization.k8s.io/reason": decision.reason,
            }

    async def _started(self, entry: _Entry, status: int) -> None:
        """The answer of a long request begins."""
        entry.event["responseStatus"] = {"metadata": {}, "code": status}
        await _settled(self._write(entry, STARTED))

    def knows(self, request: Request) -> bool:
        """Whether the request has begun, and is written down."""
        return id(request) in self._entries

    async def refused(self, request: Request, a: Attributes, response: Response) -> None:
        """The sender could not be told: one event, if the policy wants anything of nobody."""
        entry = self._enter(request, a)
        if entry is not None:
            del self._entries[id(request)]
            entry.event["user"] = {}
            self._answered(entry, response)
            await _settled(self._write(entry, STARTED))

    async def finish(self, request: Request, response: Response | None) -> Response | None:
        """The request has been answered; None: its answer was written by whoever had the connection.

        The answer with the audit ID in its head.
        """
        entry = self._entries.pop(id(request), None)
        if entry is None:
            return response
        event, call = entry.event, request.context
        if isinstance(call, Call):
            if call.annotations:
                event.setdefault("annotations", {}).update(call.annotations)
            self._requested(entry, call)
        if response is not None:
            self._answered(entry, response)
        early = "responseStatus" not in event
        if early:
            event["responseStatus"] = _EARLY
        if entry.long and (early or response is not None):
            await _settled(self._write(entry, STARTED))
        await _settled(self._write(entry, COMPLETE))
        if response is None:
            return None
        return replace(response, headers=(*response.headers, ("Audit-Id", event["auditID"])))

    def _requested(self, entry: _Entry, call: Call) -> None:
        """What was sent: as an object with its defaults, and what it tells of the object in question."""
        body, event = sent(call.body), entry.event
        if not isinstance(body, dict | list):
            return
        wanted = entry.verdict.level in LEVELS[2:]
        if call.verb == "patch":
            if wanted:
                event["requestObject"] = body
            return
        if not isinstance(body, dict):
            return
        if call.verb in ("delete", "deletecollection"):
            if wanted:
                event["requestObject"] = {**body, "kind": "DeleteOptions", "apiVersion": "meta.k8s.io/__internal"}
            return
        if call.sent is None:
            return
        metadata = body.get("metadata")
        for key in ("namespace", "name", "uid", "resourceVersion"):
            value = metadata.get(key) if isinstance(metadata, dict) else None
            if value and isinstance(value, str):
                event["objectRef"].setdefault(key, value)
        if wanted:
            event["requestObject"] = self._shown(entry, _defaulted(body, *call.sent))

    def _answered(self, entry: _Entry, response: Response) -> None:
        """What was answered: of a Status what it says, of anything else its code."""
        event = entry.event
        status: Object = {"metadata": {}, "code": response.status}
        body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
        whole = entry.verdict.level == LEVELS[3] and "objectRef" in event
        if whole or response.status >= 400 or body.startswith((b'{"kind":"Status"', b"k8s\0")):
            answer = sent(body)
            if isinstance(answer, dict):
                if answer.get("kind") == "Status":
                    for key in ("status", "message", "reason", "details"):
                        if answer.get(key):
                            status[key] = answer[key]
                if whole:
                    event["responseObject"] = self._shown(entry, answer)
        event["responseStatus"] = status

    def _shown(self, entry: _Entry, value: Object) -> Object:
        if not entry.verdict.without_fields:
            return value
        out = _without(value)
        if isinstance(out.get("items"), list):
            out["items"] = [_without(i) if isinstance(i, dict) else i for i in out["items"]]
        if out.get("kind") == "Table" and isinstance(out.get("rows"), list):
            out["rows"] = [{**r, "object": _without(r["object"])} if r.get("object") else r for r in out["rows"]]
        return out

    def _write(self, entry: _Entry, stage: str) -> Stored:
        if stage in entry.verdict.omitted:
            return True
        event = entry.event
        event["stage"] = stage
        event["stageTimestamp"] = event["requestReceivedTimestamp"] if stage == RECEIVED else _now()
        self._count("apiserver_audit_event_total", (), 1)
        return self._backend.process((orjson.dumps(event),))


async def _settled(stored: Stored) -> bool:
    return stored if isinstance(stored, bool) else await stored


def _defaulted(body: Object, resource: Any, version: str) -> Object:
    """A body as the server understands it."""
    try:
        out: Object = resource.decode(body, version, None)
        resource.default(out, version)
    except (ValueError, AttributeError):
        return body
    group = resource.group
    head = {"kind": resource.kind, "apiVersion": f"{group}/{version}" if group else version}
    return {**head, **{k: body[k] for k in head if body.get(k)}, **out}


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


def identity(request: Request) -> str:
    """The audit ID of a request: what its sender gave, else a new one."""
    given = request.headers.get("audit-id") or ""
    return given if given and len(given) <= 64 else str(uuid.uuid4())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
