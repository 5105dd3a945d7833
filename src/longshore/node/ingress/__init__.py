"""Ingress of one node: HTTP and HTTPS from outside to the pods behind Services, by host and path.

Door: HTTP/1.1 and TLS out, the Kubernetes REST API in. Does not belong here: Services' own addresses (node/proxy).
"""
