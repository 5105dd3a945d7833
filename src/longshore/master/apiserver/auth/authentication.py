"""Who asks: each way of showing it in upstream's order, and anonymous where none is used.

Source: k8s.io/kubernetes/pkg/kubeapiserver/authenticator/config.go, k8s.io/apiserver/pkg/authentication.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import inspect
import logging
import time
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, Protocol

from longshore.machinery.errors import StatusError, unauthorized
from longshore.machinery.http import Request
from longshore.machinery.http.message import Peer
from longshore.master.apiserver.context import ANONYMOUS, UserInfo

from .certificates import Authorities, CertificateError
from .jwt import TokenError
from .users import AUTHENTICATED, CREDENTIAL_ID, UNAUTHENTICATED, with_group

log = logging.getLogger("longshore.apiserver.auth")
_UID_OID = "1.3.6.1.4.1.57683.2"
_REFUSED_SECONDS = 10.0
_WEBSOCKET_BEARER = "base64url.bearer.authorization.k8s.io."


class Authenticated(NamedTuple):
    """Whom a token is of, and for which of the wanted audiences it is good."""

    user: UserInfo
    audiences: list[str]


class TokenAuthenticator(Protocol):
    def authenticate_token(
        self, token: str, audiences: Sequence[str]
    ) -> Authenticated | Awaitable[Authenticated | None] | None:
        """None when the token is not of this kind; TokenError when it is, but not good."""
        ...


class Tokens:
    """Several kinds of tokens, asked one after another."""

    def __init__(self, kinds: Sequence[TokenAuthenticator]) -> None:
        self.kinds = list(kinds)

    def authenticate_token(self, token: str, audiences: Sequence[str] = ()) -> Authenticated | Awaitable[Authenticated]:
        """Whom a token is of. TokenError with all that was wrong when it is of nobody."""
        problems: list[str] = []
        for i, kind in enumerate(self.kinds):
            try:
                answer = kind.authenticate_token(token, audiences)
            except TokenError as error:
                problems.append(str(error))
                continue
            if inspect.isawaitable(answer):
                return self._go_on(token, audiences, i, answer, problems)
            if answer is not None:
                return answer
        raise _bad_token(problems)

    async def _go_on(
        self, token: str, audiences: Sequence[str], i: int, first: Awaitable[Authenticated | None], problems: list[str]
    ) -> Authenticated:
        answer: Any = first
        while True:
            try:
                found = await answer if inspect.isawaitable(answer) else answer
                if found is not None:
                    return found  # type: ignore[no-any-return]
            except TokenError as error:
                problems.append(str(error))
            i += 1
            if i == len(self.kinds):
                raise _bad_token(problems)
            try:
                answer = self.kinds[i].authenticate_token(token, audiences)
            except TokenError as error:
                problems.append(str(error))
                answer = None


def _bad_token(problems: list[str]) -> TokenError:
    texts = ["invalid bearer token", *dict.fromkeys(problems)]
    return TokenError(texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]")


def bearer(request: Request) -> str:
    """The bearer token of a request; "" without one. Browsers give it as a WebSocket subprotocol."""
    field = request.headers.get("authorization")
    if field is not None:
        scheme, _, token = field.strip().partition(" ")
        if scheme.lower() == "bearer":
            return token.strip()
    if request.wants_upgrade and (request.headers.get("upgrade") or "").lower() == "websocket":
        for value in request.headers.getall("sec-websocket-protocol"):
            for protocol in value.split(","):
                protocol = protocol.strip()
                if protocol.startswith(_WEBSOCKET_BEARER):
                    text = protocol[len(_WEBSOCKET_BEARER) :]
                    try:
                        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
                    except (binascii.Error, UnicodeDecodeError):
                        return ""
    return ""


class ClientCertificates:
    """Users by client certificate: CN is the name, O the groups. authorities: who may vouch for them."""

    def __init__(self, authorities: Authorities) -> None:
        self.authorities = authorities

    def authenticate(self, peer: Peer) -> UserInfo | None:
        """The user whom a certificate names that the authorities vouch for; None when it names nobody."""
        name, uid = "", ""
        groups: list[str] = []
        for part in (peer.certificate or {}).get("subject", ()):
            for field, value in part:
                if field == "commonName":
                    name = value
                elif field == "organizationName":
                    groups.append(value)
                elif field == _UID_OID:
                    uid = value
        if not name:
            return None
        extra = {}
        if peer.certificate_der:
            extra[CREDENTIAL_ID] = [f"X509SHA256={hashlib.sha256(peer.certificate_der).hexdigest()}"]
        return UserInfo(name, uid, tuple(groups), extra)


class RequestHeaders:
    """Users whom an authenticating proxy (an aggregator) names in header fields.

    authorities: the CAs for proxies' certificates. allowed_names: CNs of proxies, any when empty.
    """

    def __init__(
        self,
        authorities: Authorities,
        allowed_names: Sequence[str] = (),
        username_headers: Sequence[str] = ("X-Remote-User",),
        group_headers: Sequence[str] = ("X-Remote-Group",),
        extra_prefixes: Sequence[str] = ("X-Remote-Extra-",),
        uid_headers: Sequence[str] = ("X-Remote-Uid",),
    ) -> None:
        self.authorities = authorities
        self._allowed = frozenset(allowed_names)
        self._names, self._groups, self._uids = username_headers, group_headers, uid_headers
        self._prefixes = [p.lower() for p in extra_prefixes]

    def authenticate(self, request: Request) -> UserInfo | None:
        headers = request.headers
        name = next((v for n in self._names if (v := headers.get(n))), "")
        if not name or not self._trusted(request.peer):
            return None
        groups = tuple(v for n in self._groups for v in headers.getall(n))
        uid = next((v for n in self._uids if (v := headers.get(n))), "")
        extra: dict[str, list[str]] = {}
        for field, value in headers.items():
            lower = field.lower()
            for prefix in self._prefixes:
                if lower.startswith(prefix):
                    extra.setdefault(_unescape(lower[len(prefix) :]), []).append(value)
        return UserInfo(name, uid, groups, extra)

    def _trusted(self, peer: Peer) -> bool:
        if not peer.certificate:
            return False
        if self._allowed:
            names = [v for part in peer.certificate.get("subject", ()) for f, v in part if f == "commonName"]
            if not names or names[-1] not in self._allowed:
                return False
        try:
            self.authorities.verify(peer)
        except CertificateError as error:
            log.debug("Unable to authenticate the request: %s", error)
            return False
        return True


def _unescape(text: str) -> str:
    from longshore.machinery.http.message import BadTarget, unescape

    try:
        return unescape(text)
    except BadTarget:
        return text


class _Shown:
    """What is kept with a connection: the user of its certificate, None where there is none.

    refused: the certificate is no good. until: when to look at it again, in seconds of the epoch (when it ends);
    generation: of the CAs that were asked.
    """

    __slots__ = ("generation", "refused", "until", "user")

    def __init__(self, user: UserInfo | None, until: float, generation: int, refused: bool = False) -> None:
        self.user, self.until, self.generation, self.refused = user, until, generation, refused


class Anonymous(NamedTuple):
    """Whether a request may show nothing, and on which paths (None: on all)."""

    enabled: bool
    paths: frozenset[str] | None = None


class Authentication:
    """All ways together. A request that shows nothing is anonymous; one that shows something wrong gets 401."""

    def __init__(
        self,
        *,
        certificates: ClientCertificates | None = None,
        proxies: RequestHeaders | None = None,
        tokens: Tokens | None = None,
        anonymous: Anonymous = Anonymous(True),
    ) -> None:
        self._certificates = certificates
        self._proxies = proxies
        self.tokens = tokens or Tokens(())
        self._anonymous = anonymous

    def authenticate(self, request: Request) -> UserInfo | Awaitable[UserInfo]:
        """The user of a request. StatusError 401."""
        peer = request.peer
        if self._proxies is not None and peer.certificate and (user := self._proxies.authenticate(request)):
            return _authenticated(user)
        refused = False
        if peer.certificate and self._certificates is not None:
            shown = peer.context
            if (
                not isinstance(shown, _Shown)
                or shown.generation != self._certificates.authorities.generation
                or shown.until < time.time()
            ):
                shown = peer.context = self._show(self._certificates, peer)
            if shown.user is not None:
                return shown.user
            refused = shown.refused
        if "authorization" in request.headers or request.wants_upgrade:
            token = bearer(request)
            if token:
                return self._by_token(token)
        anonymous = self._anonymous
        if not refused and anonymous.enabled and (anonymous.paths is None or request.path in anonymous.paths):
            return ANONYMOUS
        raise unauthorized()

    def _show(self, certificates: ClientCertificates, peer: Peer) -> _Shown:
        """What a connection's certificate is good for."""
        authorities = certificates.authorities
        try:
            until = authorities.verify(peer)
        except CertificateError as error:
            log.info("Unable to authenticate the request: %s", error)
            return _Shown(None, time.time() + _REFUSED_SECONDS, authorities.generation, refused=True)
        found = certificates.authenticate(peer)
        return _Shown(_authenticated(found) if found is not None else None, until, authorities.generation)

    def _by_token(self, token: str) -> UserInfo | Awaitable[UserInfo]:
        try:
            found = self.tokens.authenticate_token(token)
        except TokenError as error:
            log.debug("Unable to authenticate the request: %s", error)
            raise unauthorized() from None
        if inspect.isawaitable(found):
            return self._awaited(found)
        return _authenticated(found.user)

    async def _awaited(self, answer: Awaitable[Authenticated]) -> UserInfo:
        try:
            return _authenticated((await answer).user)
        except TokenError as error:
            log.debug("Unable to authenticate the request: %s", error)
            raise unauthorized() from None

    async def review(self, token: str, audiences: Sequence[str]) -> Authenticated:
        """For TokenReview: whom a token is of. TokenError with upstream's words."""
        answer = self.tokens.authenticate_token(token, audiences)
        found = await answer if inspect.isawaitable(answer) else answer
        return Authenticated(_authenticated(found.user), found.audiences)


def _authenticated(user: UserInfo) -> UserInfo:
    """Adds the group of all who are known."""
    if AUTHENTICATED in user.groups or UNAUTHENTICATED in user.groups or user.name == "system:anonymous":
        return user
    return UserInfo(user.name, user.uid, with_group(user.groups, AUTHENTICATED), user.extra)


__all__ = [
    "Authenticated",
    "Authentication",
    "ClientCertificates",
    "RequestHeaders",
    "StatusError",
    "TokenAuthenticator",
    "TokenError",
    "Tokens",
    "bearer",
]
