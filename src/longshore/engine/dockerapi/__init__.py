"""The Docker Engine API over HTTP: routes, versions, bodies, errors; one module an object.

Door: the Docker Engine API. Does not belong here: the work itself.
"""
