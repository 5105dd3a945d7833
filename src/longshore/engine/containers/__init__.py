"""A Docker container's life cycle: create, start, attach, exec, logs, stats, health, restart, remove.

Door: `ContainerService`. Does not belong here: HTTP, image contents, OCI process handling (engine/runtime).
"""
