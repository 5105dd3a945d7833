from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from longshore.master.apiserver.auth import Access, flags
from longshore.master.apiserver.config import Config


def parse(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    flags.add(parser)
    return flags.options(parser.parse_args(words))


def test_flags_become_options(objects: Any, tmp_path: Path) -> None:
    tokens = tmp_path / "t.csv"
    tokens.write_text("abc,jane,1\n")
    given = parse(
        *("--token-auth-file", str(tokens), "--requestheader-allowed-names", "a,b"),
        *("--oidc-issuer-url", "https://x", "--oidc-client-id", "me", "--oidc-required-claim", "hd=x"),
        "--enable-bootstrap-token-auth=false",
    )
    assert given["proxy_names"] == ("a", "b") and given["oidc"]["required_claims"] == {"hd": "x"}
    config = Config(extra={"auth": given})
    access = Access.from_config(objects, config, lambda: None)
    assert [type(k).__name__ for k in access.authentication.tokens.kinds] == ["TokenFile", "OIDC"]


def test_contradictions() -> None:
    with pytest.raises(ValueError, match="must be specified together"):
        parse("--oidc-issuer-url", "https://x")
    with pytest.raises(SystemExit):
        parse("--oidc-required-claim", "x")


def test_webhook_mode_needs_its_file(objects: Any) -> None:
    with pytest.raises(ValueError, match="unknown authorization mode Webhook"):
        Access.from_config(objects, Config(authorization_modes=["Webhook"]), lambda: None)
