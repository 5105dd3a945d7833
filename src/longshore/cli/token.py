"""`longshore token`: bootstrap tokens, with which other machines join."""

from __future__ import annotations

import argparse
import asyncio
import base64
import secrets
import string
import time
from typing import Any

from longshore.cli import cluster, control
from longshore.cli.joining import GROUP, TOKEN, public_key_hash
from longshore.cli.main import UserError, layout_of
from longshore.client.objects import seconds
from longshore.client.resources import SECRETS
from longshore.client.rest import Client, is_not_found
from longshore.machinery.errors import StatusError
from longshore.machinery.http import ClientError

KIND, PREFIX, NAMESPACE = "bootstrap.kubernetes.io/token", "bootstrap-token-", "kube-system"
UNITS = {"s": 1, "m": 60, "h": 3600}
ALPHABET = string.ascii_lowercase + string.digits


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["create", "list", "delete"])
    parser.add_argument("token", nargs="?", default="", help="create: this one; delete: the token or its first part")
    parser.add_argument(
        "--ttl", default="24h", help="how long it is good, as 30m or 24h; 0: for ever (default %(default)s)"
    )
    parser.add_argument("--description", default="", help="what it is for")


def run(arguments: argparse.Namespace) -> int:
    layout = layout_of(arguments)
    config = cluster.load(layout)
    if config is None or config.remote:
        raise UserError(f"no cluster of its own in {layout.data}: `longshore up` makes one")

    async def main() -> int:
        client = control.api_client(layout)
        try:
            if arguments.action == "create":
                token = await create(client, arguments.token, duration(arguments.ttl), arguments.description)
                pin = public_key_hash((layout.pki / "ca.crt").read_bytes())
                # The address that other machines see, not that of a bridge of our own.
                host = (cluster.default_host_ip(config.families[0]) if config.bridge else None) or config.host_ip
                address = cluster.authority(host, config.secure_port)
                print(f"longshore join {address} --token {token} --discovery-token-ca-cert-hash {pin}")
            elif arguments.action == "list":
                await show(client)
            else:
                await delete(client, arguments.token)
        except StatusError as error:
            raise UserError(error.message) from None
        except (OSError, ClientError) as error:
            raise UserError(f"the API server does not answer: {error}") from None
        finally:
            await client.close()
        return 0

    return asyncio.run(main())


def duration(text: str) -> int:
    """Seconds of "30m", "24h", "90s" or "0". Raises UserError."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in UNITS else (text, "s")
    if not number.isdigit() or (unit == "s" and text not in ("0", number + "s")):
        raise UserError(f"not a duration: {text!r} (as 30m, 24h or 0)")
    return int(number) * UNITS[unit]


async def create(client: Client, token: str = "", ttl: int = 24 * 3600, description: str = "") -> str:
    """Make a token that may join machines for `ttl` seconds (0: for ever); the token. Raises StatusError, UserError."""
    if not token:
        first, second = ("".join(secrets.choice(ALPHABET) for _ in range(length)) for length in (6, 16))
        token = f"{first}.{second}"
    match = TOKEN.fullmatch(token)
    if match is None:
        raise UserError(f"the token is not of the form {TOKEN.pattern}")
    identity, secret = match.groups()
    data = {
        "token-id": identity,
        "token-secret": secret,
        "usage-bootstrap-authentication": "true",
        "usage-bootstrap-signing": "true",
        "auth-extra-groups": GROUP,
    }
    if ttl:
        data["expiration"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + ttl))
    if description:
        data["description"] = description
    obj = {
        "metadata": {"name": PREFIX + identity, "namespace": NAMESPACE},
        "type": KIND,
        "data": {name: base64.b64encode(value.encode()).decode() for name, value in data.items()},
    }
    await client.create(SECRETS, obj, NAMESPACE)
    return token


def _field(secret: dict[str, Any], name: str) -> str:
    return base64.b64decode((secret.get("data") or {}).get(name) or "").decode(errors="replace")


async def show(client: Client) -> None:
    """Print what tokens there are, without their secrets."""
    found = await client.list(SECRETS, NAMESPACE, field_selector=f"type={KIND}")
    print(f"{'TOKEN':8}  {'EXPIRES':20}  {'LEFT':>8}  DESCRIPTION")
    for secret in found["items"]:
        expires = _field(secret, "expiration")
        left = f"{max(0, seconds(expires) - time.time()) / 3600:.1f}h" if expires else ""
        words = (_field(secret, "token-id"), expires or "<never>", left, _field(secret, "description"))
        print("{:8}  {:20}  {:>8}  {}".format(*words))


async def delete(client: Client, token: str) -> None:
    """Take a token back."""
    identity = token.partition(".")[0]
    if not identity:
        raise UserError("which token?")
    try:
        await client.delete(SECRETS, PREFIX + identity, NAMESPACE)
    except StatusError as error:
        if not is_not_found(error):
            raise
        raise UserError(f"there is no token {identity!r}") from None
    print(f"token {identity!r} deleted")
