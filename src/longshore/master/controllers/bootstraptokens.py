"""Bootstrap tokens: they expire, and cluster-info is signed with them.

Both are off by default, as upstream's: `--controllers '*,bootstrap-signer-controller,token-cleaner-controller'`.
Source: kubernetes pkg/controller/bootstrap, described behaviour.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time

import orjson

from longshore.client.objects import seconds
from longshore.client.resources import CONFIG_MAPS, SECRETS
from longshore.client.rest import is_not_found
from longshore.client.store import Object, key_of, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller

TYPE = "bootstrap.kubernetes.io/token"
PREFIX = "bootstrap-token-"
SIGNATURE = "jws-kubeconfig-"
PUBLIC, INFO = "kube-public", "cluster-info"
SYSTEM = "kube-system"


def field(secret: Object, name: str) -> str:
    """A decoded field of a Secret, "" when it is not there or no text."""
    try:
        return base64.b64decode((secret.get("data") or {}).get(name) or "", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def is_token(obj: Object) -> bool:
    return obj.get("type") == TYPE and obj["metadata"].get("namespace") == SYSTEM


def detached_signature(content: str, identity: str, secret: str) -> str:
    """A JWS of content with the token as key (HS256), without its payload."""

    def encode(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    header = encode(orjson.dumps({"alg": "HS256", "kid": identity}))
    signed = f"{header}.{encode(content.encode())}"
    return f"{header}..{encode(hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest())}"


class TokenCleaner(Controller):
    """Deletes bootstrap tokens that have expired."""

    name = "token-cleaner-controller"
    account = "token-cleaner"
    component = "token-cleaner"

    def setup(self) -> None:
        self.secrets = self.watch(SECRETS, add=self._secret, update=lambda old, new: self._secret(new))

    def _secret(self, secret: Object) -> None:
        if is_token(secret):
            self.enqueue(secret)

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        secret = self.secrets.store.named(namespace, name)
        expires = seconds(field(secret, "expiration")) if secret is not None else 0.0
        if secret is None or not expires:
            return None
        left = expires - time.time()
        if left > 0:
            return left
        try:
            await self.client.delete(SECRETS, name, namespace, uid=secret["metadata"]["uid"])
        except StatusError as error:
            if not is_not_found(error):
                raise
        return None


class BootstrapSigner(Controller):
    """Signs kube-public/cluster-info with every token that may be used for signing."""

    name = "bootstrap-signer-controller"
    account = "bootstrap-signer"
    component = "bootstrap-signer"
    workers = 1

    def setup(self) -> None:
        self.secrets = self.watch(
            SECRETS, add=self._secret, update=lambda old, new: self._secret(new), delete=self._secret
        )
        self.maps = self.watch(CONFIG_MAPS, add=self._map, update=lambda old, new: self._map(new))

    def _secret(self, secret: Object) -> None:
        if is_token(secret):
            self.queue.add(f"{PUBLIC}/{INFO}")

    def _map(self, obj: Object) -> None:
        if key_of(obj) == f"{PUBLIC}/{INFO}":
            self.enqueue(obj)

    async def reconcile(self, key: str) -> float | None:
        found = self.maps.store.get(key)
        if found is None or "kubeconfig" not in (found.get("data") or {}):
            return None
        data = {k: v for k, v in found["data"].items() if not k.startswith(SIGNATURE)}
        for secret in self.secrets.store.list(SYSTEM):
            identity, token = field(secret, "token-id"), field(secret, "token-secret")
            if not is_token(secret) or not identity or not token or field(secret, "usage-bootstrap-signing") != "true":
                continue
            expires = seconds(field(secret, "expiration"))
            if secret["metadata"]["name"] == PREFIX + identity and (not expires or expires > time.time()):
                data[SIGNATURE + identity] = detached_signature(data["kubeconfig"], identity, token)
        if data != found["data"]:
            await self.client.update(CONFIG_MAPS, {**found, "data": data})
        return None
