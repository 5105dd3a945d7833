"""The Kubernetes kinds: schema, defaults, validation, table columns and conversion, a module per API group.

Door: `longshore.api.kinds`. Does not belong here: HTTP, storage, anything asynchronous.
"""
