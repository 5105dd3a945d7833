"""`longshore registry`: Docker Hub's part alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from longshore.cli.main import UserError, layout_of
from longshore.machinery.run import run_part


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default %(default)s)")
    parser.add_argument("--root", type=Path, default=None, help="where content is kept (default: in --data-dir)")
    parser.add_argument(
        "--htpasswd", type=Path, default=None, help="password file; without it everybody may push and pull"
    )
    parser.add_argument("--read-only", action="store_true", help="pull only")
    parser.add_argument("--tls-cert", type=Path, default=None, help="serve HTTPS with this certificate")
    parser.add_argument("--tls-key", type=Path, default=None, help="the certificate's key")


def run(arguments: argparse.Namespace) -> int:
    from longshore.machinery.http import server_context
    from longshore.registry.server import serve

    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        raise UserError("--tls-cert and --tls-key go together")
    tls = server_context(arguments.tls_cert, arguments.tls_key) if arguments.tls_cert else None
    return run_part(
        lambda: serve(
            data_dir=arguments.root or layout_of(arguments).registry,
            host=arguments.host,
            port=arguments.port,
            tls=tls,
            htpasswd=arguments.htpasswd,
            read_only=arguments.read_only,
        )
    )
