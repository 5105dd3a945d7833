"""The one list of controllers, in the order in which they are started, with upstream's names."""

from __future__ import annotations

from collections.abc import Iterable

from longshore.master.controllers.attachdetach import AttachDetachController
from longshore.master.controllers.base import Controller
from longshore.master.controllers.bootstraptokens import BootstrapSigner, TokenCleaner
from longshore.master.controllers.certificates import CSRApprover, CSRCleaner, CSRSigner
from longshore.master.controllers.clusterroleaggregation import ClusterRoleAggregation
from longshore.master.controllers.cronjob import CronJobController
from longshore.master.controllers.daemonset import DaemonSetController
from longshore.master.controllers.deployment import DeploymentController
from longshore.master.controllers.devicetaints import DeviceTaintEviction
from longshore.master.controllers.disruption import DisruptionController
from longshore.master.controllers.endpoints import EndpointsController
from longshore.master.controllers.endpointslice import EndpointSliceController
from longshore.master.controllers.garbagecollector import GarbageCollector
from longshore.master.controllers.hpa import HorizontalPodAutoscalerController
from longshore.master.controllers.job import JobController
from longshore.master.controllers.legacytokencleaner import LegacyTokenCleaner
from longshore.master.controllers.legacytokens import LegacyTokenController
from longshore.master.controllers.localpath import LocalPathProvisioner
from longshore.master.controllers.mirroring import EndpointSliceMirroring
from longshore.master.controllers.namespace import NamespaceController
from longshore.master.controllers.nodecertificates import NodeCertificateApprover
from longshore.master.controllers.nodeipam import NodeIPAMController
from longshore.master.controllers.nodelifecycle import NodeLifecycleController
from longshore.master.controllers.nodettl import NodeTTLController
from longshore.master.controllers.podgc import PodGarbageCollector
from longshore.master.controllers.policystatus import PolicyStatus
from longshore.master.controllers.replicaset import ReplicaSetController
from longshore.master.controllers.replicationcontroller import ReplicationControllerController
from longshore.master.controllers.resourceclaims import ResourceClaimController
from longshore.master.controllers.resourcequota import ResourceQuotaController
from longshore.master.controllers.serviceaccount import RootCAPublisher, ServiceAccountController
from longshore.master.controllers.servicecidrs import ServiceCIDRController
from longshore.master.controllers.serviceloadbalancer import ServiceLoadBalancerController
from longshore.master.controllers.statefulset import StatefulSetController
from longshore.master.controllers.tainteviction import TaintEvictionController
from longshore.master.controllers.ttlafterfinished import TTLAfterFinished
from longshore.master.controllers.volumebinder import PersistentVolumeBinder
from longshore.master.controllers.volumeexpander import VolumeExpander
from longshore.master.controllers.volumeprotection import (
    AttributesClassProtection,
    ClaimProtection,
    EphemeralVolumes,
    VolumeProtection,
)

CONTROLLERS: tuple[type[Controller], ...] = (
    ServiceAccountController,
    RootCAPublisher,
    LegacyTokenController,
    LegacyTokenCleaner,
    NodeIPAMController,
    NodeLifecycleController,
    ReplicaSetController,
    DeploymentController,
    EndpointsController,
    EndpointSliceController,
    DaemonSetController,
    StatefulSetController,
    JobController,
    CronJobController,
    NamespaceController,
    GarbageCollector,
    TaintEvictionController,
    DeviceTaintEviction,
    PodGarbageCollector,
    PersistentVolumeBinder,
    AttachDetachController,
    VolumeExpander,
    LocalPathProvisioner,
    ClaimProtection,
    VolumeProtection,
    AttributesClassProtection,
    EphemeralVolumes,
    ClusterRoleAggregation,
    DisruptionController,
    ResourceQuotaController,
    EndpointSliceMirroring,
    TTLAfterFinished,
    ReplicationControllerController,
    HorizontalPodAutoscalerController,
    CSRSigner,
    CSRApprover,
    CSRCleaner,
    NodeCertificateApprover,
    ServiceCIDRController,
    ServiceLoadBalancerController,
    ResourceClaimController,
    PolicyStatus,
    NodeTTLController,
    BootstrapSigner,
    TokenCleaner,
)

NAMES: dict[str, type[Controller]] = {c.name: c for c in CONTROLLERS}
SHORT: dict[str, str] = {c.name.removesuffix("-controller"): c.name for c in CONTROLLERS}


def chosen(wanted: Iterable[str], off: Iterable[str] = ()) -> list[type[Controller]]:
    """The controllers that --controllers asks for.

    wanted: '*' for all but those that are off by default, NAME for one, -NAME for not that one; upstream's short
    aliases (without -controller) are understood. Raises ValueError for a name that does not exist.
    """
    entries = list(wanted)
    named: dict[str, bool] = {}
    for entry in entries:
        if entry == "*":
            continue
        name = entry.removeprefix("-")
        name = SHORT.get(name, name)
        if name not in NAMES:
            raise ValueError(f'"{name}" is not in the list of known controllers')
        named[name] = not entry.startswith("-")
    everything, absent = "*" in entries, frozenset(off)
    return [c for c in CONTROLLERS if named.get(c.name, everything and c.name not in absent)]
