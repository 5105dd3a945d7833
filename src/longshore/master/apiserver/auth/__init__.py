"""Who asks and whether they may: authentication, authorization, impersonation, access reviews, escalation checks, tokens.

Door: `Access`, built from `Options` and the server's own objects (context.API). Does not belong here: requests' routing,
decoding and rendering (the core), what a write may contain (admission).
"""

from .access import Access, Options
from .reviews import AUTHENTICATION, AUTHORIZATION
from .serviceaccounts import key_set, openid_configuration

__all__ = ["AUTHENTICATION", "AUTHORIZATION", "Access", "Options", "key_set", "openid_configuration"]
