"""ip("..."): whether a text is, or has in it, an address of a pattern: one address, a range "a-b", or a CIDR.

Source: grafana.com/docs/loki "Matching IP addresses".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from longshore.node.logs.logql.ast import LogQLError

_WORDS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def ip_test(pattern: str) -> Callable[[Address], bool]:
    """The test of a pattern. Raises LogQLError for one that is none."""
    try:
        if "-" in pattern:
            low, high = (ipaddress.ip_address(part.strip()) for part in pattern.split("-", 1))
            if low.version != high.version or int(low) > int(high):
                raise ValueError(pattern)
            return lambda address: address.version == low.version and int(low) <= int(address) <= int(high)
        network = ipaddress.ip_network(pattern, strict=False)
        return lambda address: address.version == network.version and address in network
    except ValueError:
        raise LogQLError(f"ip: invalid pattern: {pattern!r}") from None


def is_within(pattern: str) -> Callable[[str], bool]:
    """Whether a whole text is an address of the pattern."""
    test = ip_test(pattern)

    def check(text: str) -> bool:
        try:
            return test(ipaddress.ip_address(text.strip()))
        except ValueError:
            return False

    return check


def has_within(pattern: str) -> Callable[[str], bool]:
    """Whether a text has an address of the pattern in it."""
    test = ip_test(pattern)

    def check(line: str) -> bool:
        for word in _WORDS.findall(line):
            try:
                if test(ipaddress.ip_address(word.rstrip(":"))):
                    return True
            except ValueError:
                continue
        return False

    return check
