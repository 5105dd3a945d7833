"""RBAC: an index of roles and bindings kept from changes, and the authorizer on it.

Source: k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac, k8s.io/component-helpers/auth/rbac/validation/rule.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from longshore.master.apiserver.context import NO_OPINION, Attributes, Decision, ObjectReader, UserInfo

from .rules import Resolution, Rule
from .users import account_name, quoted

GROUP = "rbac.authorization.k8s.io"
_KINDS = ("clusterroles", "roles", "clusterrolebindings", "rolebindings")
_MAX_DECISIONS = 16384
_MAX_DIRTY = 1024
Key = tuple[str, str]  # namespace ("" for cluster-wide), name


class Binding(NamedTuple):
    """A binding. subjects: (index key, text for reasons), in the object's order."""

    key: Key
    role_kind: str
    role: Key
    subjects: tuple[tuple[tuple[str, str], str], ...]

    def describe(self, subject: str) -> str:
        namespace, name = self.key
        what = f"RoleBinding {quoted(f'{name}/{namespace}')}" if namespace else f"ClusterRoleBinding {quoted(name)}"
        return f"{what} of {self.role_kind} {quoted(self.role[1])} to {subject}"


class Granted(NamedTuple):
    """A rule that a user has, and through which binding and subject."""

    rule: Rule
    binding: Binding
    subject: str


class RBAC:
    """Who may do what by roles and bindings.

    Changes only mark what changed; the index is brought up to date by the next question, so a burst of writes costs
    what was touched. Decisions are remembered until any role or binding changes.
    """

    def __init__(self, api: ObjectReader) -> None:
        self._api = api
        self._dirty: set[tuple[str, str, str]] = set()
        self._roles: dict[Key, list[Rule]] = {}
        self._bindings: dict[Key, Binding] = {}
        self._order: dict[Key, int] = {}  # when a binding was first seen: the oldest one gives the reason
        self._seen = 0
        self._by_subject: dict[tuple[str, tuple[str, str]], set[str]] = {}
        self._decisions: dict[tuple[Any, ...], Decision] = {}
        self._resolved: dict[tuple[Any, ...], tuple[list[Granted], list[str]]] = {}
        for resource in _KINDS:
            api.on_change(GROUP, resource, partial(self._note, resource))

    def _note(self, resource: str, namespace: str, name: str) -> None:
        self._dirty.add((resource, namespace, name))
        if len(self._dirty) > _MAX_DIRTY:  # nobody asks: it must not grow with all that ever lived
            self._refresh()

    def _refresh(self) -> None:
        dirty, self._dirty = self._dirty, set()
        self._decisions.clear()
        self._resolved.clear()
        for resource, namespace, name in sorted(dirty):
            obj = self._api.get(GROUP, resource, namespace, name)
            key = (namespace, name)
            if resource.endswith("roles"):
                if obj is None:
                    self._roles.pop(key, None)
                else:
                    self._roles[key] = [Rule(r) for r in obj.get("rules") or ()]
                continue
            old = self._bindings.pop(key, None)
            if old is not None:
                for subject, _ in old.subjects:
                    names = self._by_subject.get((namespace, subject))
                    if names is not None:
                        names.discard(name)
                        if not names:
                            del self._by_subject[namespace, subject]
            if obj is None:
                self._order.pop(key, None)
            else:
                if key not in self._order:
                    self._seen += 1
                    self._order[key] = self._seen
                binding = self._bindings[key] = _binding(key, obj)
                for subject, _ in binding.subjects:
                    self._by_subject.setdefault((namespace, subject), set()).add(name)

    # ---- questions

    def authorize(self, a: Attributes) -> Decision:
        if self._dirty:
            self._refresh()
        user = a.user
        key = (
            user.name,
            user.groups,
            a.verb,
            a.group,
            a.resource,
            a.subresource,
            a.namespace,
            a.name,
            a.path,
            a.is_resource,
        )
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decide(a)
            if len(self._decisions) >= _MAX_DECISIONS:
                self._decisions.clear()
            self._decisions[key] = decision
        return decision

    def _decide(self, a: Attributes) -> Decision:
        problems: list[str] = []
        for namespace in ("", a.namespace) if a.namespace else ("",):
            granted, missing = self._granted(a.user, namespace)
            problems += missing
            for rule, binding, subject in granted:
                if rule.allows(a):
                    return Decision("allow", f"RBAC: allowed by {binding.describe(subject)}")
        if problems:
            return Decision("no opinion", f"RBAC: {aggregate(problems)}")
        return NO_OPINION

    def rules_for(self, user: UserInfo, namespace: str) -> tuple[list[Rule], list[str]]:
        """All rules of a user in a namespace ("" for cluster-wide only), and what could not be resolved."""
        if self._dirty:
            self._refresh()
        rules: list[Rule] = []
        problems: list[str] = []
        for scope in ("", namespace) if namespace else ("",):
            granted, missing = self._granted(user, scope)
            rules += [g.rule for g in granted]
            problems += missing
        return rules, problems

    def resolve(self, user: UserInfo, namespace: str) -> Resolution:
        rules, problems = self.rules_for(user, namespace)
        return Resolution(rules, problems, bool(problems))

    def role_rules(self, kind: str, name: str, namespace: str) -> list[Rule] | None:
        """The rules of a role that a binding in `namespace` refers to; None when there is no such role."""
        if self._dirty:
            self._refresh()
        return self._roles.get(("" if kind == "ClusterRole" else namespace, name))

    def _granted(self, user: UserInfo, scope: str) -> tuple[list[Granted], list[str]]:
        key = (user.name, user.groups, scope)
        found = self._resolved.get(key)
        if found is None:
            found = self._resolve(user, scope)
            if len(self._resolved) > 4096:
                self._resolved.clear()
            self._resolved[key] = found
        return found

    def _resolve(self, user: UserInfo, scope: str) -> tuple[list[Granted], list[str]]:
        mine = {("User", user.name), *(("Group", g) for g in user.groups)}
        names: set[str] = set()
        for subject in mine:
            names |= self._by_subject.get((scope, subject), set())
        granted: list[Granted] = []
        missing: list[str] = []
        for name in sorted(names, key=lambda n: self._order[scope, n]):
            binding = self._bindings[scope, name]
            rules = self._roles.get(binding.role)
            if rules is None:
                missing.append(f'{binding.role_kind.lower()}.{GROUP} "{binding.role[1]}" not found')
                continue
            text = next(t for s, t in binding.subjects if s in mine)
            granted += [Granted(rule, binding, text) for rule in rules]
        return granted, missing

    def bindings(self) -> Iterator[Binding]:
        if self._dirty:
            self._refresh()
        yield from self._bindings.values()


def _binding(key: Key, obj: dict[str, Any]) -> Binding:
    namespace = key[0]
    subjects: list[tuple[tuple[str, str], str]] = []
    for s in obj.get("subjects") or ():
        kind, name = s.get("kind", ""), s.get("name", "")
        if kind == "ServiceAccount":
            home = s.get("namespace") or namespace
            if home:
                subjects.append((("User", account_name(home, name)), f"{kind} {quoted(f'{name}/{home}')}"))
        elif kind in ("User", "Group"):
            subjects.append(((kind, name), f"{kind} {quoted(name)}"))
    reference = obj.get("roleRef") or {}
    role_kind = reference.get("kind", "")
    role = ("" if role_kind == "ClusterRole" else namespace, reference.get("name", ""))
    return Binding(key, role_kind, role, tuple(subjects))


def aggregate(texts: list[str]) -> str:
    """Several errors as Go's NewAggregate shows them."""
    once = list(dict.fromkeys(texts))
    return once[0] if len(once) == 1 else "[" + ", ".join(once) + "]"
