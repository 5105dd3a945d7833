"""The same wrong objects put to two API servers: what do they answer differently?

Every leaf of a rich object of each kind is taken out, emptied, made wrong or doubled; creations and updates are dry runs
with strict field validation. Compared are status, reason, message, causes, warnings and, where it is taken, the object.
"""

from __future__ import annotations

import copy
import http.client
import json
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

OBJECTS = Path(__file__).parent.parent / "upstream" / "data" / "objects.yaml"
Json = dict[str, Any]
Way = tuple[Any, ...]
_GONE = object()
_UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VERSION = re.compile(r'resourceVersion":"\d+"')
#: What two servers give differently by nature.
_OWN = {"uid", "creationTimestamp", "managedFields", "resourceVersion", "clusterIPs", "lastTransitionTime"}
_OWN |= {"lastPhaseTransitionTime", "nodePort", "healthCheckNodePort"}
_TEXTS = ("", "Bad_Value!", "a" * 300, "a/b/c", "-1", "0", "1.5", "../x", "10.0.0.0/33", "1Gi", "UPPER", " ")
_NUMBERS = (-1, 0, 1, 65536, 2**31 - 1, 2**40, "x")


@dataclass(frozen=True)
class Answer:
    """What a server said: status, the object or Status, and warnings."""

    status: int
    body: Json
    warnings: tuple[str, ...]

    def shown(self) -> Any:
        """What is compared."""
        if self.status < 400:
            return self.status, plain(self.body), self.warnings
        details = self.body.get("details") or {}
        causes = sorted(
            (c.get("reason", ""), c.get("field", ""), c.get("message", "")) for c in details.get("causes", [])
        )
        return self.status, self.body.get("reason"), plain(self.body.get("message")), plain(causes)


class Server:
    """One API server, by the administrator's certificate."""

    def __init__(self, port: int, pki: Path) -> None:
        context = ssl._create_unverified_context()
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self._port, self._context = port, context
        self._connection = self._connect()
        self.resources = dict(self._discover())

    def _connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self._port, context=self._context, timeout=30)

    def ask(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Answer | None:
        """One request; None where the server hung up, as upstream's does when it panics."""
        sent = None if body is None else json.dumps(body)
        try:
            self._connection.request(method, path, sent, {"Content-Type": content, "Accept": "application/json"})
            answer = self._connection.getresponse()
            data = answer.read()
        except (http.client.HTTPException, OSError):
            self._connection.close()
            self._connection = self._connect()
            return None
        try:
            found = json.loads(data)
        except ValueError:
            found = {"message": data.decode(errors="replace")}
        return Answer(answer.status, found, tuple(answer.headers.get_all("Warning") or ()))

    def _discover(self) -> Iterator[tuple[tuple[str, str], tuple[str, bool]]]:
        roots = {"v1": "/api/v1"}
        groups = self.ask("GET", "/apis")
        assert groups is not None
        for group in groups.body["groups"]:
            roots |= {v["groupVersion"]: f"/apis/{v['groupVersion']}" for v in group["versions"]}
        for version, root in roots.items():
            found = self.ask("GET", root)
            for resource in found.body.get("resources", []) if found else []:
                if "/" not in resource["name"]:
                    yield (version, resource["kind"]), (f"{root}|{resource['name']}", resource["namespaced"])

    def collection(self, obj: Json) -> str:
        place, namespaced = self.resources[obj["apiVersion"], obj["kind"]]
        return place.replace("|", "/namespaces/default/" if namespaced else "/")


def plain(value: Any) -> Any:
    """Without what is each server's own."""
    if isinstance(value, str):
        return _VERSION.sub("", _UID.sub("UID", value))
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in _OWN}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def ways(value: Any, way: Way = ()) -> Iterator[tuple[Way, Any]]:
    yield way, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from ways(inner, (*way, key))


def changed(obj: Json, way: Way, value: Any) -> Json:
    if not way:
        return obj
    obj = copy.deepcopy(obj)
    target: Any = obj
    for key in way[:-1]:
        target = target[key]
    if value is _GONE:
        del target[way[-1]]
    else:
        target[way[-1]] = value
    return obj


def changes(obj: Json) -> Iterator[tuple[Way, Any]]:
    """The ways in which an object is made wrong (the first one leaves it as it is)."""
    yield (), None
    for way, value in ways(obj):
        if not way or way[0] in ("apiVersion", "kind") or way in (("metadata",), ("metadata", "namespace")):
            continue
        yield way, _GONE
        if isinstance(value, dict):
            yield way, {}
            if value and all(isinstance(v, str) for v in value.values()):
                yield way, {**value, "-bad key!": "x"}
                yield way, {**value, "k": "bad value!" + "x" * 70}
            yield way, {**value, "zzz": 1}
        elif isinstance(value, list):
            yield way, []
            if value:
                yield way, [*value, copy.deepcopy(value[0])]
            yield way, "x"
        elif isinstance(value, bool):
            yield way, not value
        elif isinstance(value, int):
            yield from ((way, number) for number in _NUMBERS)
        elif isinstance(value, str):
            yield from ((way, text) for text in _TEXTS)
            yield way, 5


def objects() -> list[Json]:
    return [obj for obj in yaml.safe_load_all(OBJECTS.read_text()) if obj]


@dataclass
class Difference:
    kind: str
    way: str
    theirs: Answer
    ours: Answer


def compare(theirs: Server, ours: Server, obj: Json, *, update: bool) -> tuple[int, list[Difference]]:
    """How many changed objects both answered, and what they answered differently."""
    path = theirs.collection(obj)
    one = f"{path}/{obj['metadata']['name']}"
    asked = 0
    found: list[Difference] = []
    stored = [obj, obj]
    if update:
        made = [server.ask("POST", path, obj) for server in (theirs, ours)]
        if any(answer is None or answer.status != 201 for answer in made):
            return 0, []
        stored = [answer.body for answer in made if answer]
    for way, value in changes(obj):
        if update and way[:2] == ("metadata", "name"):
            continue
        method, to = ("PUT", one) if update else ("POST", path)
        answers = []
        for number, server in enumerate((theirs, ours)):
            answer = _put(server, method, to, stored, number, way, value)
            if answer is not None:
                answers.append(answer)
        if len(answers) < 2:
            continue
        asked += 1
        if answers[0].shown() != answers[1].shown():
            found.append(Difference(obj["kind"], ".".join(map(str, way)), *answers))
    if update:
        for server in (theirs, ours):
            server.ask("PATCH", one, {"metadata": {"finalizers": None}}, "application/merge-patch+json")
            server.ask("DELETE", f"{one}?gracePeriodSeconds=0&propagationPolicy=Background")
    return asked, found


def _put(
    server: Server, method: str, path: str, stored: list[Json], number: int, way: Way, value: Any
) -> Answer | None:
    strict = f"{path}?dryRun=All&fieldValidation=Strict"
    try:
        answer = server.ask(method, strict, changed(stored[number], way, value))
        if answer is not None and answer.status == 409 and method == "PUT":
            # A controller inside the server has changed it meanwhile.
            now = server.ask("GET", path)
            if now is not None:
                stored[number] = now.body
                answer = server.ask(method, strict, changed(now.body, way, value))
    except (KeyError, IndexError, TypeError):
        return None
    return answer
