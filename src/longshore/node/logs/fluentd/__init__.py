"""Fluentd v1 configuration, read and obeyed: sources, filters and outputs as small classes, all in `plugins.py`'s lists.

Does not belong here: the forward protocol's bytes (wire/forward.py), the network inputs themselves (inputs/).
"""
