"""The flags of authentication and authorization, with upstream's names.

Source: kube-apiserver --help, sections authentication and authorization.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longshore.master.apiserver.configfile import ConfigurationError
from longshore.master.apiserver.flagtypes import boolean, whole_seconds


def _claim(text: str) -> tuple[str, str]:
    name, sep, value = text.partition("=")
    if not sep:
        raise argparse.ArgumentTypeError(f"{text} must be formatted as key=value")
    return name, value


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = parser.add_argument
    add("--token-auth-file", type=Path, help="CSV of token,user,uid,groups")
    add("--enable-bootstrap-token-auth", type=boolean, nargs="?", const=True, default=True)
    add("--requestheader-allowed-names", default="front-proxy-client", help='CNs of proxies; "" for any')
    add("--service-account-max-token-expiration", type=whole_seconds, default=0)
    add("--service-account-extend-token-expiration", type=boolean, nargs="?", const=True, default=True)
    add("--authentication-token-webhook-config-file", type=Path, help="a kubeconfig")
    add("--authorization-webhook-config-file", type=Path, help="a kubeconfig, for the mode Webhook")
    add("--authentication-config", type=Path, help="an AuthenticationConfiguration")
    add("--authorization-config", type=Path, help="an AuthorizationConfiguration, instead of --authorization-mode")
    add("--oidc-issuer-url", default="")
    add("--oidc-client-id", default="")
    add("--oidc-ca-file", type=Path)
    add("--oidc-username-claim", default="sub")
    add("--oidc-username-prefix", default="")
    add("--oidc-groups-claim", default="")
    add("--oidc-groups-prefix", default="")
    add("--oidc-signing-algs", default="RS256")
    add("--oidc-required-claim", type=_claim, action="append", default=[], metavar="KEY=VALUE")


def options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `Options` that the flags give. ConfigurationError when they contradict one another."""
    out: dict[str, Any] = {
        "token_file": args.token_auth_file,
        "bootstrap_tokens": args.enable_bootstrap_token_auth,
        "proxy_names": tuple(n for n in args.requestheader_allowed_names.split(",") if n),
        "max_token_seconds": args.service_account_max_token_expiration,
        "extend_tokens": args.service_account_extend_token_expiration,
        "token_webhook": args.authentication_token_webhook_config_file,
        "authorization_webhook": args.authorization_webhook_config_file,
    }
    out["authentication_config"], out["authorization_config"] = args.authentication_config, args.authorization_config
    if args.authentication_config is not None and args.oidc_issuer_url:
        raise ConfigurationError("authentication-config file and oidc-* flags are mutually exclusive")
    if bool(args.oidc_issuer_url) != bool(args.oidc_client_id):
        raise ConfigurationError(
            "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set"
        )
    if args.oidc_issuer_url:
        out["oidc"] = {
            "issuer_url": args.oidc_issuer_url,
            "client_id": args.oidc_client_id,
            "ca_file": args.oidc_ca_file,
            "username_claim": args.oidc_username_claim,
            "username_prefix": args.oidc_username_prefix,
            "groups_claim": args.oidc_groups_claim,
            "groups_prefix": args.oidc_groups_prefix,
            "required_claims": dict(args.oidc_required_claim),
            "signing_algorithms": args.oidc_signing_algs.split(","),
        }
    return out
