"""How every part talks to the API server: REST, watch, informer, work queue, leader election.

Door: the Kubernetes REST API. Does not belong here: the logic of any controller.
"""
