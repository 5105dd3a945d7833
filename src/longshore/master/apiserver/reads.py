"""GET and LIST: out of the watch cache where the version asked for allows it, out of the store where it does not."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import Any

from longshore.machinery.errors import Cause, StatusError, bad_request, expired, not_found
from longshore.machinery.http import Response
from longshore.master.apiserver import options, rendering, tokens
from longshore.master.apiserver.cache import Hub, Item, with_version
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.keys import path
from longshore.master.apiserver.selection import Selection, selection

Items = list[Item]


def parse_version(text: str, *, watching: bool = False) -> int:
    """A resourceVersion from the query. Upstream answers a bad one with 500 for reads of a list or watch."""
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or int(text) >= 2**64:
        why = "value out of range" if text.isascii() and text.isdigit() else "invalid syntax"
        message = f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": {why}'
        raise StatusError(500, "", message)
    return int(text)


def too_large(wanted: int, have: int) -> StatusError:
    return StatusError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {wanted}, current: {have}",
        {
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
    )


class Reader:
    """Answers GET and LIST calls."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def get(self, call: Call) -> Response | Awaitable[Response]:
        """One object, the newest unless resourceVersion says that an older one will do."""
        version = call.request.param("resourceVersion") if call.request.raw_query else ""
        if version == "0" or (not version and self.hub.current()):
            return self._get(call)
        return self._get_later(call, version)

    async def _get_later(self, call: Call, version: str) -> Response:
        if version:
            wanted = parse_version(version)
            if not await self.hub.reached(wanted):
                raise too_large(wanted, self.hub.version)
        else:
            await self.hub.fresh()
        return self._get(call)

    def _get(self, call: Call) -> Response:
        endpoint, info = call.endpoint, call.info
        cache = endpoint.cache
        item = cache.items.get(path(info.namespace, info.name)) if cache is not None else None
        if item is None:
            raise not_found(endpoint.group, endpoint.plural, info.name)
        return rendering.object_answer(call, item)

    def list(self, call: Call) -> Response | Awaitable[Response]:
        """A list; see the query options in the API conventions (limit, continue, resourceVersionMatch)."""
        query = call.request.query if call.request.raw_query else {}
        if not query and self.hub.current():
            cache = call.endpoint.cache
            assert cache is not None
            return rendering.list_answer(call, cache.select(call.namespace), self.hub.version)
        return self._list(call, query)

    async def _list(self, call: Call, query: dict[str, Any]) -> Response:
        request = call.request
        version, match = request.param("resourceVersion"), request.param("resourceVersionMatch")
        token = request.param("continue")
        self._check(call, version, match, token)
        options.number(request, "timeoutSeconds")
        limit = options.number(request, "limit") or 0
        chosen = selection(call)
        try:
            wanted = parse_version(version)
        except StatusError as error:
            raise bad_request(f"invalid resource version: {error.message}") from None
        if token:
            if version not in ("", "0"):
                raise bad_request("specifying resource version is not allowed when using continue")
            mark = tokens.decode(token)
            if mark.version > 0:
                return await self._list_at(call, mark.version, mark.key, limit, chosen, token)
            await self.hub.fresh()
            return self._list_now(call, mark.key, limit, chosen)
        if wanted and (match == "Exact" or (limit and not match)):
            return await self._list_at(call, wanted, "", limit, chosen, "")
        if version == "":
            if not self.hub.current():
                await self.hub.fresh()
        elif wanted and not await self.hub.reached(wanted):
            raise too_large(wanted, self.hub.version)
        return self._list_now(call, "", limit, chosen)

    def _check(self, call: Call, version: str, match: str, token: str) -> None:
        causes = []
        where = "resourceVersionMatch"
        if match:
            if not version:
                text = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
                causes.append(Cause("FieldValueForbidden", text, where))
            if token:
                text = "Forbidden: resourceVersionMatch is forbidden when continue is provided"
                causes.append(Cause("FieldValueForbidden", text, where))
            if match not in ("Exact", "NotOlderThan"):
                text = f'Unsupported value: "{match}": supported values: "Exact", "NotOlderThan", ""'
                causes.append(Cause("FieldValueNotSupported", text, where))
            if match == "Exact" and version == "0":
                text = 'Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
                causes.append(Cause("FieldValueForbidden", text, where))
        if options.flag(call.request, "sendInitialEvents") is not None:
            text = "Forbidden: sendInitialEvents is forbidden for list"
            causes.append(Cause("FieldValueForbidden", text, "sendInitialEvents"))
        if causes:
            raise options.invalid_options("ListOptions", causes)

    def _list_now(self, call: Call, start: str, limit: int, chosen: Selection) -> Response:
        cache = call.endpoint.cache
        assert cache is not None
        if chosen.name and not limit:
            item = (
                cache.items.get(path(call.namespace, chosen.name))
                if call.namespace or not call.endpoint.namespaced
                else None
            )
            if item is not None or call.namespace or not call.endpoint.namespaced:
                found = [item] if item is not None and chosen.matches(call.endpoint, item) else []
                return rendering.list_answer(call, found, self.hub.version)
        if not limit and not chosen:
            return rendering.list_answer(call, cache.select(call.namespace, start), self.hub.version)
        page, more = _page(call, cache.walk(call.namespace, start), limit, chosen)
        token, remaining = "", None
        if more:
            last = page[-1].key
            token = tokens.encode(last, self.hub.version)
            remaining = None if chosen else cache.count(call.namespace, last) - 1
        return rendering.list_answer(call, page, self.hub.version, token, remaining)

    async def _list_at(
        self, call: Call, version: int, start: str, limit: int, chosen: Selection, token: str
    ) -> Response:
        """A page as it was at a version: from the cache when nothing has changed since, else from the store."""
        cache = call.endpoint.cache
        assert cache is not None
        if version > self.hub.version and not await self.hub.reached(version):
            raise too_large(version, self.hub.version)
        store = self.hub.store
        if version < int(store.compact_revision):
            self._expired(call, start, bool(token))
        conversions = call.endpoint.storage.conversions if call.endpoint.foreign else None
        following, remaining = "", None
        if cache.version <= version and not (conversions is not None and chosen):
            page, more = _page(call, cache.walk(call.namespace, start), limit, chosen)
            if more:
                remaining = None if chosen else cache.count(call.namespace, page[-1].key) - 1
        else:
            unchanged = cache.version <= version
            found = cache.select(call.namespace, start) if unchanged else await self._from_store(call, version, start)
            if conversions is not None and chosen:
                await conversions.trees(call.endpoint.version, found)
            page, more = _page(call, iter(found), limit, chosen)
            if more:
                remaining = None if chosen else sum(1 for item in found if item.key > page[-1].key)
        if more:
            following = tokens.encode(page[-1].key, version)
        if conversions is not None:
            await conversions.fill(call.endpoint.version, page)
        return rendering.list_answer(call, page, version, following, remaining)

    async def _from_store(self, call: Call, version: int, start: str) -> Items:
        cache = call.endpoint.cache
        assert cache is not None
        prefix = cache.prefix + (f"{call.namespace}/".encode() if call.namespace else b"")
        first = max(prefix, cache.prefix + start.encode())
        try:
            result = await self.hub.store.range(first, prefix[:-1] + b"0", revision=version)
        except Exception as error:
            if "compacted" in str(error):
                self._expired(call, start, bool(start))
            raise
        cut = len(cache.prefix)
        return [
            Item(kv.key[cut:].decode(), kv.mod_revision, with_version(kv.value, kv.mod_revision)) for kv in result.kvs
        ]

    def _expired(self, call: Call, start: str, continued: bool) -> None:
        if not continued:
            raise expired("The resourceVersion for the provided list is too old.")
        error = expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list"
            " without the continue parameter, or use the continue token in this response to retrieve the remainder of"
            " the results. Continuing with the provided token results in an inconsistent list - objects that were"
            " created, modified, or deleted between the time the first chunk was returned and now may show up in the list."
        )
        raise _WithToken(error, tokens.encode(start.rstrip("\0"), -1))


def _page(call: Call, items: Iterator[Item], limit: int, chosen: Selection) -> tuple[Items, bool]:
    """The first items that are chosen, `limit` at most (0: all); whether there are items after them."""
    page: Items = []
    for item in items:
        if limit and len(page) == limit:
            return page, True
        if not chosen or chosen.matches(call.endpoint, item):
            page.append(item)
    return page, False


class _WithToken(StatusError):
    """An Expired error whose Status carries a token for going on inconsistently."""

    def __init__(self, error: StatusError, token: str) -> None:
        super().__init__(error.code, error.reason, error.message, error.details)
        self.token = token

    def status(self) -> dict[str, Any]:
        out = super().status()
        out["metadata"] = {"continue": self.token}
        return out
