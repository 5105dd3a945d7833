"""How every part talks to the API server: REST, watch, informer, work queue, leader election.

Door: the Kubernetes REST API. Does not belong here: the logic of any controller.

    client = Client(config.load(kubeconfig))
    pods = InformerFactory(client).informer(resources.PODS)

Modules: config (kubeconfigs), rest (calls), resources (names), informer and store (live copies), workqueue, leader,
events, selectors (LabelSelector objects), objects (small questions about objects).
"""

from longshore.client import config, objects, resources, selectors
from longshore.client.config import Config, ConfigError
from longshore.client.events import EventRecorder
from longshore.client.informer import Callbacks, Informer, InformerFactory
from longshore.client.leader import LeaderElection
from longshore.client.resources import Resource
from longshore.client.rest import Client, is_already_exists, is_conflict, is_not_found
from longshore.client.store import Store, key_of, split_key
from longshore.client.workqueue import ShutDown, WorkQueue

__all__ = [
    "Callbacks",
    "Client",
    "Config",
    "ConfigError",
    "EventRecorder",
    "Informer",
    "InformerFactory",
    "LeaderElection",
    "Resource",
    "ShutDown",
    "Store",
    "WorkQueue",
    "config",
    "is_already_exists",
    "is_conflict",
    "is_not_found",
    "key_of",
    "objects",
    "resources",
    "selectors",
    "split_key",
]
