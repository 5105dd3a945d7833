"""Acting as another user: constrained impersonation, and the old way with the verb `impersonate`.

Source: k8s.io/apiserver/pkg/endpoints/filters/impersonation (KEP-5284).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace

from longshore.machinery.errors import StatusError, bad_request
from longshore.machinery.http import Headers, Request
from longshore.machinery.http.message import BadTarget, unescape
from longshore.master.apiserver.context import Attributes, Decision, UserInfo

from .authorization import refusal
from .users import (
    AUTHENTICATED,
    MASTERS,
    NODES,
    UNAUTHENTICATED,
    account_groups,
    node_username,
    quoted,
    split_account,
    with_group,
)

Authorize = Callable[[Attributes], Decision | Awaitable[Decision]]
NODE_NAME = "authentication.kubernetes.io/node-name"
AUTHENTICATION = "authentication.k8s.io"
_EXTRA = "impersonate-extra-"
_MANY = 4
_EXTRA_KEY = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*(/[!-~]+)?")


def wants(headers: Headers) -> bool:
    """Whether a request asks to act as someone else: cheap, for it is asked of every request."""
    first = headers.first()
    if b"impersonate-user" in first or b"impersonate-group" in first or b"impersonate-uid" in first:
        return True
    return any(name.startswith(b"impersonate-extra-") for name in first)


def wanted_user(request: Request) -> UserInfo:
    """The user whom the headers name; 400 when they name no user but groups or the like."""
    headers = request.headers
    name, uid = headers.get("impersonate-user") or "", headers.get("impersonate-uid") or ""
    groups = tuple(headers.getall("impersonate-group"))
    extra: dict[str, list[str]] = {}
    for field, value in headers.items():
        lower = field.lower()
        if lower.startswith(_EXTRA):
            key = lower[len(_EXTRA) :]
            try:
                key = unescape(key)
            except BadTarget:
                pass
            extra.setdefault(key, []).append(value)
    if not name and (uid or groups or extra):
        shown_groups = f"[]string{{{', '.join(map(quoted, groups))}}}" if groups else "[]string(nil)"
        shown_extra = (
            "map[string][]string{"
            + ", ".join(f"{quoted(k)}:[]string{{{', '.join(map(quoted, v))}}}" for k, v in sorted(extra.items()))
            + "}"
            if extra
            else "map[string][]string(nil)"
        )
        shown = f'&user.DefaultInfo{{Name:"", UID:{quoted(uid)}, Groups:{shown_groups}, Extra:{shown_extra}}}'
        raise bad_request(f"requested {shown} without impersonating a user name")
    return UserInfo(name, uid, groups, extra)


async def impersonate(request: Request, a: Attributes, authorize: Authorize) -> tuple[UserInfo, str]:
    """The user to act as, and the verb of the constrained mode that allows it ("": the old way does).

    `a`: the request's attributes with the real user. StatusError when it is not allowed.
    """
    wanted = wanted_user(request)
    first: StatusError | None = None
    for mode in _modes(wanted, a.user):
        try:
            if mode:
                await _check(authorize, replace(_seen_by(a, mode), verb=f"impersonate-on:{mode}:{a.verb}"))
            return await _as_user(mode, wanted, a.user, authorize), f"impersonate:{mode}" if mode else ""
        except StatusError as error:
            first = first or error
    assert first is not None
    raise first


def _modes(wanted: UserInfo, requestor: UserInfo) -> list[str]:
    """The modes that fit, in upstream's order; "" is the old way."""
    node, account = node_username(wanted.name), split_account(wanted.name)
    only_name = not (wanted.uid or wanted.groups or wanted.extra)
    modes: list[str] = []
    if node is not None and only_name:
        if split_account(requestor.name) is not None and list(requestor.extra.get(NODE_NAME, ())) == [node]:
            modes.append("associated-node")
        modes.append("arbitrary-node")
    if account is not None and only_name:
        modes.append("serviceaccount")
    if node is None and account is None:
        modes.append("user-info")
    return [*modes, ""]


def _seen_by(a: Attributes, mode: str) -> Attributes:
    if mode != "associated-node":
        return a
    # the decision must hold for the same account on every node
    keys = {"authentication.kubernetes.io/associated-node-keys": sorted(a.user.extra)}
    return replace(a, user=UserInfo(a.user.name, a.user.uid, a.user.groups, keys))


async def _as_user(mode: str, wanted: UserInfo, requestor: UserInfo, authorize: Authorize) -> UserInfo:
    constrained = bool(mode)
    verb = f"impersonate:{mode}" if constrained else "impersonate"
    group = AUTHENTICATION if constrained else ""

    def ask(resource: str, name: str, *, subresource: str = "", namespace: str = "", group: str = group) -> Attributes:
        made = Attributes(requestor, verb, group, "v1", resource, subresource, namespace, name)
        return _seen_by(made, mode)

    groups = wanted.groups
    account, node = split_account(wanted.name), node_username(wanted.name)
    if constrained and node is not None:
        name = "*" if mode == "associated-node" else node
        await _check(authorize, ask("nodes", name))
        groups = (NODES,)
    elif account is not None:
        await _check(authorize, ask("serviceaccounts", account[1], namespace=account[0]))
        groups = groups or account_groups(account[0])
    else:
        await _check(authorize, ask("users", wanted.name))
    if wanted.uid:
        await _check(authorize, ask("uids", wanted.uid, group=AUTHENTICATION))
    await _check_groups(wanted.groups, constrained, authorize, lambda name: ask("groups", name))
    await _check_extra(
        wanted, constrained, authorize, lambda key, v: ask("userextras", v, subresource=key, group=AUTHENTICATION)
    )
    if wanted.name == "system:anonymous":
        groups = with_group(groups, UNAUTHENTICATED)
    elif UNAUTHENTICATED not in groups:
        groups = with_group(groups, AUTHENTICATED)
    return UserInfo(wanted.name, wanted.uid, groups, wanted.extra)


async def _check_groups(
    groups: tuple[str, ...], constrained: bool, authorize: Authorize, ask: Callable[[str], Attributes]
) -> None:
    if not groups:
        return
    if constrained:
        if "" in groups:
            raise refusal(ask(""), "impersonating the empty string group is not allowed")
        if MASTERS in groups:
            raise refusal(ask(MASTERS), "impersonating the system:masters group is not allowed")
        if len(groups) >= _MANY and await _allowed(authorize, ask("*")):
            return
    for group in groups:
        await _check(authorize, ask(group))


async def _check_extra(
    wanted: UserInfo, constrained: bool, authorize: Authorize, ask: Callable[[str, str], Attributes]
) -> None:
    extra = wanted.extra
    if not extra:
        return
    if constrained:
        for key, values in extra.items():
            problem = ""
            if not key:
                problem = "impersonating the empty string key in extra is not allowed"
            elif not _EXTRA_KEY.fullmatch(key) or "/" not in key:
                problem = f"impersonating an invalid key in extra is not allowed: {quoted(key)}"
            elif "" in values:
                problem = "impersonating the empty string value in extra is not allowed"
            if problem:
                raise refusal(ask("", ""), problem)
        many = len(extra) >= _MANY or sum(map(len, extra.values())) >= _MANY
        if many and await _allowed(authorize, ask("*", "*")):
            return
    for key, values in extra.items():
        for value in values:
            await _check(authorize, ask(key, value))


async def _allowed(authorize: Authorize, a: Attributes) -> bool:
    decision = authorize(a)
    return (await decision if inspect.isawaitable(decision) else decision).allowed


async def _check(authorize: Authorize, a: Attributes) -> None:
    answer = authorize(a)
    decision = await answer if inspect.isawaitable(answer) else answer
    if not decision.allowed:
        raise refusal(a, decision.reason)
