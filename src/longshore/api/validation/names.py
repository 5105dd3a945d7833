"""What strings must look like, with upstream's sentences (apimachinery pkg/util/validation and pkg/api/validation)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache

NameCheck = Callable[[str], list[str]]

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = _LABEL + r"(\." + _LABEL + ")*"
_LABEL_1035 = "[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_VALUE = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
_WILDCARD = r"\*\." + _SUBDOMAIN
_CONFIG_KEY = "[-._a-zA-Z0-9]+"
_UNDERSCORE = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?"
_SUBDOMAIN_UNDERSCORE = r"[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*"
_C_IDENTIFIER = "[A-Za-z_][A-Za-z0-9_]*"
_ENV = "[-._a-zA-Z][-._a-zA-Z0-9]*"
_RELAXED_ENV = r"[ -<>-~]+"
_HTTP_HEADER = "[-A-Za-z0-9]+"
_FINALIZER_PATH = "[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+"

_label = re.compile(_LABEL).fullmatch
_label_1035 = re.compile(_LABEL_1035).fullmatch
_subdomain = re.compile(_SUBDOMAIN).fullmatch
_qualified = re.compile(_QUALIFIED).fullmatch
_value = re.compile(_VALUE).fullmatch
_wildcard = re.compile(_WILDCARD).fullmatch
_config_key = re.compile(_CONFIG_KEY).fullmatch
_subdomain_underscore = re.compile(_SUBDOMAIN_UNDERSCORE).fullmatch
_c_identifier = re.compile(_C_IDENTIFIER).fullmatch
_env = re.compile(_ENV).fullmatch
_relaxed_env = re.compile(_RELAXED_ENV).fullmatch
_header = re.compile(_HTTP_HEADER).fullmatch
_path = re.compile(_FINALIZER_PATH).fullmatch


def regex_error(message: str, form: str, *examples: str) -> str:
    """The sentence about a string that does not match."""
    if not examples:
        return f"{message} (regex used for validation is '{form}')"
    listed = "".join((" or " if i else "") + f"'{e}', " for i, e in enumerate(examples))
    return f"{message} (e.g. {listed}regex used for validation is '{form}')"


def max_length(limit: int) -> str:
    """The sentence about a name that is too long."""
    return f"must be no more than {limit} characters"


def max_bytes(limit: int) -> str:
    """The sentence about a label's key or value that is too long: the same rule, in the newer package's words."""
    return f"must be no more than {limit} bytes"


def in_range(low: int, high: int) -> str:
    """The sentence about a number outside its bounds."""
    return f"must be between {low} and {high}, inclusive"


_LABEL_TEXT = regex_error(
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
    _LABEL,
    "my-name",
    "123-abc",
)
_LABEL_1035_TEXT = regex_error(
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
    _LABEL_1035,
    "my-name",
    "abc-123",
)
_SUBDOMAIN_TEXT = regex_error(
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
    _SUBDOMAIN,
    "example.com",
)
_QUALIFIED_TEXT = regex_error(
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    _QUALIFIED,
    "MyName",
    "my.name",
    "123-abc",
)
_VALUE_TEXT = regex_error(
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    _VALUE,
    "MyValue",
    "my_value",
    "12345",
)
_WILDCARD_TEXT = regex_error(
    "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
    _WILDCARD,
    "*.example.com",
)
_CONFIG_TEXT = regex_error(
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
    _CONFIG_KEY,
    "key.name",
    "KEY_NAME",
    "key-name",
)
_UNDERSCORE_TEXT = regex_error(
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character",
    _SUBDOMAIN_UNDERSCORE,
    "example.com",
)
_C_TEXT = regex_error(
    "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
    _C_IDENTIFIER,
    "my_name",
    "MY_NAME",
    "MyName",
)
_HEADER_TEXT = regex_error(
    "a valid HTTP header must consist of alphanumeric characters or '-'", _HTTP_HEADER, "X-Header-Name"
)


@lru_cache(4096)
def _dns1123_label(value: str) -> tuple[str, ...]:
    found = []
    if len(value) > 63:
        found.append(max_length(63))
    if not _label(value):
        if _subdomain(value):
            found.append("must not contain dots")
        else:
            found.append(_LABEL_TEXT)
    return tuple(found)


def dns1123_label(value: str) -> list[str]:
    """Complaints about an RFC 1123 label."""
    return list(_dns1123_label(value))


def dns1123_subdomain(value: str) -> list[str]:
    """Complaints about an RFC 1123 subdomain."""
    found = [] if len(value) <= 253 else [max_length(253)]
    if not _subdomain(value):
        found.append(_SUBDOMAIN_TEXT)
    return found


def dns1123_subdomain_with_underscore(value: str) -> list[str]:
    """Complaints about an RFC 1123 subdomain that may have underscores."""
    found = [] if len(value) <= 253 else [max_length(253)]
    if not _subdomain_underscore(value):
        found.append(_UNDERSCORE_TEXT)
    return found


def dns1035_label(value: str) -> list[str]:
    """Complaints about an RFC 1035 label."""
    found = [] if len(value) <= 63 else [max_length(63)]
    if not _label_1035(value):
        found.append(_LABEL_1035_TEXT)
    return found


def wildcard_subdomain(value: str) -> list[str]:
    """Complaints about *.subdomain."""
    found = [] if len(value) <= 253 else [max_length(253)]
    if not _wildcard(value):
        found.append(_WILDCARD_TEXT)
    return found


@lru_cache(4096)
def _qualified_name(value: str) -> tuple[str, ...]:
    found = []
    parts = value.split("/")
    if len(parts) == 1:
        name = parts[0]
    elif len(parts) == 2:
        prefix, name = parts
        if not prefix:
            found.append("prefix part must be non-empty")
        else:
            found.extend("prefix part " + m.replace(max_length(253), max_bytes(253)) for m in dns1123_subdomain(prefix))
    else:
        return (
            "a valid label key "
            + _QUALIFIED_TEXT
            + " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
        )
    if not name:
        found.append("name part must be non-empty")
    elif len(name) > 63:
        found.append("name part " + max_bytes(63))
    if not _qualified(name):
        found.append("name part " + _QUALIFIED_TEXT)
    return tuple(found)


def qualified_name(value: str) -> list[str]:
    """Complaints about prefix/name, the form of label keys."""
    return list(_qualified_name(value))


def label_value(value: str) -> list[str]:
    """Complaints about a label's value."""
    found = [] if len(value) <= 63 else [max_bytes(63)]
    if not _value(value):
        found.append(_VALUE_TEXT)
    return found


def config_key(value: str) -> list[str]:
    """Complaints about a key of a ConfigMap or Secret."""
    found = [] if len(value) <= 253 else [max_length(253)]
    if not _config_key(value):
        found.append(_CONFIG_TEXT)
    if value == ".":
        found.append("must not be '.'")
    elif value == "..":
        found.append("must not be '..'")
    elif value.startswith(".."):
        found.append("must not start with '..'")
    return found


def env_name(value: str) -> list[str]:
    """Complaints about a container's environment variable (relaxed form: printable ASCII without '=')."""
    if not value:
        return ["environment variable name must not be empty"]
    if not _relaxed_env(value):
        return ["a valid environment variable name must consist only of printable ASCII characters other than '='"]
    return []


def c_identifier(value: str) -> list[str]:
    """Complaints about a C identifier."""
    return [] if _c_identifier(value) else [_C_TEXT]


def http_header(value: str) -> list[str]:
    """Complaints about an HTTP header's name."""
    return [] if _header(value) else [_HEADER_TEXT]


def port_number(value: int) -> list[str]:
    """Complaints about a port number."""
    return [] if 1 <= value <= 65535 else [in_range(1, 65535)]


def port_name(value: str) -> list[str]:
    """Complaints about an IANA service name."""
    found = []
    if len(value) > 15:
        found.append(max_length(15))
    if not re.fullmatch("[-a-z0-9]+", value):
        found.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search("[a-z]", value):
        found.append("must contain at least one letter (a-z)")
    if "--" in value:
        found.append("must not contain consecutive hyphens")
    if value and (value[0] == "-" or value[-1] == "-"):
        found.append("must not begin or end with a hyphen")
    return found


def fully_qualified_name(value: str) -> list[str]:
    """Complaints about a domain with at least three segments."""
    found = dns1123_subdomain(value)
    if found:
        return found
    return [] if value.count(".") >= 2 else ["should be a domain with at least three segments separated by dots"]


def domain_prefixed_path(value: str) -> list[tuple[str, str]]:
    """Complaints about domain/path, each as (the part that is wrong, the sentence)."""
    segments = value.split("/", 1)
    if len(segments) != 2 or not segments[0] or not segments[1]:
        return [(value, 'must be a domain-prefixed path (such as "acme.io/foo")')]
    found = [(segments[0], message) for message in dns1123_subdomain(segments[0])]
    if not _path(segments[1]):
        found.append((segments[1], regex_error("Invalid path", _FINALIZER_PATH)))
    return found


def path_segment(value: str) -> list[str]:
    """Complaints about a name that must be one path segment (RBAC)."""
    if value == ".":
        return ["may not be '.'"]
    if value == "..":
        return ["may not be '..'"]
    return [f"may not contain '{c}'" for c in ("/", "%") if c in value]


@lru_cache(2048)
def parse_ip(value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that value writes, None when it is none (zones are not allowed)."""
    if "%" in value:
        return None
    try:
        return ipaddress.ip_address(value)
    except ValueError:
        return None


def ip_family(value: str) -> str:
    """ "IPv4", "IPv6" or "" of an address."""
    address = parse_ip(value)
    return "" if address is None else f"IPv{address.version}"


def ip(value: str) -> list[str]:
    """Complaints about an IP address."""
    return [] if parse_ip(value) is not None else ["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]


def parse_cidr(value: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface | None:
    """The range that value writes (host bits kept), None when it is none."""
    if "/" not in value or "%" in value or not value.rsplit("/", 1)[1].isdigit():
        return None
    try:
        return ipaddress.ip_interface(value)
    except ValueError:
        return None


def cidr(value: str) -> list[str]:
    """Complaints about a CIDR."""
    return [] if parse_cidr(value) is not None else ["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"]


def for_generation(check: NameCheck) -> NameCheck:
    """The check of a name's prefix: a trailing dash stands for what will follow."""

    def checked(value: str) -> list[str]:
        if value.endswith("-") and len(value) > 1:
            value = value[:-2] + "a"
        return check(value)

    return checked


def nothing(value: str) -> list[str]:
    """No complaint."""
    return []
