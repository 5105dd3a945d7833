"""Token Secrets that accounts once got by themselves and that nobody has used for a year: marked, a year later deleted.

Source: kubernetes pkg/controller/serviceaccount/legacy_serviceaccount_token_cleaner.go, described behaviour.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from longshore.client.resources import CONFIG_MAPS, PODS, SECRETS, SERVICE_ACCOUNTS
from longshore.client.rest import is_conflict, is_not_found
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller
from longshore.master.controllers.legacytokens import NAME, TYPE

LOOK_SECONDS = 24 * 3600.0
PERIOD = timedelta(days=365)  # --legacy-service-account-token-clean-up-period
TRACKING = "kube-apiserver-legacy-service-account-token-tracking"
LAST_USED, INVALID_SINCE = "kubernetes.io/legacy-token-last-used", "kubernetes.io/legacy-token-invalid-since"
_ALL = "secrets"


def day(text: str | None) -> date | None:
    """The date that a label or the tracking ConfigMap holds; None for none, or for what is no date."""
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        return None


class LegacyTokenCleaner(Controller):
    """One key: all Secrets, once a day."""

    name = "legacy-serviceaccount-token-cleaner-controller"
    account = "legacy-service-account-token-cleaner"
    component = "legacy-service-account-token-cleaner"

    def setup(self) -> None:
        self.secrets = self.context.informers.informer(SECRETS, field_selector=f"type={TYPE}")
        self.needs.append(self.secrets)
        self.accounts = self.watch(SERVICE_ACCOUNTS)
        self.pods = self.watch(PODS)

    async def started(self) -> None:
        self.queue.add(_ALL)

    async def reconcile(self, key: str) -> float | None:
        today = datetime.now(UTC).date()
        candidates = [s for s in self.secrets.store if self._made_by_itself(s)]
        since = await self._tracked_since() if candidates else None
        if since is None or since + PERIOD > today:
            return LOOK_SECONDS
        mounted = {
            (p["metadata"]["namespace"], v["secret"].get("secretName"))
            for p in self.pods.store
            for v in p["spec"].get("volumes") or ()
            if "secret" in v
        }
        for secret in candidates:
            meta = secret["metadata"]
            if (meta["namespace"], meta["name"]) in mounted or self._used_lately(secret, today):
                continue
            await self._clean(secret, today)
        return LOOK_SECONDS

    async def _tracked_since(self) -> date | None:
        """Since when the API server writes down which tokens are used."""
        try:
            found = await self.client.get(CONFIG_MAPS, TRACKING, "kube-system")
        except StatusError as error:
            if is_not_found(error):
                return None
            raise
        return day((found.get("data") or {}).get("since"))

    def _made_by_itself(self, secret: Object) -> bool:
        """Whether a Secret is one that its account lists: those made by hand are not listed."""
        meta = secret["metadata"]
        account = self.accounts.store.named(meta["namespace"], (meta.get("annotations") or {}).get(NAME, ""))
        return account is not None and any(s.get("name") == meta["name"] for s in account.get("secrets") or ())

    @staticmethod
    def _used_lately(secret: Object, today: date) -> bool:
        meta = secret["metadata"]
        created = day(str(meta.get("creationTimestamp") or "")[:10])
        used = day((meta.get("labels") or {}).get(LAST_USED))
        return any(at is not None and at + PERIOD > today for at in (created, used))

    async def _clean(self, secret: Object, today: date) -> None:
        """Mark a Secret as no longer valid; delete it when it has been so for a whole period."""
        meta = secret["metadata"]
        marked = day((meta.get("labels") or {}).get(INVALID_SINCE))
        precondition = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
        try:
            if marked is None:
                patch = {"metadata": {**precondition, "labels": {INVALID_SINCE: today.isoformat()}}}
                await self.client.patch(SECRETS, meta["name"], patch, meta["namespace"])
            elif marked + PERIOD <= today:
                await self.client.delete(SECRETS, meta["name"], meta["namespace"], uid=meta["uid"])
        except StatusError as error:
            if not (is_not_found(error) or is_conflict(error)):  # gone, or just used
                raise
