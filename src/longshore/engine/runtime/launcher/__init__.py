"""Longshore's own way into a running container: `docker exec` and probes without a runc and a conmon each.

A small process (`program`) waits for requests on a socket that it inherited and forks for each; the child (`entering`)
joins the container, gives up its rights, and only then lets the command be born inside. The engine's side is `client`.
Where a container asks for what is not carried here, runc does it: `request.unsupported` decides. Knows no Docker, no CRI.
"""
