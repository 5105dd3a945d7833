"""`longshore etcd`: serve the embedded store with etcd's own flag names; save, restore and move it."""

from __future__ import annotations

import argparse
import asyncio
import re
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from longshore.machinery.run import run_part
from longshore.master.etcd import snapshot
from longshore.master.etcd.model import StoreError

_STORE = Path("member") / "store.db"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="longshore etcd", description="Serve the embedded store as etcd v3 over gRPC.")
    add = p.add_argument
    add("--name", default="default", help="the member's name (default %(default)s)")
    add("--data-dir", type=Path, default=Path("default.etcd"), help="where the store's file is (default %(default)s)")
    add("--listen-client-urls", default="http://localhost:2379", help="comma-separated (default %(default)s)")
    add("--advertise-client-urls", default="", help="what clients are told (default: where it listens)")
    add("--cert-file", type=Path, help="server certificate (PEM)")
    add("--key-file", type=Path, help="its key")
    add("--trusted-ca-file", type=Path, help="authority of clients' certificates")
    add("--client-cert-auth", action="store_true", help="ask clients for a certificate")
    add("--auto-compaction-retention", default="0", help="hours, or with a unit: 30m, 1h (default: none)")
    add("--auto-compaction-mode", default="periodic", choices=["periodic"])
    commands = p.add_subparsers(dest="command", metavar="COMMAND")
    restore = commands.add_parser("restore", help="make a new store of a snapshot that etcdctl or we have saved")
    restore.add_argument("snapshot", type=Path)
    restore.add_argument("--data-dir", type=Path, required=True, help="the new store's folder")
    move = commands.add_parser("move", help="copy all keys and leases from one store to an empty other one")
    for flag, destination in (("--from", "source"), ("--to", "target")):
        move.add_argument(flag, dest=destination, required=True, help="etcd URLs, comma-separated, or a store's file")
    for flag, words in (("--cacert", "authority"), ("--cert", "client certificate"), ("--key", "its key")):
        move.add_argument(flag, type=Path, help=f"{words} of https URLs (PEM)")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit code."""
    p = parser()
    args = p.parse_args(argv)
    try:
        if args.command == "restore":
            return _restore(args.snapshot, args.data_dir / _STORE)
        if args.command == "move":
            return _move(args)
        return _serve(p, args)
    except (StoreError, OSError) as error:
        print(f"longshore etcd: {error}", file=sys.stderr)
        return 1


def _serve(p: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from longshore.master.etcd.server import serve

    urls = [urlsplit(url) for url in args.listen_client_urls.split(",")]
    for url in urls:
        if url.scheme not in ("http", "https") or not url.hostname:
            p.error(f"--listen-client-urls: {url.geturl()!r} is no http or https URL")
    tls: ssl.SSLContext | None = None
    if any(url.scheme == "https" for url in urls):
        if args.cert_file is None or args.key_file is None:
            p.error("https needs --cert-file and --key-file")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(args.cert_file, args.key_file)
        if args.client_cert_auth:
            if args.trusted_ca_file is None:
                p.error("--client-cert-auth needs --trusted-ca-file")
            tls.load_verify_locations(args.trusted_ca_file)
            tls.verify_mode = ssl.CERT_REQUIRED
    seconds = _seconds(args.auto_compaction_retention)
    if seconds is None:
        p.error(f"--auto-compaction-retention: {args.auto_compaction_retention!r} is no time")
    return run_part(
        lambda: serve(
            path=args.data_dir / _STORE,
            listen=[(url.hostname or "", url.port or 2379) for url in urls],
            advertise=[url for url in args.advertise_client_urls.split(",") if url],
            name=args.name,
            tls=tls,
            compact_every=seconds or 0.0,
        )
    )


def _seconds(text: str) -> float | None:
    if text.isdigit():
        return int(text) * 3600.0
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if parts is None or not text:
        return None
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return hours * 3600.0 + minutes * 60.0 + seconds


def _restore(source: Path, store: Path) -> int:
    """etcdctl leaves a SHA-256 behind what it has saved; SQLite's file is whole without it."""
    import hashlib
    import tempfile

    size = source.stat().st_size
    if size % 512 == 32:
        with tempfile.TemporaryDirectory() as folder:
            bare = Path(folder) / "snapshot.db"
            digest = hashlib.sha256()
            with source.open("rb") as old, bare.open("wb") as new:
                left = size - 32
                while left:
                    chunk = old.read(min(left, 1 << 20))
                    digest.update(chunk)
                    new.write(chunk)
                    left -= len(chunk)
                if old.read() != digest.digest():
                    raise StoreError(f"{source} is damaged: its checksum does not fit")
            revision = snapshot.restore(bare, store)
    else:
        revision = snapshot.restore(source, store)
    print(f"restored revision {revision} to {store}")
    return 0


def _move(args: argparse.Namespace) -> int:
    from longshore.master.etcd import move

    count = asyncio.run(move.move(args.source, args.target, ca=args.cacert, certificate=args.cert, key=args.key))
    print(f"moved {count} keys")
    return 0
