"""What the API server carries through to others: exec, attach, port-forward and log to kubelets; pod, service, node proxy.

Door: `Proxying(...).handlers()`, by (group, plural, subresource). Does not belong here: what a stream carries
(machinery.streams), who may open one (auth).
"""

from .handlers import Proxying

__all__ = ["Proxying"]
