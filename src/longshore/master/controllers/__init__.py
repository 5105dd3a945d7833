"""The steward: a module per controller, one shape for all.

Door: the Kubernetes REST API as a client.
"""
