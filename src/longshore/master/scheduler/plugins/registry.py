"""Names of the default plugins, in the order in which they act, with the weights of their scores."""

from __future__ import annotations

from longshore.master.scheduler.framework import Plugin
from longshore.master.scheduler.plugins import (
    affinity,
    basic,
    coscheduling,
    dynamic,
    preemption,
    resources,
    spread,
    volumes,
)

DEFAULT: tuple[tuple[type[Plugin], int], ...] = (
    (basic.SchedulingGates, 0),
    (basic.PrioritySort, 0),
    (basic.NodeUnschedulable, 0),
    (basic.NodeName, 0),
    (basic.TaintToleration, 3),
    (basic.NodeAffinity, 2),
    (basic.NodeDeclaredFeatures, 0),
    (basic.NodePorts, 0),
    (resources.NodeResourcesFit, 1),
    (volumes.VolumeRestrictions, 0),
    (volumes.NodeVolumeLimits, 0),
    (volumes.VolumeBinding, 0),
    (volumes.VolumeZone, 0),
    (spread.PodTopologySpread, 2),
    (affinity.InterPodAffinity, 2),
    (dynamic.DynamicResources, 0),
    (preemption.DefaultPreemption, 0),
    (resources.NodeResourcesBalancedAllocation, 1),
    (basic.ImageLocality, 1),
    (basic.DefaultBinder, 0),
)

#: What a profile may enable besides.
OPTIONAL: tuple[type[Plugin], ...] = (coscheduling.Coscheduling,)

PLUGINS: dict[str, type[Plugin]] = {cls.name: cls for cls in (*(c for c, _ in DEFAULT), *OPTIONAL)}
