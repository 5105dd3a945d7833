"""The pytest plugin: an API server of its own a test, in memory, without root, on loopback only.

Door: the fixtures `longshore` and `longshore_factory`. Does not belong here: anything that a running cluster needs.
"""
