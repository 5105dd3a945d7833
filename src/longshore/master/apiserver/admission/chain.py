"""The one order of the plugins, upstream's (pkg/kubeapiserver/options/plugins.go)."""

from __future__ import annotations

from typing import Any

from longshore.master.apiserver.admission.certificates import (
    CertificateApproval,
    CertificateSigning,
    CertificateSubjectRestriction,
)
from longshore.master.apiserver.admission.limits import LimitRanger
from longshore.master.apiserver.admission.namespaces import NamespaceLifecycle
from longshore.master.apiserver.admission.noderestriction import NodeRestriction
from longshore.master.apiserver.admission.pods import (
    DefaultTolerationSeconds,
    PodTopologyLabels,
    RuntimeClass,
    TaintNodesByCondition,
)
from longshore.master.apiserver.admission.podsecurity import PodSecurity
from longshore.master.apiserver.admission.policies import MutatingAdmissionPolicy, ValidatingAdmissionPolicy
from longshore.master.apiserver.admission.priority import Priority
from longshore.master.apiserver.admission.quota import ResourceQuota
from longshore.master.apiserver.admission.serviceaccount import ServiceAccount
from longshore.master.apiserver.admission.storage import (
    DefaultIngressClass,
    DefaultStorageClass,
    DenyServiceExternalIPs,
    PersistentVolumeClaimResize,
    StorageObjectInUseProtection,
)
from longshore.master.apiserver.admission.webhooks import MutatingAdmissionWebhook, ValidatingAdmissionWebhook
from longshore.master.apiserver.context import API, AdmissionPlugin

OFF_BY_DEFAULT = frozenset(("DenyServiceExternalIPs",))


def plugins(config: Any, api: API) -> list[AdmissionPlugin]:
    """The plugins that are on, in their order.

    config: the server's (enable_admission and disable_admission name plugins); api: the server's own objects.
    """
    every: list[AdmissionPlugin] = [
        NamespaceLifecycle(),
        LimitRanger(),
        ServiceAccount(),
        NodeRestriction(),
        TaintNodesByCondition(),
        PodSecurity(),
        Priority(),
        DefaultTolerationSeconds(),
        DefaultStorageClass(),
        StorageObjectInUseProtection(),
        PersistentVolumeClaimResize(),
        RuntimeClass(),
        CertificateApproval(),
        CertificateSigning(),
        CertificateSubjectRestriction(),
        DefaultIngressClass(),
        PodTopologyLabels(),
        DenyServiceExternalIPs(),
        MutatingAdmissionPolicy(api),
        MutatingAdmissionWebhook(api),
        ValidatingAdmissionPolicy(api),
        ValidatingAdmissionWebhook(api),
        ResourceQuota(),
    ]
    on, off = set(config.enable_admission), set(config.disable_admission)
    return [p for p in every if p.name not in off and (p.name in on or p.name not in OFF_BY_DEFAULT)]
