"""What one request carries through authentication, authorization and admission: the contracts of those three rooms.

The core composes them in server.py; auth/ and admission/ implement the protocols below and import nothing else of the core.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

Object = dict[str, Any]
Operation = Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]


@dataclass(frozen=True, slots=True)
class UserInfo:
    """Who asks: the result of authentication (user.Info upstream).

    Arguments: name, e.g. "system:serviceaccount:default:default"; uid, "" when unknown; groups; extra, key to values.
    """

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def is_anonymous(self) -> bool:
        return self.name == "system:anonymous"


ANONYMOUS = UserInfo("system:anonymous", groups=("system:unauthenticated",))
LOOPBACK = UserInfo("system:apiserver", groups=("system:authenticated", "system:masters"))


@dataclass(frozen=True, slots=True)
class Attributes:
    """What one request asks for (authorizer.Attributes upstream).

    verb is the API verb ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", or the
    lower-case HTTP method for a non-resource path); path is the URL path. For a resource request the selectors are
    the raw query texts. `group` is "" for the core group; `namespace` and `name` are "" where they do not apply.
    """

    user: UserInfo
    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    is_resource: bool = True
    label_selector: str = ""
    field_selector: str = ""

    @property
    def read_only(self) -> bool:
        return self.verb in ("get", "list", "watch")


@dataclass(frozen=True, slots=True)
class Decision:
    """An authorizer's word: verdict "allow", "deny" (final) or "no opinion" (the next one is asked)."""

    verdict: Literal["allow", "deny", "no opinion"]
    reason: str = ""

    @property
    def allowed(self) -> bool:
        return self.verdict == "allow"


NO_OPINION = Decision("no opinion")


@runtime_checkable
class Authorizer(Protocol):
    def authorize(self, a: Attributes) -> Decision | Awaitable[Decision]: ...


class ObjectReader(Protocol):
    """Read access to the server's own objects from the watch cache: no authorization, no copy across the network.

    Dicts returned are fresh (decoded for this call): the caller may keep and change them.
    """

    def get(self, group: str, resource: str, namespace: str, name: str) -> Object | None:
        """The object in its storage version, None when absent. `namespace` "" for cluster-scoped resources."""
        ...

    def peek(self, group: str, resource: str, namespace: str, name: str) -> Object | None:
        """As get, for who only looks: the dict is shared with others who look and must not be changed."""
        ...

    def list(
        self, group: str, resource: str, namespace: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        """All objects (of one namespace unless ""), restricted to those that carry all of `labels`."""
        ...

    def generation(self, group: str, resource: str) -> int:
        """A number that changes whenever any object of that resource changes: the key for what is derived from them."""
        ...

    def on_change(self, group: str, resource: str, listener: Callable[[str, str], None]) -> None:
        """Call listener(namespace, name) for each object present now, and whenever one is added, changed or deleted.

        The listener only takes note (it runs on the path of every write); who needs the object reads it with get later.
        """
        ...


class API(ObjectReader, Protocol):
    """What admission plugins, authenticators and authorizers may do with the server's own objects."""

    async def get_live(self, group: str, resource: str, namespace: str, name: str) -> Object | None:
        """As get, but read from the store: for the few decisions that must not act on a cache that lags."""
        ...

    async def create(self, group: str, resource: str, namespace: str, obj: Object) -> Object:
        """Create as the server itself (system:apiserver), through defaults and validation; StatusError on refusal."""
        ...

    async def update(self, group: str, resource: str, namespace: str, obj: Object, subresource: str = "") -> Object:
        """Update as the server itself; a conflict (409) when metadata.resourceVersion is set and outdated."""
        ...

    async def delete(self, group: str, resource: str, namespace: str, name: str) -> None: ...

    async def authorize(self, a: Attributes) -> Decision:
        """Ask the composed authorizers (for access reviews, escalation checks, CEL's authorizer)."""
        ...

    def resource(self, group: str, plural: str) -> Any | None:
        """The served resource (api.kinds.Resource or a custom one with the same attributes), None when not served."""
        ...


@dataclass(slots=True)
class AdmissionRequest:
    """One write on its way through admission (admission.Attributes upstream).

    `object` is the new object in the request's version (None for DELETE; the options object, e.g. PodExecOptions, for
    CONNECT); `old` the present one (None for CREATE). `options` is the CreateOptions/UpdateOptions/PatchOptions/
    DeleteOptions object. `kind` is the object's (group, version, kind), e.g. ("autoscaling", "v1", "Scale") for scale.
    `warnings` go out as Warning headers; `annotations` into the audit event.
    """

    attributes: Attributes
    operation: Operation
    object: Object | None
    old: Object | None
    options: Object
    dry_run: bool
    api: API
    kind: tuple[str, str, str] = ("", "", "")
    warnings: list[str] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def user(self) -> UserInfo:
        return self.attributes.user


class AdmissionPlugin(Protocol):
    name: str

    def handles(self, operation: str, resource: str, subresource: str = "", group: str = "") -> bool:
        """Whether admit or validate may have something to say on this operation: checked before any task is made."""
        ...

    async def admit(self, a: AdmissionRequest) -> None:
        """May change a.object; raises StatusError to refuse."""
        ...

    async def validate(self, a: AdmissionRequest) -> None:
        """Raises StatusError to refuse; changes nothing."""
        ...
