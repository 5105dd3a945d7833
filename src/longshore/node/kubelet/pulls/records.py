"""Who has pulled which image: an image that was pulled with somebody's secret is not everybody's.

The files are upstream's (ROOT/image_manager/pulling and pulled): an intent before a pull, a record after it, so that a
crash in between leaves the image as one whose user must show a login. Source: kubernetes pkg/kubelet/images/pullmanager.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from longshore.machinery.pki import write_file
from longshore.node.kubelet.pulls.credentials import Login, Source, without_tag

API_VERSION = "kubelet.config.k8s.io/v1beta1"
NEVER, PRELOADED, ALLOWED, ALWAYS = (
    "NeverVerify", "NeverVerifyPreloadedImages", "NeverVerifyAllowlistedImages", "AlwaysVerify",
)  # fmt: skip
POLICIES = (NEVER, PRELOADED, ALLOWED, ALWAYS)
#: so many secrets of an image are remembered beyond those that it was pulled with
_LEARNED = 100
Logins = Callable[[], Awaitable[list[Login]]]


def check_allowlist(patterns: Sequence[str]) -> None:
    """Raises ValueError for what is neither an image without tag and digest nor ends with "/*"."""
    for pattern in patterns:
        bare = pattern.removesuffix("*") if pattern.endswith("/*") else pattern
        if pattern != pattern.strip():
            raise ValueError(f"leading/trailing spaces are not allowed: {pattern}")
        if "*" in bare:
            raise ValueError(f"not a valid wildcard pattern, only patterns ending with '/*' are allowed: {pattern}")
        if bare in ("", "/"):
            raise ValueError("at least registry hostname is required")
        if bare is pattern and without_tag(pattern) != pattern:
            raise ValueError(f"neither tag nor digest is accepted in an image reference: {pattern}")


class PullRecords:
    """The records of one node, held in memory and written through."""

    def __init__(self, root: Path, policy: str = PRELOADED, allowlist: Sequence[str] = ()) -> None:
        """root: the kubelet's. policy: imagePullCredentialsVerificationPolicy. Blocking."""
        self._pulling, self._pulled = root / "image_manager" / "pulling", root / "image_manager" / "pulled"
        self._policy, self._allowlist = policy, tuple(allowlist)
        for folder in (self._pulling, self._pulled):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._records = {record["imageRef"]: record for record in _all(self._pulled)}
        #: image -> pulls under way, or cut short by a crash
        self._intents = Counter(intent["image"] for intent in _all(self._pulling))

    def settle(self, images: Iterable[Any]) -> None:
        """What a crash has cut short but is there (CRI Images): it needs a login the next time. Blocking."""
        for image in images:
            for name in {*image.repo_tags, *image.repo_digests} & set(self._intents):
                self._write(name, image.id, None)
                self.failed(name)

    def begin(self, image: str) -> None:
        """A pull begins. Blocking."""
        if not self._intents[image]:
            write_file(self._pulling / _file(image), _document("ImagePullIntent", image=image), 0o600)
        self._intents[image] += 1

    def pulled(self, image: str, reference: str, login: Login | None) -> None:
        """A pull has succeeded. reference: the image's id; login: what it was pulled with, None for nobody's. Blocking."""
        self._write(image, reference, _credentials(login))
        self.failed(image)

    def failed(self, image: str) -> None:
        """A pull has ended. Blocking."""
        self._intents[image] -= 1
        if self._intents[image] <= 0:
            del self._intents[image]
            (self._pulling / _file(image)).unlink(missing_ok=True)

    async def must_pull(self, image: str, reference: str, logins: Logins) -> bool:
        """Whether a pod must show at the registry that it may have an image which is there. logins(): the pod's."""
        record = self._records.get(reference)
        if not self._is_checked(image, record is not None or self._intents[image] > 0):
            return False
        known = ((record or {}).get("credentialMapping") or {}).get(without_tag(image))
        if known is None:
            return True
        if known.get("nodePodsAccessible"):
            return False
        secrets, accounts = known.get("kubernetesSecrets") or (), known.get("kubernetesServiceAccounts") or ()
        if not secrets and not accounts:
            return True
        for login in await logins():
            if login.source is None:
                continue
            who = _who(login.source)
            if login.source.kind == "account":
                if who in accounts:
                    return False
                continue
            same = [s for s in secrets if {k: s[k] for k in who} == who]
            if same or any(s["credentialHash"] == login.hash for s in secrets):
                if {**who, "credentialHash": login.hash} not in secrets and len(secrets) < _LEARNED:
                    self._write(image, reference, _credentials(login))
                return False
        return True

    def _is_checked(self, image: str, by_kubelet: bool) -> bool:
        if self._policy == ALLOWED:
            name = without_tag(image)
            return not any(
                name.startswith(p.removesuffix("*")) if p.endswith("/*") else name == p for p in self._allowlist
            )
        return self._policy == ALWAYS or (self._policy == PRELOADED and by_kubelet)

    def keep(self, references: Iterable[str]) -> None:
        """Forget all images but these. Blocking."""
        for gone in self._records.keys() - set(references):
            del self._records[gone]
            (self._pulled / _file(gone)).unlink(missing_ok=True)

    def _write(self, image: str, reference: str, fresh: dict[str, Any] | None) -> None:
        record = self._records.get(reference)
        mapping = dict((record or {}).get("credentialMapping") or {})
        name = without_tag(image)
        if fresh is not None:
            mapping[name] = _merged(mapping.get(name) or {}, fresh)
        if record is not None and mapping == (record.get("credentialMapping") or {}):
            return
        now = datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        record = {"lastUpdatedTime": now, "imageRef": reference} | ({"credentialMapping": mapping} if mapping else {})
        write_file(self._pulled / _file(reference), _document("ImagePulledRecord", **record), 0o600)
        self._records[reference] = record


def _file(name: str) -> str:
    return f"sha256-{hashlib.sha256(name.encode()).hexdigest()}"


def _document(kind: str, **fields: Any) -> bytes:
    return orjson.dumps({"kind": kind, "apiVersion": API_VERSION, **fields}) + b"\n"


def _all(folder: Path) -> Iterable[dict[str, Any]]:
    for file in folder.glob("sha256-*"):
        try:
            found = orjson.loads(file.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and (found.get("imageRef") or found.get("image")):
            yield found


def _who(source: Source) -> dict[str, str]:
    return {"uid": source.uid, "namespace": source.namespace, "name": source.name}


def _credentials(login: Login | None) -> dict[str, Any]:
    if login is None or login.source is None:
        return {"nodePodsAccessible": True}
    if login.source.kind == "account":
        return {"kubernetesServiceAccounts": [_who(login.source)]}
    return {"kubernetesSecrets": [{**_who(login.source), "credentialHash": login.hash}]}


def _merged(known: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """What is known of an image's users with what has been seen now; a secret's older hash goes."""
    if known.get("nodePodsAccessible") or fresh.get("nodePodsAccessible"):
        return {"nodePodsAccessible": True}
    secrets = {(s["uid"], s["namespace"], s["name"]): s for s in known.get("kubernetesSecrets") or ()}
    secrets |= {(s["uid"], s["namespace"], s["name"]): s for s in fresh.get("kubernetesSecrets") or ()}
    accounts = list(known.get("kubernetesServiceAccounts") or ())
    accounts += [a for a in fresh.get("kubernetesServiceAccounts") or () if a not in accounts]
    found = {"kubernetesSecrets": list(secrets.values()), "kubernetesServiceAccounts": accounts}
    return {name: value for name, value in found.items() if value}
