"""The authorizers one after another, and the words of a refusal.

Source: k8s.io/apiserver/pkg/authorization/union, endpoints/handlers/responsewriters/errors.go.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence

from longshore.machinery.errors import StatusError, forbidden
from longshore.master.apiserver.context import NO_OPINION, Attributes, Authorizer, Decision, UserInfo

from .rules import Resolution, Rule
from .users import MASTERS, quoted

ALLOW = Decision("allow")


CatchUp = Callable[[], Awaitable[object] | None]


class AlwaysAllow:
    def authorize(self, a: Attributes) -> Decision:
        return ALLOW

    def resolve(self, user: UserInfo, namespace: str) -> Resolution:
        everything = [
            {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
            {"verbs": ["*"], "nonResourceURLs": ["*"]},
        ]
        return Resolution([Rule(r) for r in everything])


class AlwaysDeny:
    def authorize(self, a: Attributes) -> Decision:
        return Decision("no opinion", "Everything is forbidden.")

    def resolve(self, user: UserInfo, namespace: str) -> Resolution:
        return Resolution()


class Authorization:
    """Asks each authorizer until one allows or denies. The group system:masters may do everything.

    catch_up: what to wait for before somebody is refused, so that a role or binding that is stored holds; None: nothing.
    """

    def __init__(
        self,
        authorizers: Sequence[Authorizer],
        catch_up: CatchUp = lambda: None,
    ) -> None:
        self.authorizers = list(authorizers)
        self._catch_up = catch_up

    def authorize(self, a: Attributes) -> Decision | Awaitable[Decision]:
        if MASTERS in a.user.groups:
            return ALLOW
        decision = self._ask(a)
        if isinstance(decision, Decision) and not decision.allowed and (pending := self._catch_up()) is not None:
            return self._ask_again(a, pending)
        return decision

    async def _ask_again(self, a: Attributes, pending: Awaitable[object]) -> Decision:
        await pending
        decision = self._ask(a)
        return decision if isinstance(decision, Decision) else await decision

    def _ask(self, a: Attributes) -> Decision | Awaitable[Decision]:
        reasons: list[str] = []
        for i, authorizer in enumerate(self.authorizers):
            decision = authorizer.authorize(a)
            if inspect.isawaitable(decision):
                return self._go_on(a, i, decision, reasons)
            if decision.verdict != "no opinion":
                return decision
            if decision.reason:
                reasons.append(decision.reason)
        return Decision("no opinion", "\n".join(reasons)) if reasons else NO_OPINION

    async def _go_on(self, a: Attributes, i: int, first: Awaitable[Decision], reasons: list[str]) -> Decision:
        decision = await first
        while True:
            if decision.verdict != "no opinion":
                return decision
            if decision.reason:
                reasons.append(decision.reason)
            i += 1
            if i == len(self.authorizers):
                return Decision("no opinion", "\n".join(reasons)) if reasons else NO_OPINION
            answer = self.authorizers[i].authorize(a)
            decision = await answer if inspect.isawaitable(answer) else answer

    def resolve(self, user: UserInfo, namespace: str) -> Resolution:
        """All rules that the authorizers can name for a user in a namespace (for SelfSubjectRulesReview)."""
        out = Resolution()
        for authorizer in self.authorizers:
            found: Resolution | None = getattr(authorizer, "resolve", lambda *_: None)(user, namespace)
            if found is not None:
                out.rules += found.rules
                out.problems += found.problems
                out.incomplete = out.incomplete or found.incomplete
        return out

    async def decide(self, a: Attributes) -> Decision:
        """authorize, awaited where it must be."""
        answer = self.authorize(a)
        return await answer if inspect.isawaitable(answer) else answer


def refusal(a: Attributes, reason: str = "") -> StatusError:
    """The 403 for what was not allowed (responsewriters.ForbiddenStatusError)."""
    message = forbidden_message(a)
    if reason:
        message += f": {reason}"
    if not a.is_resource:
        return StatusError(403, "Forbidden", f"forbidden: {message}", {})
    return forbidden(a.group, a.resource, a.name, message)


def forbidden_message(a: Attributes) -> str:
    user = quoted(a.user.name)
    if not a.is_resource:
        return f"User {user} cannot {a.verb} path {quoted(a.path)}"
    resource = f"{a.resource}/{a.subresource}" if a.subresource else a.resource
    where = f"in the namespace {quoted(a.namespace)}" if a.namespace else "at the cluster scope"
    return f"User {user} cannot {a.verb} resource {quoted(resource)} in API group {quoted(a.group)} {where}"
