"""Authentication and authorization of one server, built from its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longshore.master.apiserver.configfile import ConfigurationError
from longshore.master.apiserver.context import API, AdmissionPlugin, Authorizer

from . import policy
from .authentication import Anonymous, Authentication, ClientCertificates, RequestHeaders, TokenAuthenticator, Tokens
from .authorization import AlwaysAllow, AlwaysDeny, Authorization, CatchUp
from .certificates import Authorities
from .escalation import EscalationCheck
from .node import NodeAuthorizer
from .rbac import RBAC
from .reviews import Reviews
from .serviceaccounts import Keys, ServiceAccountTokens, TokenIssuer
from .statictokens import BootstrapTokens, TokenFile


@dataclass(slots=True)
class Options:
    """How users are known and what they may. Paths are PEM files unless said otherwise.

    issuers: of service account tokens, the first issues. signing_key signs them, verification_keys are accepted besides.
    proxy_ca: CAs of authenticating proxies; proxy_names: CNs of those, any when empty. token_file: CSV.
    token_webhook, authorization_webhook: kubeconfig files. oidc: arguments of oidc.OIDC, or none.
    authentication_config, authorization_config: AuthenticationConfiguration and AuthorizationConfiguration files.
    modes: "Node", "RBAC", "Webhook", "AlwaysAllow", "AlwaysDeny", in order; the authorization file goes before them.
    """

    client_ca: Path | None = None
    proxy_ca: Path | None = None
    proxy_names: Sequence[str] = ()
    issuers: list[str] = field(default_factory=lambda: ["https://kubernetes.default.svc.cluster.local"])
    signing_key: Path | None = None
    verification_keys: Sequence[Path] = ()
    api_audiences: list[str] = field(default_factory=list)
    max_token_seconds: int = 0
    extend_tokens: bool = True
    token_file: Path | None = None
    bootstrap_tokens: bool = True
    oidc: dict[str, Any] | None = None
    token_webhook: Path | None = None
    authorization_webhook: Path | None = None
    authentication_config: Path | None = None
    authorization_config: Path | None = None
    modes: Sequence[str] = ("Node", "RBAC")
    anonymous: bool = True


class Access:
    """authentication, authorization, reviews; issuer (None without a signing key), keys, rbac (None without that mode)."""

    def __init__(self, api: API, options: Options, catch_up: CatchUp = lambda: None) -> None:
        """catch_up: see Authorization."""
        self.options = options
        self._api = api
        audiences = list(options.api_audiences) or options.issuers[:1]
        kinds: list[TokenAuthenticator] = []
        if options.token_file is not None:
            kinds.append(TokenFile(options.token_file))
        self.keys: Keys | None = None
        self.issuer: TokenIssuer | None = None
        if options.signing_key is not None or options.verification_keys:
            self.keys = Keys(options.signing_key, options.verification_keys)
            accounts = ServiceAccountTokens(api, self.keys, options.issuers, audiences)
            kinds.append(accounts)
            if options.signing_key is not None:
                self.issuer = TokenIssuer(
                    api, accounts, max_expiration=options.max_token_seconds, extend=options.extend_tokens
                )
        if options.bootstrap_tokens:
            kinds.append(BootstrapTokens(api))
        if options.oidc is not None:
            from .oidc import OIDC

            kinds.append(OIDC(**options.oidc))
        anonymous = Anonymous(options.anonymous, None)
        self._anonymous: Anonymous | None = None
        # Where the issuers of the configuration file stand among the kinds of tokens: from, to.
        self._issuers = (len(kinds), len(kinds))
        if options.authentication_config is not None:
            from .configuration import authentication

            issuers, said = authentication(options.authentication_config)
            kinds += issuers
            self._issuers = (self._issuers[0], len(kinds))
            self._anonymous, anonymous = said, said or anonymous
        if options.token_webhook is not None:
            from .webhooks import TokenWebhook

            kinds.append(TokenWebhook(options.token_webhook))
        certificates = proxies = None
        self.authorities: list[Authorities] = []
        if options.proxy_ca is not None:
            self.authorities.append(Authorities(options.proxy_ca))
            proxies = RequestHeaders(self.authorities[-1], options.proxy_names)
        if options.client_ca is not None:
            self.authorities.append(Authorities(options.client_ca))
            certificates = ClientCertificates(self.authorities[-1])
        self.authentication = Authentication(
            certificates=certificates, proxies=proxies, tokens=Tokens(kinds), anonymous=anonymous
        )
        self.rbac: RBAC | None = None
        self._modes: dict[str, Authorizer] = {}
        modes: Sequence[str | Authorizer] = options.modes
        if options.authorization_config is not None:
            from .configuration import authorization

            modes = authorization(options.authorization_config)
        for mode in modes:
            if isinstance(mode, str):
                self._modes[mode] = self._mode(mode)
        self.authorization = Authorization([self._modes[m] if isinstance(m, str) else m for m in modes], catch_up)
        self.reviews = Reviews(self.authentication, self.authorization, audiences)
        self.plugins: list[AdmissionPlugin] = []
        if self.rbac is not None:
            self.plugins.append(EscalationCheck(self.rbac, self.authorization))

    def _mode(self, mode: str) -> Authorizer:
        if mode == "RBAC":
            self.rbac = rbac = RBAC(self._api)
            return rbac
        if mode == "Node":
            return NodeAuthorizer(self._api, policy.rules_of("system:node"))
        if mode == "AlwaysAllow":
            return AlwaysAllow()
        if mode == "AlwaysDeny":
            return AlwaysDeny()
        if mode == "Webhook" and self.options.authorization_webhook is not None:
            from .webhooks import AuthorizationWebhook

            return AuthorizationWebhook(self.options.authorization_webhook)
        raise ConfigurationError(f"unknown authorization mode {mode} specified")

    async def reload_authentication(self) -> None:
        """Takes the AuthenticationConfiguration as it is now. ValueError or OSError, and nothing changes."""
        from .configuration import authentication

        assert self.options.authentication_config is not None
        issuers, anonymous = authentication(self.options.authentication_config)
        if anonymous != self._anonymous:
            raise ValueError("anonymous: Forbidden: changed from initial configuration file")
        start, end = self._issuers
        self.authentication.tokens.kinds[start:end] = issuers
        self._issuers = (start, start + len(issuers))

    async def reload_authorization(self) -> None:
        """Takes the AuthorizationConfiguration as it is now. ValueError or OSError, and nothing changes."""
        from .configuration import authorization

        assert self.options.authorization_config is not None
        made: list[Authorizer] = []
        for mode in authorization(self.options.authorization_config):
            if not isinstance(mode, str):
                made.append(mode)
            elif mode in self._modes:
                made.append(self._modes[mode])
            elif mode in ("Node", "RBAC"):
                raise ValueError(
                    f"authorizer type {mode} is not allowed if it was not enabled at initial server startup"
                )
            else:
                made.append(self._mode(mode))
        self.authorization.authorizers[:] = made

    async def bootstrap(self) -> None:
        """Makes the roles and bindings that must be there. The namespaces exist by then."""
        if self.rbac is not None:
            await policy.reconcile(self._api)

    @classmethod
    def from_config(cls, api: API, config: Any, catch_up: CatchUp) -> Access:
        """From the server's configuration (server.Config)."""
        keys = list(config.service_account_keys)
        given: dict[str, Any] = {
            "client_ca": config.client_ca,
            "proxy_ca": config.requestheader_ca,
            # not every certificate of that CA may name users: it could be the clients' CA as well
            "proxy_names": ("front-proxy-client",),
            "issuers": [config.service_account_issuer],
            "signing_key": keys[0] if keys else None,
            "verification_keys": keys[1:],
            "api_audiences": list(config.api_audiences),
            "modes": config.authorization_modes,
            "anonymous": config.anonymous,
        }
        return cls(api, Options(**(given | dict(config.extra.get("auth") or {}))), catch_up)
