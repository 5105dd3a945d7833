"""Pods on the node: sync loop, probes, volumes, status, eviction, streaming.

Doors: CRI v1 to the engine, the Kubernetes REST API, the kubelet's own HTTPS port.
"""
