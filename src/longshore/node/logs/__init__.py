"""Fluentd's part: collect, process, buffer, store, query, forward.

Doors: CRI log files, Fluent forward, Loki's HTTP API.
"""
