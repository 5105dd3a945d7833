"""The dispatch room: a node for each pod, by the scheduling framework.

Door: the Kubernetes REST API as a client; KubeSchedulerConfiguration v1 as a file.

Modules: podinfo and nodes (what is known, in columns), framework (the extension points), plugins/, queue, core (one
pod after the other), preemption, server.
"""
