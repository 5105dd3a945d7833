"""Longshore: Docker and Kubernetes in one package, driven by the clients that people already have.

The rooms are told in docs/architecture.md; parts meet only at public protocols.
"""

__version__ = "0.1.0"
