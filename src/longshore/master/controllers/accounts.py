"""Each controller acts as a service account of its own in kube-system, so that RBAC bounds what it may do.

As upstream with --use-service-account-credentials: the accounts are made when missing, tokens come from TokenRequest
and are asked for on first use, so that start-up pays nothing for controllers that have nothing to do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from longshore.client.objects import seconds
from longshore.client.resources import SERVICE_ACCOUNTS
from longshore.client.rest import Client, is_already_exists, is_not_found
from longshore.machinery.errors import StatusError
from longshore.machinery.http import ClientResponse

NAMESPACE = "kube-system"
TOKEN_SECONDS = 3600


class AccountClient(Client):
    """A Client that carries a bound token of one service account, made and renewed through `minter`."""

    def __init__(self, minter: Client, transport: Client, account: str) -> None:
        self.config = replace(minter.config, certificate=None, key=None, token="", token_file=None)
        self.timeout = minter.timeout
        self.http, self.streams = transport.http, transport.streams
        self._minter = minter
        self._account = account
        self._renew_at = 0.0
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        """The connections belong to all accounts: `Accounts.close` drops them."""

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "",
        stream: bool = False,
    ) -> ClientResponse:
        if time.time() >= self._renew_at:
            async with self._lock:
                if time.time() >= self._renew_at:
                    await self._mint()
        try:
            return await super().send(
                method, path, query, body, content_type=content_type, accept=accept, stream=stream
            )
        except StatusError as error:
            if error.code == 401:
                self._renew_at = 0.0  # the account was made anew, or the signing key changed
            raise

    async def _mint(self) -> None:
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        request["spec"] = {"expirationSeconds": TOKEN_SECONDS}  # type: ignore[assignment]
        for attempt in range(2):
            try:
                answer = await self._minter.create(
                    SERVICE_ACCOUNTS, request, NAMESPACE, name=self._account, subresource="token"
                )
            except StatusError as error:
                if attempt or not is_not_found(error):
                    raise
                await self._make_account()
                continue
            self.config.token = answer["status"]["token"]
            expires = seconds(answer["status"].get("expirationTimestamp"))
            now = time.time()
            self._renew_at = now + max(10.0, (expires - now) * 0.8)
            return

    async def _make_account(self) -> None:
        account = {"metadata": {"name": self._account, "namespace": NAMESPACE}}
        try:
            await self._minter.create(SERVICE_ACCOUNTS, account)
        except StatusError as error:
            if not is_already_exists(error):
                raise


class Accounts:
    """Hands out one AccountClient per service account, on one shared pool of connections without our certificate."""

    def __init__(self, minter: Client) -> None:
        self._minter = minter
        anonymous = replace(minter.config, certificate=None, key=None, token="", token_file=None)
        self._transport = Client(anonymous, user_agent="longshore-controllers")
        self._clients: dict[str, AccountClient] = {}

    def client(self, account: str) -> Client:
        if account not in self._clients:
            self._clients[account] = AccountClient(self._minter, self._transport, account)
        return self._clients[account]

    async def close(self) -> None:
        await self._transport.close()
