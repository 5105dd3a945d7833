"""Docker Hub's part: the OCI distribution server.

Door: OCI distribution 1.1 over HTTP.
"""
