"""The core group ("", v1)."""

from longshore.api.core.componentstatus import ComponentStatus
from longshore.api.core.config import ConfigMap, Secret, ServiceAccount
from longshore.api.core.endpoints import Endpoints
from longshore.api.core.event import Event
from longshore.api.core.namespace import LimitRange, Namespace, ResourceQuota
from longshore.api.core.node import Node
from longshore.api.core.pod import Pod, PodTemplate, ReplicationController
from longshore.api.core.service import Service
from longshore.api.core.volumes import PersistentVolume, PersistentVolumeClaim

STRATEGIES = {
    "ComponentStatus": ComponentStatus,
    "ConfigMap": ConfigMap,
    "Endpoints": Endpoints,
    "Event": Event,
    "LimitRange": LimitRange,
    "Namespace": Namespace,
    "Node": Node,
    "PersistentVolume": PersistentVolume,
    "PersistentVolumeClaim": PersistentVolumeClaim,
    "Pod": Pod,
    "PodTemplate": PodTemplate,
    "ReplicationController": ReplicationController,
    "ResourceQuota": ResourceQuota,
    "Secret": Secret,
    "Service": Service,
    "ServiceAccount": ServiceAccount,
}
