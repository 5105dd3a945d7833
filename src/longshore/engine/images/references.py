"""Image names: parsing, Docker's normal form, and the short form that people see.

Grammar and texts as in distribution/reference (docker.io/library/NAME:TAG@DIGEST).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from longshore.engine.errors import InvalidParameter

DEFAULT_DOMAIN = "docker.io"
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library"
_NAME_LIMIT = 255

_ALNUM = r"[a-z0-9]+"
_SEPARATOR = r"(?:\.|_|__|-+)"
_COMPONENT = rf"{_ALNUM}(?:{_SEPARATOR}{_ALNUM})*"
_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?"
_TAG = r"[\w][\w.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?",
    re.ASCII,
)
_TAG_ONLY = re.compile(_TAG, re.ASCII)
_HEX64 = re.compile(r"[a-f0-9]{64}")
_ANY_DIGEST = re.compile(r"(?P<algorithm>[a-z0-9]+(?:[+._-][a-z0-9]+)*):(?P<hex>[a-zA-Z0-9=_-]+)")
_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


class InvalidReference(InvalidParameter):
    """A name that is no reference; the message is upstream's."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised image name: domain and path always, tag and digest where given."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """ "docker.io/library/busybox"."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository as people write it: "busybox", "user/app", "registry:5000/app"."""
        if self.domain != DEFAULT_DOMAIN:
            return self.repository
        head, _, rest = self.path.partition("/")
        return rest if head == _OFFICIAL and rest and "/" not in rest else self.path

    @property
    def familiar(self) -> str:
        """The familiar name with tag and digest."""
        return self.familiar_name + self._suffix

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self.repository + self._suffix

    def with_default_tag(self) -> Reference:
        """The same with ":latest" where neither tag nor digest is given."""
        return self if self.tag or self.digest else Reference(self.domain, self.path, "latest")

    def with_tag(self, tag: str) -> Reference:
        """The same repository under another tag. Raises InvalidReference("invalid tag format")."""
        if not _TAG_ONLY.fullmatch(tag):
            raise InvalidReference("invalid tag format")
        return Reference(self.domain, self.path, tag)

    def with_digest(self, digest: str) -> Reference:
        return Reference(self.domain, self.path, "", digest)


def check_digest(text: str) -> str:
    """The digest itself when it is well formed and of a known algorithm, else InvalidReference with upstream's text."""
    match = _ANY_DIGEST.fullmatch(text)
    if not match:
        raise InvalidReference("invalid checksum digest format")
    length = _LENGTHS.get(match["algorithm"])
    if length is None:
        raise InvalidReference("unsupported digest algorithm")
    if len(match["hex"]) != length:
        raise InvalidReference("invalid checksum digest length")
    if not re.fullmatch(r"[a-f0-9]+", match["hex"]):
        raise InvalidReference("invalid checksum digest format")
    return text


def is_digest(text: str) -> bool:
    try:
        check_digest(text)
    except InvalidReference:
        return False
    return True


def _split_domain(name: str) -> tuple[str, str]:
    head, slash, rest = name.partition("/")
    if not slash or (not re.search(r"[.:]", head) and head != "localhost" and head.lower() == head):
        domain, rest = DEFAULT_DOMAIN, name
    else:
        domain = head
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in rest:
        rest = f"{_OFFICIAL}/{rest}"
    return domain, rest


def parse(text: str) -> Reference:
    """Parse a name as people write it into its normal form.

    text: "busybox", "localhost:5000/a/b:1", "x@sha256:...". Raises InvalidReference.
    Source: distribution/reference ParseNormalizedNamed.
    """
    if _HEX64.fullmatch(text):
        raise InvalidReference(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    domain, rest = _split_domain(text)
    path = rest.partition("@")[0] if ":" not in rest.partition("@")[0] else rest.partition(":")[0]
    if path.lower() != path:
        raise InvalidReference(f"invalid reference format: repository name ({path}) must be lowercase")
    match = _REFERENCE.fullmatch(f"{domain}/{rest}")
    if not match or not match["domain"]:
        raise InvalidReference("invalid reference format")
    if len(match["path"]) > _NAME_LIMIT:
        raise InvalidReference(f"repository name must not be more than {_NAME_LIMIT} characters")
    digest = check_digest(match["digest"]) if match["digest"] else ""
    return Reference(match["domain"], match["path"], match["tag"] or "", digest)


def parse_any(text: str) -> Reference | str:
    """A reference, or the digest "sha256:..." where the text is an image's full id. Source: ParseAnyReference."""
    if _HEX64.fullmatch(text):
        return f"sha256:{text}"
    if is_digest(text):
        return text
    return parse(text)


def parse_stored(text: str) -> Reference:
    """A name that we stored ourselves (always in normal form)."""
    match = _REFERENCE.fullmatch(text)
    if not match:
        raise InvalidReference("invalid reference format")
    return Reference(match["domain"] or DEFAULT_DOMAIN, match["path"], match["tag"] or "", match["digest"] or "")
