"""Nodes without machines, and answers about a copy of a cluster.

`nodes.serve` registers simulated nodes and plays the kubelet for the pods bound to them, by rules. `questions` (fit,
drain, compact) asks the real scheduler's code on a `cell.Cell`, a copy of a cluster's state that writes nothing.
Doors: the Kubernetes REST API; files of objects. Does not belong here: any logic of scheduling.
"""
