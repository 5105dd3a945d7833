"""AuthenticationConfiguration and AuthorizationConfiguration files.

Source: k8s.io/apiserver/pkg/apis/apiserver/v1 and validation; KEP-3331 (structured authentication), KEP-3221.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from longshore.api import cel, times
from longshore.master.apiserver import configfile
from longshore.master.apiserver.configfile import ConfigurationError
from longshore.master.apiserver.context import UserInfo

from .authentication import Anonymous
from .jwt import TokenError
from .oidc import ALGORITHMS, OIDC
from .webhooks import AuthorizationWebhook

GROUP = "apiserver.config.k8s.io"
Object = dict[str, Any]


def _read(file: Path, kind: str, versions: tuple[str, ...]) -> Object:
    return configfile.read(file, kind, [f"{GROUP}/{v}" for v in versions])


def _only(obj: Object, path: str, *known: str) -> None:
    unknown = [k for k in obj if k not in known]
    if unknown:
        raise ConfigurationError(f'{path}: unknown field "{unknown[0]}"')


def _program(text: str, path: str, variable: str, *results: str) -> cel.Program:
    try:
        return cel.compile(text, {variable: "dyn"}, results)
    except cel.CompileError as error:
        raise ConfigurationError(f"{path}: Invalid value: {text!r}: {error}") from error


def _run(program: cel.Program, variable: str, value: Any) -> Any:
    try:
        return program.run({variable: value})
    except cel.EvalError as error:
        raise TokenError(f"oidc: error evaluating expression {program.text!r}: {error}") from error


# ---- authentication


def authentication(file: Path) -> tuple[list[OIDC], Anonymous | None]:
    """The issuers of an AuthenticationConfiguration, and its word on anonymous requests (None: it says nothing)."""
    found = _read(file, "AuthenticationConfiguration", ("v1", "v1beta1", "v1alpha1"))
    _only(found, str(file), "kind", "apiVersion", "jwt", "anonymous")
    anonymous: Anonymous | None = None
    if (given := found.get("anonymous")) is not None:
        _only(given, "anonymous", "enabled", "conditions")
        conditions = given.get("conditions") or []
        if conditions and not given.get("enabled"):
            raise ConfigurationError(
                "anonymous.conditions: Invalid value: enabled should be set to true when conditions are defined"
            )
        paths = frozenset(str(c.get("path", "")) for c in conditions) if conditions else None
        anonymous = Anonymous(bool(given.get("enabled")), paths)
    issuers: list[OIDC] = []
    seen: set[str] = set()
    for i, entry in enumerate(found.get("jwt") or []):
        path = f"jwt[{i}]"
        _only(entry, path, "issuer", "claimValidationRules", "claimMappings", "userValidationRules")
        url = str((entry.get("issuer") or {}).get("url") or "")
        if url in seen:
            raise ConfigurationError(f'{path}.issuer.url: Duplicate value: "{url}"')
        seen.add(url)
        issuers.append(_issuer(entry, path))
    return issuers, anonymous


def _issuer(entry: Object, path: str) -> OIDC:
    issuer = entry.get("issuer") or {}
    _only(issuer, f"{path}.issuer", "url", "discoveryURL", "certificateAuthority", "audiences", "audienceMatchPolicy")
    audiences = [str(a) for a in issuer.get("audiences") or ()]
    if not issuer.get("url"):
        raise ConfigurationError(f"{path}.issuer.url: Required value: URL is required")
    if not audiences:
        raise ConfigurationError(
            f"{path}.issuer.audiences: Required value: at least one {path}.issuer.audiences is required"
        )
    if len(audiences) > 1 and issuer.get("audienceMatchPolicy") != "MatchAny":
        raise ConfigurationError(
            f"{path}.issuer.audienceMatchPolicy: Invalid value: audienceMatchPolicy must be MatchAny for multiple audiences"
        )
    try:
        return OIDC(
            str(issuer["url"]),
            "",
            audiences=audiences,
            discovery_url=str(issuer.get("discoveryURL") or ""),
            ca_data=issuer.get("certificateAuthority"),
            signing_algorithms=sorted(ALGORITHMS),
            mapping=_mapping(entry, path),
        )
    except ConfigurationError:
        raise
    except ValueError as error:
        raise ConfigurationError(f"{path}.issuer.url: Invalid value: {error}") from error


def _mapping(entry: Object, path: str) -> Callable[[dict[str, Any]], UserInfo]:
    """How claims become a user, checked before and after."""
    mappings = entry.get("claimMappings") or {}
    where = f"{path}.claimMappings"
    _only(mappings, where, "username", "groups", "uid", "extra")
    if not mappings.get("username"):
        raise ConfigurationError(f"{where}.username: Required value: claim or expression is required")
    username = _value(mappings["username"], f"{where}.username", "string", prefixed=True)
    groups = _value(mappings.get("groups") or {}, f"{where}.groups", "", prefixed=True, optional=True)
    uid = _value(mappings.get("uid") or {}, f"{where}.uid", "string", optional=True)
    extra = []
    for i, item in enumerate(mappings.get("extra") or ()):
        key = str(item.get("key") or "")
        if "/" not in key or key != key.lower():
            raise ConfigurationError(
                f'{where}.extra[{i}].key: Invalid value: "{key}": key must be a lowercase domain-prefixed path'
            )
        extra.append((key, _program(str(item.get("valueExpression") or ""), f"{where}.extra[{i}]", "claims")))
    rules = [
        _rule(r, f"{path}.claimValidationRules[{i}]", "claims")
        for i, r in enumerate(entry.get("claimValidationRules") or ())
    ]
    checks = [
        _rule(r, f"{path}.userValidationRules[{i}]", "user")
        for i, r in enumerate(entry.get("userValidationRules") or ())
    ]

    def user(claims: dict[str, Any]) -> UserInfo:
        for rule in rules:
            rule(claims)
        name = username(claims)
        if not isinstance(name, str) or not name:
            raise TokenError("oidc: username claim or expression gave no name")
        listed = groups(claims)
        texts = [listed] if isinstance(listed, str) else list(listed or ())
        id = uid(claims) or ""
        found = {k: _strings(_run(p, "claims", claims)) for k, p in extra}
        made = UserInfo(name, str(id), tuple(_strings(texts)), {k: v for k, v in found.items() if v})
        shown = {"username": made.name, "uid": made.uid, "groups": list(made.groups), "extra": dict(made.extra)}
        for check in checks:
            check(shown)
        return made

    return user


def _strings(value: Any) -> list[str]:
    """A string or a list of them, without empty ones."""
    listed = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else None
    if listed is None and value is not None:
        raise TokenError("oidc: a claim or expression gave no string and no list of strings")
    out = [v for v in listed or () if v != ""]
    if not all(isinstance(v, str) for v in out):
        raise TokenError("oidc: a claim or expression gave no list of strings")
    return out


def _value(
    given: Object, path: str, result: str, *, prefixed: bool = False, optional: bool = False
) -> Callable[[dict[str, Any]], Any]:
    """What takes a mapping's value out of claims."""
    _only(given, path, "claim", "prefix", "expression")
    claim, expression = str(given.get("claim") or ""), str(given.get("expression") or "")
    if claim and expression:
        raise ConfigurationError(f"{path}: Invalid value: claim and expression can't both be set")
    if expression:
        if "prefix" in given:
            raise ConfigurationError(f"{path}: Invalid value: prefix can't be set when expression is set")
        program = _program(expression, path, "claims", *([result] if result else []))
        return lambda claims: _run(program, "claims", claims)
    if not claim:
        if not optional:
            raise ConfigurationError(f"{path}: Required value: claim or expression is required")
        return lambda claims: None
    prefix = given.get("prefix")
    if prefixed and prefix is None:
        raise ConfigurationError(
            f"{path}.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing"
        )

    def value(claims: dict[str, Any]) -> Any:
        found = claims.get(claim)
        if claim == "email" and claims.get("email_verified", True) is not True:
            raise TokenError("oidc: email not verified")
        if isinstance(found, list):
            return [f"{prefix or ''}{v}" for v in found if isinstance(v, str)]
        return f"{prefix or ''}{found}" if isinstance(found, str) and found else None

    return value


def _rule(given: Object, path: str, variable: str) -> Callable[[dict[str, Any]], None]:
    """A check of claims or of the user made from them."""
    if variable == "claims" and given.get("claim"):
        _only(given, path, "claim", "requiredValue")
        claim, wanted = str(given["claim"]), str(given.get("requiredValue") or "")

        def required(claims: dict[str, Any]) -> None:
            if claim not in claims:
                raise TokenError(f"oidc: required claim {claim} not present in ID token")
            if claims[claim] != wanted:
                raise TokenError(
                    f"oidc: required claim {claim} value does not match. Got = {claims[claim]}, want = {wanted}"
                )

        return required
    _only(given, path, "expression", "message")
    program = _program(str(given.get("expression") or ""), path, variable, "bool")
    message = str(given.get("message") or "") or f"expression {program.text!r} evaluated to false"

    def holds(value: dict[str, Any]) -> None:
        if _run(program, variable, value) is not True:
            raise TokenError(f"oidc: validation failed: {message}")

    return holds


# ---- authorization


def authorization(file: Path) -> list[str | AuthorizationWebhook]:
    """The authorizers of an AuthorizationConfiguration: names of modes, and webhooks."""
    found = _read(file, "AuthorizationConfiguration", ("v1", "v1beta1", "v1alpha1"))
    _only(found, str(file), "kind", "apiVersion", "authorizers")
    out: list[str | AuthorizationWebhook] = []
    names: set[str] = set()
    for i, entry in enumerate(found.get("authorizers") or ()):
        path = f"authorizers[{i}]"
        _only(entry, path, "type", "name", "webhook")
        kind, name = entry.get("type"), str(entry.get("name") or "")
        if not name or name in names:
            raise ConfigurationError(f'{path}.name: {"Duplicate" if name else "Required"} value: "{name}"')
        names.add(name)
        if kind == "Webhook":
            out.append(_webhook(entry.get("webhook") or {}, f"{path}.webhook"))
        elif kind in ("Node", "RBAC", "AlwaysAllow", "AlwaysDeny"):
            if kind in out:
                raise ConfigurationError(f'{path}.type: Duplicate value: "{kind}"')
            out.append(str(kind))
        else:
            raise ConfigurationError(f'{path}.type: Unsupported value: "{kind}"')
    if not out:
        raise ConfigurationError("authorizers: Required value: at least one authorization mode must be defined")
    return out


def _seconds(given: Object, name: str, default: float, path: str) -> float:
    text = given.get(name)
    if text is None:
        return default
    try:
        return times.parse_duration(str(text)) / 1e9
    except ValueError as error:
        raise ConfigurationError(f"{path}.{name}: Invalid value: {text!r}: {error}") from error


def _webhook(given: Object, path: str) -> AuthorizationWebhook:
    _only(
        given, path, "timeout", "authorizedTTL", "unauthorizedTTL", "subjectAccessReviewVersion", "connectionInfo",
        "matchConditionSubjectAccessReviewVersion", "failurePolicy", "matchConditions", "cacheAuthorizedRequests",
        "cacheUnauthorizedRequests",
    )  # fmt: skip
    connection = given.get("connectionInfo") or {}
    if connection.get("type") != "KubeConfigFile" or not connection.get("kubeConfigFile"):
        raise ConfigurationError(f"{path}.connectionInfo: Required value: a KubeConfigFile is required")
    if given.get("subjectAccessReviewVersion") != "v1":
        raise ConfigurationError(f'{path}.subjectAccessReviewVersion: Unsupported value: supported values: "v1"')
    policy = given.get("failurePolicy")
    if policy not in ("NoOpinion", "Deny"):
        raise ConfigurationError(
            f'{path}.failurePolicy: Unsupported value: "{policy}": supported values: "NoOpinion", "Deny"'
        )
    timeout = _seconds(given, "timeout", 0.0, path)
    if not 0 < timeout <= 30:
        raise ConfigurationError(f"{path}.timeout: Invalid value: must be greater than 0s and at most 30s")
    conditions = [
        _program(str(c.get("expression") or ""), f"{path}.matchConditions[{i}].expression", "request", "bool")
        for i, c in enumerate(given.get("matchConditions") or ())
    ]

    def applies(spec: dict[str, Any]) -> bool:
        problem: cel.EvalError | None = None
        for condition in conditions:
            try:
                if condition.run({"request": spec}) is not True:
                    return False
            except cel.EvalError as error:
                problem = problem or error
        if problem is not None:
            raise ValueError(str(problem))
        return True

    return AuthorizationWebhook(
        Path(connection["kubeConfigFile"]),
        timeout=timeout,
        allowed_seconds=_seconds(given, "authorizedTTL", 300.0, path),
        denied_seconds=_seconds(given, "unauthorizedTTL", 30.0, path),
        deny_on_error=policy == "Deny",
        applies=applies if conditions else None,
    )
