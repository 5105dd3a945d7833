"""The one order of the plugins, upstream's (pkg/kubeapiserver/options/plugins.go)."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

from longshore.master.apiserver.admission import optional
from longshore.master.apiserver.admission.certificates import (
    CertificateApproval,
    CertificateSigning,
    CertificateSubjectRestriction,
)
from longshore.master.apiserver.admission.configuration import PluginConfiguration
from longshore.master.apiserver.admission.limits import LimitRanger
from longshore.master.apiserver.admission.namespaces import NamespaceLifecycle
from longshore.master.apiserver.admission.noderestriction import NodeRestriction
from longshore.master.apiserver.admission.pods import (
    DefaultTolerationSeconds,
    PodTopologyLabels,
    RuntimeClass,
    TaintNodesByCondition,
)
from longshore.master.apiserver.admission.podsecurity import PodSecurity, Settings
from longshore.master.apiserver.admission.policies import MutatingAdmissionPolicy, ValidatingAdmissionPolicy
from longshore.master.apiserver.admission.priority import Priority
from longshore.master.apiserver.admission.quota import ResourceQuota, limited
from longshore.master.apiserver.admission.serviceaccount import ServiceAccount
from longshore.master.apiserver.admission.storage import (
    DefaultIngressClass,
    DefaultStorageClass,
    DenyServiceExternalIPs,
    PersistentVolumeClaimResize,
    StorageObjectInUseProtection,
)
from longshore.master.apiserver.admission.webhooks import (
    Credentials,
    MutatingAdmissionWebhook,
    ValidatingAdmissionWebhook,
)
from longshore.master.apiserver.configfile import ConfigurationError
from longshore.master.apiserver.context import API, AdmissionPlugin

OFF_BY_DEFAULT = frozenset((
    "AlwaysAdmit", "AlwaysDeny", "AlwaysPullImages", "DenyServiceExternalIPs", "EventRateLimit", "ExtendedResourceToleration",
    "ImagePolicyWebhook", "NamespaceAutoProvision", "NamespaceExists", "PodNodeSelector",
))  # fmt: skip
#: On in upstream's server, and about kinds or fields that its feature gates keep off: there is nothing to switch here.
ELSEWHERE = frozenset((
    "ClusterTrustBundleAttest", "JobValidation", "NodeDeclaredFeatureValidator", "PodGroupProtection",
    "PodGroupWorkloadExists", "PodResizeValidator",
))  # fmt: skip


def available(told: PluginConfiguration, api: API) -> dict[str, Callable[[], AdmissionPlugin]]:
    """What makes each plugin that can be named, in their order. told: the configuration file; api: the server's objects."""
    return {
        "AlwaysAdmit": optional.AlwaysAdmit,
        "NamespaceAutoProvision": optional.NamespaceAutoProvision,
        "NamespaceLifecycle": NamespaceLifecycle,
        "NamespaceExists": optional.NamespaceExists,
        "LimitRanger": LimitRanger,
        "ServiceAccount": ServiceAccount,
        "NodeRestriction": NodeRestriction,
        "TaintNodesByCondition": TaintNodesByCondition,
        "AlwaysPullImages": optional.AlwaysPullImages,
        "ImagePolicyWebhook": lambda: optional.ImagePolicyWebhook(told),
        "PodSecurity": lambda: PodSecurity(Settings.read(told)),
        "PodNodeSelector": lambda: optional.PodNodeSelector(told),
        "Priority": Priority,
        "DefaultTolerationSeconds": DefaultTolerationSeconds,
        "EventRateLimit": lambda: optional.EventRateLimit(told),
        "ExtendedResourceToleration": optional.ExtendedResourceToleration,
        "DefaultStorageClass": DefaultStorageClass,
        "StorageObjectInUseProtection": StorageObjectInUseProtection,
        "PersistentVolumeClaimResize": PersistentVolumeClaimResize,
        "RuntimeClass": RuntimeClass,
        "CertificateApproval": CertificateApproval,
        "CertificateSigning": CertificateSigning,
        "CertificateSubjectRestriction": CertificateSubjectRestriction,
        "DefaultIngressClass": DefaultIngressClass,
        "DenyServiceExternalIPs": DenyServiceExternalIPs,
        "PodTopologyLabels": PodTopologyLabels,
        "MutatingAdmissionPolicy": lambda: MutatingAdmissionPolicy(api),
        "MutatingAdmissionWebhook": lambda: MutatingAdmissionWebhook(
            api, Credentials.read(told, "MutatingAdmissionWebhook")
        ),
        "ValidatingAdmissionPolicy": lambda: ValidatingAdmissionPolicy(api),
        "ValidatingAdmissionWebhook": lambda: ValidatingAdmissionWebhook(
            api, Credentials.read(told, "ValidatingAdmissionWebhook")
        ),
        "ResourceQuota": lambda: ResourceQuota(limited(told)),
        "AlwaysDeny": optional.AlwaysDeny,
    }


def plugins(config: Any, api: API) -> list[AdmissionPlugin]:
    """The plugins that are on, in their order. ConfigurationError for an unknown name or a bad configuration file.

    config: the server's (enable_admission and disable_admission name plugins, admission_config is the file); api: the
    server's own objects.
    """
    every = available(PluginConfiguration(config.admission_config), api)
    on, off = set(config.enable_admission), set(config.disable_admission)
    _check_names(config.enable_admission, config.disable_admission, every.keys() | ELSEWHERE)
    return [make() for name, make in every.items() if name not in off and (name in on or name not in OFF_BY_DEFAULT)]


def _check_names(on: Sequence[str], off: Sequence[str], known: Container[str]) -> None:
    for flag, names in (("enable", on), ("disable", off)):
        for name in names:
            if name not in known:
                raise ConfigurationError(f'{flag}-admission-plugins plugin "{name}" is unknown')
    both = sorted(set(on) & set(off))
    if both:
        raise ConfigurationError(
            f"[{' '.join(both)}] in enable-admission-plugins and disable-admission-plugins overlapped"
        )
