"""Secrets of type kubernetes.io/service-account-token get a token that lasts as long as they do.

Source: kubernetes pkg/controller/serviceaccount/tokens_controller.go and legacy claims, described behaviour.
"""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

from longshore.client.objects import is_deleting
from longshore.client.resources import SECRETS, SERVICE_ACCOUNTS
from longshore.client.rest import is_not_found
from longshore.client.store import Object, key_of, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller

TYPE = "kubernetes.io/service-account-token"
NAME, UID = "kubernetes.io/service-account.name", "kubernetes.io/service-account.uid"
ISSUER = "kubernetes/serviceaccount"


def claims(account: Object, secret: Object) -> dict[str, str]:
    """The claims of a legacy token."""
    namespace, name = account["metadata"]["namespace"], account["metadata"]["name"]
    return {
        "iss": ISSUER,
        f"{ISSUER}/namespace": namespace,
        f"{ISSUER}/secret.name": secret["metadata"]["name"],
        f"{ISSUER}/service-account.name": name,
        f"{ISSUER}/service-account.uid": account["metadata"]["uid"],
        "sub": f"system:serviceaccount:{namespace}:{name}",
    }


def sign(body: dict[str, str], key_file: Path) -> str:
    """A JWT signed with the service accounts' key (RSA or ECDSA, PEM)."""
    import jwt
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key: Any = serialization.load_pem_private_key(key_file.read_bytes(), None)
    algorithm = (
        f"ES{key.curve.key_size if key.curve.key_size != 521 else 512}"
        if isinstance(key, ec.EllipticCurvePrivateKey)
        else "RS256"
    )
    return jwt.encode(body, key, algorithm=algorithm, headers={"typ": None})


class LegacyTokenController(Controller):
    """Fills token Secrets, and deletes those whose account is gone."""

    name = "serviceaccount-token-controller"
    component = "serviceaccount-token-controller"

    def setup(self) -> None:
        # As upstream's, this one acts as the manager itself: it hands out what accounts are made of.
        self.client = self.context.client
        self.accounts = self.watch(SERVICE_ACCOUNTS, add=self._account, delete=self._account)
        self.secrets = self.context.informers.informer(SECRETS, field_selector=f"type={TYPE}")
        self.needs.append(self.secrets)
        self.secrets.on(self.enqueue, lambda old, new: self.enqueue(new))

    def _account(self, account: Object) -> None:
        for secret in self.secrets.store.list(account["metadata"]["namespace"]):
            if (secret["metadata"].get("annotations") or {}).get(NAME) == account["metadata"]["name"]:
                self.queue.add(key_of(secret))

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        secret = self.secrets.store.named(namespace, name)
        if secret is None or secret.get("type") != TYPE or is_deleting(secret):
            return None
        notes = secret["metadata"].get("annotations") or {}
        account = await self._find(namespace, notes.get(NAME, ""))
        if account is None or notes.get(UID, account["metadata"]["uid"]) != account["metadata"]["uid"]:
            try:
                await self.client.delete(SECRETS, name, namespace, uid=secret["metadata"]["uid"])
            except StatusError as error:
                if not is_not_found(error):
                    raise
            return None
        await self._fill(secret, account)
        return None

    async def _find(self, namespace: str, name: str) -> Object | None:
        found = self.accounts.store.named(namespace, name)
        if found is None:
            try:  # before a Secret is deleted the server itself is asked
                found = await self.client.get(SERVICE_ACCOUNTS, name, namespace)
            except StatusError as error:
                if not is_not_found(error):
                    raise
        return found

    async def _fill(self, secret: Object, account: Object) -> None:
        key_file = self.options.service_account_private_key_file
        data = dict(secret.get("data") or {})
        ca = self.options.root_ca_file.read_bytes() if self.options.root_ca_file else self.client.config.ca or b""
        wanted = {"ca.crt": ca, "namespace": secret["metadata"]["namespace"].encode()}
        for field, value in wanted.items():
            data[field] = base64.b64encode(value).decode("ascii")
        if not data.get("token") and key_file is not None:
            token = await asyncio.to_thread(sign, claims(account, secret), key_file)
            data["token"] = base64.b64encode(token.encode()).decode("ascii")
        notes = {**(secret["metadata"].get("annotations") or {}), UID: account["metadata"]["uid"]}
        if data != (secret.get("data") or {}) or notes != (secret["metadata"].get("annotations") or {}):
            metadata = {**secret["metadata"], "annotations": notes}
            await self.client.update(SECRETS, {**secret, "metadata": metadata, "data": data})
