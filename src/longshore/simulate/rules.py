"""What simulated pods do: delays, failures and ends, by rules of which the first that matches a pod counts.

    rules:
    - match: {namespace: shop, labels: {app: web}, owner: ReplicaSet, node: "simulated-1*"}
      pull: {seconds: 2, jitter: 1, failure: 0.05}   # once an image and node; failures are tried again with back-off
      start: {seconds: 0.3, jitter: 0.2}             # from the image to running
      ready: {seconds: 1}                            # from running to ready
      run: {seconds: 60, jitter: 30, failure: 0.1, exitCode: 3}   # how long a run lasts, how often it ends badly
      stop: {seconds: 1}                             # from deletion to gone, the grace period at most
      backoff: {seconds: 10, max: 300}               # between restarts

What a rule leaves out takes no time and never fails; a run without seconds lasts for ever, except that pods of Jobs
end well at once, as kwok's pod-complete stage has it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from longshore.client.objects import controller_of

Object = dict[str, Any]
LARGEST_FILE = 1 << 20


class RulesError(Exception):
    """The rules cannot be read; says where."""


@dataclass(frozen=True, slots=True)
class Delay:
    """A time in seconds, up to `jitter` seconds longer; failure: how likely it ends badly (0 to 1)."""

    seconds: float = 0.0
    jitter: float = 0.0
    failure: float = 0.0

    def draw(self, chance: random.Random) -> float:
        return self.seconds + chance.random() * self.jitter if self.jitter else self.seconds

    def fails(self, chance: random.Random) -> bool:
        return self.failure > 0 and chance.random() < self.failure


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. run: None where a run lasts for ever. labels, namespace, owner, node: what it matches, "" for any."""

    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    owner: str = ""
    node: str = ""
    pull: Delay = Delay()
    start: Delay = Delay()
    ready: Delay = Delay()
    run: Delay | None = None
    stop: Delay = Delay()
    exit_code: int = 1
    backoff: float = 10.0
    backoff_max: float = 300.0

    def matches(self, pod: Object) -> bool:
        meta = pod["metadata"]
        if self.namespace and not fnmatchcase(meta.get("namespace", ""), self.namespace):
            return False
        if self.node and not fnmatchcase(pod["spec"].get("nodeName") or "", self.node):
            return False
        if self.owner and (controller_of(pod) or {}).get("kind") != self.owner:
            return False
        labels = meta.get("labels") or {}
        return all(labels.get(key) == value for key, value in self.labels.items())


JOBS = Rule(owner="Job", run=Delay())
OTHERS = Rule()


class Rules:
    """An ordered list of rules, and the two that stand behind every list."""

    def __init__(self, rules: Iterable[Rule] = (), *, seed: int | None = None) -> None:
        """seed: makes the draws the same each time."""
        self.rules = [*rules, JOBS, OTHERS]
        self.chance = random.Random(seed)

    def of(self, pod: Object) -> Rule:
        return next(rule for rule in self.rules if rule.matches(pod))


def _number(value: Any, where: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise RulesError(f"{where}: must be a number from 0 to {most:g}, not {value!r}")
    return float(value)


def _fields(value: Any, where: str, known: Iterable[str]) -> Object:
    if not isinstance(value, dict):
        raise RulesError(f"{where}: must be a mapping")
    unknown = sorted(str(key) for key in set(value) - set(known))
    if unknown:
        raise RulesError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(known)}")
    return value


YEAR = 366 * 86400.0


def _delay(value: Any, where: str, *more: str) -> Delay:
    given = _fields(value, where, ("seconds", "jitter", *more))
    return Delay(
        _number(given.get("seconds", 0), where + ".seconds", YEAR),
        _number(given.get("jitter", 0), where + ".jitter", YEAR),
        _number(given.get("failure", 0), where + ".failure", 1),
    )


def _rule(value: Any, where: str) -> Rule:
    given = _fields(value, where, ("match", "pull", "start", "ready", "run", "stop", "backoff"))
    match = _fields(given.get("match") or {}, where + ".match", ("namespace", "labels", "owner", "node"))
    labels = match.get("labels") or {}
    if not isinstance(labels, dict):
        raise RulesError(f"{where}.match.labels: must be a mapping")
    backoff = _fields(given.get("backoff") or {}, where + ".backoff", ("seconds", "max"))
    run = given.get("run")
    code = run.get("exitCode", 1) if isinstance(run, dict) else 1
    return Rule(
        namespace=str(match.get("namespace") or ""),
        labels={str(k): str(v) for k, v in labels.items()},
        owner=str(match.get("owner") or ""),
        node=str(match.get("node") or ""),
        pull=_delay(given.get("pull") or {}, where + ".pull", "failure"),
        start=_delay(given.get("start") or {}, where + ".start"),
        ready=_delay(given.get("ready") or {}, where + ".ready"),
        run=None if run is None else _delay(run, where + ".run", "failure", "exitCode"),
        stop=_delay(given.get("stop") or {}, where + ".stop"),
        exit_code=int(_number(code, where + ".run.exitCode", 255)) or 1,
        backoff=_number(backoff.get("seconds", 10), where + ".backoff.seconds", YEAR),
        backoff_max=_number(backoff.get("max", 300), where + ".backoff.max", YEAR),
    )


def parse(document: Any, *, seed: int | None = None) -> Rules:
    """Rules from a document as it stands in the file: `{"rules": [...]}`. Raises RulesError."""
    given = _fields(document or {}, "rules", ("rules",)).get("rules") or []
    if not isinstance(given, list):
        raise RulesError("rules: must be a list")
    return Rules((_rule(value, f"rules[{i}]") for i, value in enumerate(given)), seed=seed)


def read(path: Path) -> Rules:
    """Rules from a YAML or JSON file. Raises RulesError."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise RulesError(f"{path}: larger than {LARGEST_FILE} bytes")
        return parse(yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except OSError as error:
        raise RulesError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise RulesError(f"{path}: not YAML: {error}") from error
    except RulesError as error:
        raise RulesError(f"{path}: {error}") from error
