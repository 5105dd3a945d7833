"""The dispatch room: framework, plugins, queue, cache, preemption.

Door: the Kubernetes REST API as a client.
"""
