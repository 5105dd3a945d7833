"""Links in proxied HTML pages and redirects, put under the path of the proxy.

Source: k8s.io/apimachinery/pkg/util/proxy/transport.go (which attributes hold links, which links are changed).
"""

from __future__ import annotations

import html
import posixpath
import re
from urllib.parse import urlsplit, urlunsplit

_ATTRIBUTES: dict[str, frozenset[str]] = {
    tag: frozenset(names.split(","))
    for tag, names in (
        pair.split(":")
        for pair in [
            "a:href",
            "applet:codebase",
            "area:href",
            "audio:src",
            "base:href",
            "blockquote:cite",
            "body:background",
            "button:formaction",
            "command:icon",
            "del:cite",
            "embed:src",
            "form:action",
            "frame:longdesc,src",
            "head:profile",
            "html:manifest",
            "iframe:longdesc,src",
            "img:longdesc,src,usemap",
            "input:src,usemap,formaction",
            "ins:cite",
            "link:href",
            "object:classid,codebase,data,usemap",
            "q:cite",
            "script:src",
            "source:src",
            "video:poster,src",
        ]
    )
}
_TAG = re.compile(r"<([A-Za-z][A-Za-z0-9]*)(?=[\s/>])")
_ATTRIBUTE = re.compile(r"""([^\s"'<>/=]+)(\s*=\s*)("[^"]*"|'[^']*'|[^\s"'>]+)""")
_RAW = frozenset(("script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"))
MAX_TAG = 64 * 1024


class Links:
    """Changes links. prefix: the proxy's path; hosts: authorities that mean the backend itself."""

    def __init__(self, prefix: str, hosts: frozenset[str]) -> None:
        self._prefix = prefix
        self._hosts = hosts

    def change(self, link: str) -> str:
        """A link as seen from the client: absolute paths of the backend go under the prefix, all else stays."""
        try:
            parts = urlsplit(link)
        except ValueError:
            return link
        if (parts.netloc and parts.netloc not in self._hosts) or not parts.path.startswith("/"):
            return link
        path = parts.path
        if not path.startswith(self._prefix):
            path = posixpath.normpath(self._prefix + "/" + path.lstrip("/"))
            if parts.path.endswith("/"):
                path += "/"
        return urlunsplit(("", "", path, parts.query, parts.fragment))


class Page:
    """An HTML page in pieces: feed octets, get octets. What is no tag goes through untouched."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._rest = ""
        self._raw = ""  # the element whose content is no markup

    def feed(self, data: bytes) -> bytes:
        return self._take(self._rest + data.decode("latin-1"), False)

    def finish(self) -> bytes:
        return self._take(self._rest, True)

    def _take(self, text: str, last: bool) -> bytes:
        out: list[str] = []
        at = 0
        while True:
            if self._raw:
                end = text.lower().find(f"</{self._raw}", at)
                if end < 0:
                    # keep enough for an end tag that is not all there yet
                    stop = len(text) if last else max(at, len(text) - len(self._raw) - 2)
                    break
                self._raw = ""
                out.append(text[at:end])
                at = end
            start = text.find("<", at)
            if start < 0:
                stop = len(text)
                break
            out.append(text[at:start])
            at = start
            if text.startswith("<!--", at):
                close = text.find("-->", at)
                end = close + 3 if close >= 0 else -1
            elif not last and "<!--".startswith(text[at : at + 4]):
                end = -1
            else:
                end = _tag_end(text, at)
            if end < 0:
                stop = len(text) if last or len(text) - at > MAX_TAG else at
                break
            out.append(self._tag(text[at:end]))
            at = end
        out.append(text[at:stop])
        self._rest = text[stop:]
        return "".join(out).encode("latin-1")

    def _tag(self, tag: str) -> str:
        found = _TAG.match(tag)
        if found is None:
            return tag
        name = found[1].lower()
        if name in _RAW and not tag.endswith("/>"):
            self._raw = name
        wanted = _ATTRIBUTES.get(name)
        if wanted is None:
            return tag

        def change(match: re.Match[str]) -> str:
            if match[1].lower() not in wanted:
                return match[0]
            value = match[3]
            quote = value[0] if value[0] in "\"'" else ""
            link = html.unescape(value[1:-1] if quote else value)
            new = self._links.change(link)
            if new == link:
                return match[0]
            return f'{match[1]}{match[2]}"{html.escape(new)}"'

        return found[0] + _ATTRIBUTE.sub(change, tag[found.end() :])


def _tag_end(text: str, at: int) -> int:
    """The index behind a tag's `>`, quotes heeded; -1 when it is not there yet."""
    quote = ""
    for i in range(at + 1, min(len(text), at + MAX_TAG)):
        c = text[i]
        if quote:
            if c == quote:
                quote = ""
        elif c in "\"'":
            quote = c
        elif c == ">":
            return i + 1
    return -1
