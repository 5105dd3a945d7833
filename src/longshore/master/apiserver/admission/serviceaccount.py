"""ServiceAccount: every pod runs as one, and finds its token where it looks for it."""

from __future__ import annotations

import random

from longshore.master.apiserver.admission.base import PODS, Object, Plugin, refuse
from longshore.master.apiserver.context import AdmissionRequest

MOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
VOLUME_PREFIX = "kube-api-access-"
MIRROR = "kubernetes.io/config.mirror"
ENFORCE = "kubernetes.io/enforce-mountable-secrets"
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
# An hour, and seven seconds by which tokens made for this volume are told apart.
EXPIRATION = 3607


class ServiceAccount(Plugin):
    """Source: plugin/pkg/admission/serviceaccount."""

    name = "ServiceAccount"
    resources = PODS
    subresources = frozenset(("", "ephemeralcontainers"))

    async def admit(self, a: AdmissionRequest) -> None:
        pod = a.object
        if pod is None or a.operation != "CREATE" or a.attributes.subresource:
            return
        spec = pod["spec"]
        if MIRROR in (pod["metadata"].get("annotations") or {}):
            self._check_mirror(a, pod)
            return
        if not spec.get("serviceAccountName"):
            spec["serviceAccountName"] = "default"
        spec["serviceAccount"] = spec["serviceAccountName"]
        account = await self._account(a, spec["serviceAccountName"])
        if _automount(account, spec):
            _mount_token(spec)
        if not spec.get("imagePullSecrets") and account.get("imagePullSecrets"):
            spec["imagePullSecrets"] = [{"name": s.get("name", "")} for s in account["imagePullSecrets"]]

    async def validate(self, a: AdmissionRequest) -> None:
        pod = a.object
        if pod is None:
            return
        if a.attributes.subresource == "ephemeralcontainers":
            account = a.api.get(
                "", "serviceaccounts", a.attributes.namespace, pod["spec"].get("serviceAccountName") or "default"
            )
            if account is not None and _enforces(account):
                self._limit_references(a, account, pod["spec"].get("ephemeralContainers") or [], "ephemeral container")
            return
        if a.operation != "CREATE":
            return
        if MIRROR in (pod["metadata"].get("annotations") or {}):
            self._check_mirror(a, pod)
            return
        name = pod["spec"].get("serviceAccountName")
        if not name:
            raise refuse(
                a, f"no service account specified for pod {a.attributes.namespace}/{pod['metadata'].get('name', '')}"
            )
        account = await self._account(a, name)
        if _enforces(account):
            self._limit_secrets(a, account, pod)

    async def _account(self, a: AdmissionRequest, name: str) -> Object:
        namespace = a.attributes.namespace
        found = a.api.peek("", "serviceaccounts", namespace, name)
        if found is None:
            found = await a.api.get_live("", "serviceaccounts", namespace, name)
        if found is None:
            raise refuse(a, f'error looking up service account {namespace}/{name}: serviceaccount "{name}" not found')
        return found

    @staticmethod
    def _check_mirror(a: AdmissionRequest, pod: Object) -> None:
        spec = pod["spec"]
        if spec.get("serviceAccountName"):
            raise refuse(a, "a mirror pod may not reference service accounts")
        for volume in spec.get("volumes") or ():
            for key, what in (
                ("secret", "secrets"),
                ("configMap", "configmaps"),
                ("persistentVolumeClaim", "persistentvolumeclaims"),
            ):
                if volume.get(key) is not None:
                    raise refuse(a, f"a mirror pod may not reference {what}")
            for source in (volume.get("projected") or {}).get("sources") or ():
                if source.get("serviceAccountToken") is not None:
                    raise refuse(a, "a mirror pod may not use ServiceAccountToken volume projections")

    def _limit_secrets(self, a: AdmissionRequest, account: Object, pod: Object) -> None:
        allowed = {s.get("name") for s in account.get("secrets") or ()}
        name = account["metadata"]["name"]
        for volume in pod["spec"].get("volumes") or ():
            secret = (volume.get("secret") or {}).get("secretName")
            if secret and secret not in allowed:
                raise refuse(
                    a,
                    f'volume with secret.secretName="{secret}" is not allowed because service account {name} does not reference that secret',
                )
        for kind, what in (("initContainers", "init container"), ("containers", "container")):
            self._limit_references(a, account, pod["spec"].get(kind) or [], what)
        pull = {s.get("name") for s in account.get("imagePullSecrets") or ()}
        for index, reference in enumerate(pod["spec"].get("imagePullSecrets") or ()):
            if reference.get("name") not in pull:
                raise refuse(
                    a,
                    f'imagePullSecrets[{index}].name="{reference.get("name", "")}" is not allowed because service account {name} does not reference that imagePullSecret',
                )

    @staticmethod
    def _limit_references(a: AdmissionRequest, account: Object, containers: list[Object], what: str) -> None:
        allowed = {s.get("name") for s in account.get("secrets") or ()}
        for container in containers:
            for variable in container.get("env") or ():
                secret = ((variable.get("valueFrom") or {}).get("secretKeyRef") or {}).get("name")
                if secret and secret not in allowed:
                    raise refuse(
                        a,
                        f'{what} {container.get("name", "")} with envVar {variable.get("name", "")} referencing secret.secretName="{secret}" is not allowed '
                        f"because service account {account['metadata']['name']} does not reference that secret",
                    )


def _enforces(account: Object) -> bool:
    return str((account["metadata"].get("annotations") or {}).get(ENFORCE, "")).lower() in ("true", "1", "t")


def _automount(account: Object, spec: Object) -> bool:
    for holder in (spec, account):
        value = holder.get("automountServiceAccountToken")
        if value is not None:
            return bool(value)
    return True


def _mount_token(spec: Object) -> None:
    """Mount the token into every container that has nothing at its place yet."""
    name = ""
    for volume in spec.get("volumes") or ():
        if str(volume.get("name", "")).startswith(VOLUME_PREFIX):
            name = volume["name"]
    taken = {v.get("name") for v in spec.get("volumes") or ()}
    fresh = not name
    while fresh and (not name or name in taken):
        name = VOLUME_PREFIX + "".join(random.choices(_ALPHABET, k=5))
    used = False
    for kind in ("initContainers", "containers"):
        for container in spec.get(kind) or ():
            mounts = container.get("volumeMounts") or []
            if any(m.get("mountPath") == MOUNT_PATH for m in mounts):
                continue
            container["volumeMounts"] = [*mounts, {"name": name, "readOnly": True, "mountPath": MOUNT_PATH}]
            used = True
    if used and fresh:
        spec["volumes"] = [*(spec.get("volumes") or ()), {"name": name, "projected": token_projection()}]


def token_projection() -> Object:
    """The volume that holds a pod's token, the cluster's CA and the namespace."""
    return {
        "defaultMode": 420,
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": EXPIRATION, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {
                "downwardAPI": {
                    "items": [
                        {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
                    ]
                }
            },
        ],
    }
