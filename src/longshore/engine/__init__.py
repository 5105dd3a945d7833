"""Docker: images, builds, containers, networks, volumes, the Docker Engine API and the CRI service.

Doors: the Docker Engine API and CRI v1, each on a unix socket. Does not belong here: Pods, Services, the API server.
"""
