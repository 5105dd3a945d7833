"""Names and groups that the server itself gives meaning to.

Source: k8s.io/apiserver/pkg/authentication/user, serviceaccount; kubernetes/pkg/auth/nodeidentifier.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from longshore.master.apiserver.context import UserInfo

AUTHENTICATED, UNAUTHENTICATED = "system:authenticated", "system:unauthenticated"
MASTERS, NODES = "system:masters", "system:nodes"
CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"
_NODE, _ACCOUNT = "system:node:", "system:serviceaccount:"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def account_name(namespace: str, name: str) -> str:
    """The user name of a service account."""
    return f"{_ACCOUNT}{namespace}:{name}"


def account_groups(namespace: str) -> tuple[str, str]:
    return ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")


def split_account(user: str) -> tuple[str, str] | None:
    """(namespace, name) of a service account's user name; None for any other."""
    if not user.startswith(_ACCOUNT):
        return None
    namespace, colon, name = user[len(_ACCOUNT) :].partition(":")
    if not colon or not _LABEL.fullmatch(namespace) or len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        return None
    return namespace, name


def node_username(user: str) -> str | None:
    """The node that a user name is of, when it is a valid node name."""
    if not user.startswith(_NODE):
        return None
    name = user[len(_NODE) :]
    return name if len(name) <= 253 and _SUBDOMAIN.fullmatch(name) else None


def node_identity(user: UserInfo) -> str | None:
    """The node that a kubelet speaks for; None when the user is no node."""
    if not user.name.startswith(_NODE) or NODES not in user.groups:
        return None
    return user.name[len(_NODE) :]


def with_group(groups: tuple[str, ...], group: str) -> tuple[str, ...]:
    return groups if group in groups else (*groups, group)


def quoted(text: str) -> str:
    """A string as Go's %q shows it."""
    return json.dumps(text, ensure_ascii=False)


def quoted_list(texts: Iterable[str]) -> str:
    """Strings as Go's %q shows a slice."""
    return "[" + " ".join(quoted(t) for t in texts) + "]"
