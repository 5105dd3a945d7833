"""Fluentd's part: collect, store, query.

Doors: CRI log files in, Loki's HTTP API out. A block of a container's CRI log is stored as it is, compressed: no line
is taken apart until a query asks for it. Does not belong here: writing container logs (engine), kubectl logs (kubelet).
"""
