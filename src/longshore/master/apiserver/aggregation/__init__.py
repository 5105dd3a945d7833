"""API groups that other servers serve: APIServices, whether their servers are there, requests carried to them.

Door: `Aggregator(...)`: `route` for requests, `run` for what must go on. Does not belong here: groups of this server.
"""

from .aggregator import Aggregator

__all__ = ["Aggregator"]
