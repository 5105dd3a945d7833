"""`longshore registry`: Docker Hub's part alone."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.cli.main import UserError, layout_of
from longshore.machinery.run import run_part

if TYPE_CHECKING:
    from longshore.registry.auth import Access

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default %(default)s)")
    parser.add_argument("--root", type=Path, default=None, help="where content is kept (default: in --data-dir)")
    parser.add_argument(
        "--htpasswd", type=Path, default=None, help="password file; without it everybody may push and pull"
    )
    parser.add_argument("--tokens", action="store_true", help="ask for tokens of its own /token (needs --htpasswd)")
    parser.add_argument(
        "--permissions",
        type=Path,
        default=None,
        help='JSON file with a list of {"user": NAME or "*", "repository": GLOB, "actions": ["pull", "push", "delete"]}',
    )
    parser.add_argument(
        "--quota",
        action="append",
        default=[],
        metavar="GLOB=SIZE",
        help='how much each repository of that name may hold, as "team/*=20GB"; the first that fits counts',
    )
    parser.add_argument("--blob-limit", default=None, metavar="SIZE", help="the largest blob")
    parser.add_argument("--read-only", action="store_true", help="pull only")
    parser.add_argument(
        "--sparse",
        action="store_true",
        help="take manifests that name content which was not pushed (some platforms only)",
    )
    parser.add_argument("--mirror", default=None, metavar="URL", help="be a pull-through mirror of this registry")
    parser.add_argument("--mirror-user", default="", help="user name at the mirrored registry")
    parser.add_argument("--mirror-password-file", type=Path, default=None, help="its password, in a file")
    parser.add_argument(
        "--collect-every",
        type=float,
        default=3600.0,
        help="seconds between garbage collections, 0 for none (default %(default)s)",
    )
    parser.add_argument("--collect-untagged", action="store_true", help="manifests without a tag are garbage too")
    parser.add_argument("--tls-cert", type=Path, default=None, help="serve HTTPS with this certificate")
    parser.add_argument("--tls-key", type=Path, default=None, help="the certificate's key")


def size_of(text: str) -> int:
    """ "20GB" as bytes. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)b?", text.strip().lower())
    if not found:
        raise UserError(f"not a size: {text}")
    return int(float(found[1]) * _UNITS[found[2]])


def _access(arguments: argparse.Namespace, root: Path) -> Access | None:
    """Who may do what, as the flags say; None: the password file alone. Raises UserError."""
    from longshore.registry.auth import Access, Grant, Passwords

    if not arguments.tokens and arguments.permissions is None:
        return None
    if arguments.htpasswd is None:
        raise UserError("--tokens and --permissions need --htpasswd")
    grants: list[Grant] = []
    if arguments.permissions is not None:
        try:
            loaded: Any = json.loads(arguments.permissions.read_text())
            for entry in loaded:
                grants.append(Grant(str(entry["user"]), str(entry["repository"]), tuple(map(str, entry["actions"]))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{arguments.permissions}: {error}") from None
    passwords = Passwords(arguments.htpasswd)
    if not arguments.tokens:
        return Access(passwords, grants=grants)
    from longshore.registry.tokens import kept_key

    root.mkdir(parents=True, exist_ok=True)
    try:
        return Access(passwords, token_realm="own", grants=grants, key=kept_key(root / "token.key"))
    except OSError as error:
        raise UserError(str(error)) from None


def run(arguments: argparse.Namespace) -> int:
    from longshore.machinery.http import server_context
    from longshore.registry.blobs import Quota
    from longshore.registry.server import serve
    from longshore.registry.upstream import Upstream

    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        raise UserError("--tls-cert and --tls-key go together")
    tls = server_context(arguments.tls_cert, arguments.tls_key) if arguments.tls_cert else None
    quotas: list[Quota] = []
    for text in arguments.quota:
        glob, equals, size = text.rpartition("=")
        if not equals:
            raise UserError(f"not a quota: {text}")
        quotas.append(Quota(glob, size_of(size)))
    upstream: Upstream | None = None
    if arguments.mirror:
        password = ""
        if arguments.mirror_password_file is not None:
            try:
                password = arguments.mirror_password_file.read_text().strip()
            except OSError as error:
                raise UserError(f"{error.filename}: {error.strerror}") from None
        upstream = Upstream(arguments.mirror, username=arguments.mirror_user, password=password)
    root = arguments.root or layout_of(arguments).registry
    access = _access(arguments, root)
    return run_part(
        lambda: serve(
            data_dir=root,
            host=arguments.host,
            port=arguments.port,
            tls=tls,
            htpasswd=arguments.htpasswd,
            access=access,
            read_only=arguments.read_only,
            blob_limit=size_of(arguments.blob_limit) if arguments.blob_limit else None,
            quotas=quotas,
            upstream=upstream,
            sparse=arguments.sparse,
            collect_every=arguments.collect_every,
            collect_untagged=arguments.collect_untagged,
        )
    )
